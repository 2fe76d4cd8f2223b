//! Continues, answers or classifies a text with a language model and any number of adapters; a model that is loaded does so for one
//! configuration after another.

use super::language::base::{LanguageBase, WantedModel};
use super::language::given_adapters::GivenAdapters;
use super::language::prompted_text::PromptedText;
use super::prompt_checks::warn_of_doubled_start;
use super::training::observer::{Event, Observer};
use super::{report_device, report_given_adapter, report_model};
use crate::adapters::peft_folder::MODEL_FILE;
use crate::adapters::Prompt;
use crate::data::language_dataset::LanguageTask;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::random::seed_globally;
use crate::models::language::{ClassifierInputs, HeadOptions, LanguageModel, SequenceClassifier};
use crate::models::Loaded;
use crate::options::adapter_argument::path_and_scale;
use crate::options::complete::CompleteConfig;
use crate::options::storage::StorageArgs;
use crate::sample::text_generation::{TextSampling, TextWriter};
use crate::weights::Placement;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};
use tch::{Device, Kind, Tensor};

/// How the model is asked to write, up to one of the tokens `ends`.
fn sampling(config: &CompleteConfig, ends: Vec<i64>) -> TextSampling {
    TextSampling {
        max_new_tokens: config.max_new_tokens,
        temperature: config.temperature,
        top_k: config.top_k,
        top_p: config.top_p,
        num_beams: config.num_beams,
        ends,
    }
}

/// What a model makes of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Completion {
    /// What it wrote.
    Text {
        /// The text, without its end.
        text: String,
        /// Its tokens, with the end.
        tokens: usize,
        /// How many of them a second.
        tokens_per_s: f64,
    },
    /// How likely each class is, the likeliest first.
    Classes(Vec<(String, f64)>),
}

/// Completes the prompt of `config` on `device`: each piece of the text is told to `observer` as it is written. `seed` draws tokens
/// where they are drawn. Ends within a token once `interrupt` is set.
pub fn complete(
    config: &CompleteConfig,
    device: Device,
    seed: i64,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Completion> {
    let mut model = TextModel::open(config, device, seed, interrupt, observer)?;
    model.complete(config, seed, interrupt, observer)
}

/// A language model in memory, with adapters that change.
pub struct TextModel {
    base: LanguageBase,
    loaded: Loaded<LanguageModel>,
    /// Classes of its head, where an adapter brought one.
    labels: Option<i64>,
    present: PresentAdapters,
    wanted: (PathBuf, Option<String>, StorageArgs),
    device: Device,
    kind: Kind,
}

/// The adapters on a model.
struct PresentAdapters {
    /// As they were given, each with the time at which its file was written; none: they could not be put on.
    given: Option<Vec<(String, Option<SystemTime>)>>,
    prompt: Option<Prompt>,
    classes: Option<Vec<String>>,
}

/// Adapters that were read for a model, and what follows from them.
struct ReadAdapters {
    given: Vec<(String, Option<SystemTime>)>,
    adapters: GivenAdapters,
    classes: Option<Vec<String>>,
    labels: Option<i64>,
}

impl TextModel {
    /// Loads the model of `config` with its adapters. `seed` draws a head that neither of them has.
    pub fn open(
        config: &CompleteConfig,
        device: Device,
        seed: i64,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        config.weights.check()?;
        let _watch = interrupt.watch();
        let kind = config.dtype.kind(device);
        let wanted = WantedModel::new(&config.model, config.revision.as_deref());
        wanted.check_path()?;
        let mut base = wanted.open(observer)?;
        base.files.store_in(config.weights.storage());
        sampling(config, base.ends()?).check()?;
        let read = ReadAdapters::of(config, &base, observer)?;
        report_model(&config.model.display().to_string(), Some(base.files.architecture().model_type), observer);
        report_device(device, kind, observer)?;
        super::report_weights(&config.weights, device, observer);
        config.adapter.iter().for_each(|text| report_given_adapter(text, observer));
        let labels = read.labels;
        let loaded = base.files.load(Placement { device, kind }, HeadOptions { labels, seed })?;
        let present = PresentAdapters { given: None, prompt: None, classes: None };
        let wanted = (config.model.clone(), config.revision.clone(), config.weights.clone());
        let mut model = Self { base, loaded, labels, present, wanted, device, kind };
        model.put_on(read)?;
        Ok(model)
    }

    /// Whether it is the model that `config` asks for, with its weights kept and computed with as it says.
    pub fn is_for(&self, config: &CompleteConfig, device: Device) -> bool {
        let (model, revision, weights) = &self.wanted;
        (model, revision, weights) == (&config.model, &config.revision, &config.weights)
            && (self.device, self.kind) == (device, config.dtype.kind(device))
    }

    /// Completes the prompt of `config`, whose model this must be ([`TextModel::is_for`]), as [`complete`] does. Other adapters than
    /// those of before are put on the model where it is; only one that brings a classifier's head of another size loads it again.
    pub fn complete(
        &mut self,
        config: &CompleteConfig,
        seed: i64,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Completion> {
        let sampling = sampling(config, self.base.ends()?);
        sampling.check()?;
        let _watch = interrupt.watch();
        if self.present.given.as_ref() != Some(&stamped(&config.adapter)) {
            let read = ReadAdapters::of(config, &self.base, observer)?;
            config.adapter.iter().for_each(|text| report_given_adapter(text, observer));
            if read.labels != self.labels {
                self.present.given = None;
                let place = Placement { device: self.device, kind: self.kind };
                self.loaded = self.base.files.load(place, HeadOptions { labels: read.labels, seed })?;
                self.labels = read.labels;
            }
            self.put_on(read)?;
        }
        warn_of_doubled_start("⟨prompt⟩", &config.prompt, &self.base.tokenizer, observer)?;
        let completer = Completer {
            model: &self.loaded.model,
            prompt: self.present.prompt.as_ref(),
            tokenizer: &self.base.tokenizer,
            classes: self.present.classes.as_deref(),
            device: self.device,
        };
        let ids = completer.ids(&config.prompt)?;
        let made_for = self.base.files.outline()?.made_for;
        warn_beyond_positions(made_for, completer.prompt, ids.len(), completer.most_new(&sampling), observer);
        completer.complete(&ids, &sampling, seed, interrupt, &mut |piece| {
            observer.on(Event::Text { text: piece.to_owned() });
        })
    }

    /// Puts adapters on the model, in place of those of before.
    fn put_on(&mut self, read: ReadAdapters) -> Result<()> {
        self.present.given = None;
        let sites = &self.loaded.sites;
        sites.unmerge();
        sites.clear();
        let prompt = read.adapters.put_on(&self.loaded, self.device)?;
        sites.merge();
        self.present = PresentAdapters { given: Some(read.given), prompt, classes: read.classes };
        Ok(())
    }
}

/// Adapters as they are given, each with the time at which its file was written.
fn stamped(given: &[String]) -> Vec<(String, Option<SystemTime>)> {
    let written = |text: &String| {
        let (path, _) = path_and_scale("⟨adapter⟩", text).ok()?;
        std::fs::metadata(path.join(MODEL_FILE)).and_then(|about| about.modified()).ok()
    };
    given.iter().map(|text| (text.clone(), written(text))).collect()
}

impl ReadAdapters {
    fn of(config: &CompleteConfig, base: &LanguageBase, observer: &mut dyn Observer) -> Result<Self> {
        // Before they are read: what is written meanwhile is read again the next time.
        let given = stamped(&config.adapter);
        let adapters = GivenAdapters::read(&config.adapter)?;
        adapters.warnings().iter().for_each(|text| observer.warning(text.clone()));
        adapters.check_for(&base.files)?;
        let only_classifies = base.files.architecture().tasks == [LanguageTask::SeqCls.peft_name()];
        let classifies = base.files.is_classifier() || only_classifies;
        let classes = match classifies || adapters.are_for(LanguageTask::SeqCls) {
            true => Some(adapters.classes(&base.files)?.ok_or_else(|| adapters.without_classes(&base.files))?),
            false => None,
        };
        // A head that no adapter brings must be in the model's files.
        let labels = adapters.head_rows(&base.files)?;
        Ok(Self { given, adapters, classes, labels })
    }
}

/// A model in memory, wherever it is kept, that completes texts: one that is used, or one that trains.
pub(super) struct Completer<'a> {
    pub model: &'a LanguageModel,
    /// What stands before each text.
    pub prompt: Option<&'a Prompt>,
    pub tokenizer: &'a LanguageTokenizer,
    /// A classifier's classes.
    pub classes: Option<&'a [String]>,
    pub device: Device,
}

impl Completer<'_> {
    /// The tokens of `text`, to go on with.
    pub fn ids(&self, text: &str) -> Result<Vec<i64>> {
        let mut ids = self.tokenizer.encode(text, usize::MAX)?.ids;
        if matches!(self.model, LanguageModel::Causal(_)) {
            // What ends a text is nothing to go on with.
            ids.truncate(without_end(&ids, self.tokenizer.special_ids().eos).len());
        }
        match ids.is_empty() {
            true => Err(Error::invalid(
                "⟨prompt⟩ is empty, but the model needs at least one token to continue; give it a text",
            )),
            false => Ok(ids),
        }
    }

    /// How many tokens it writes at most.
    fn most_new(&self, sampling: &TextSampling) -> usize {
        if self.classes.is_some() {
            0
        } else {
            sampling.max_new_tokens
        }
    }

    /// Completes the text of the tokens `ids`; `on_piece` gets what is written, piece by piece.
    pub fn complete(
        &self,
        ids: &[i64],
        sampling: &TextSampling,
        seed: i64,
        interrupt: &Interrupt,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        check_positions(self.model, self.prompt, ids.len(), self.most_new(sampling))?;
        seed_globally(self.device, seed)?;
        let read = tch::no_grad(|| {
            let ids = Tensor::from_slice(ids).unsqueeze(0).to_device(self.device);
            PromptedText::new(self.model, self.prompt, ids, None)
        })?;
        match (self.model, self.classes) {
            (LanguageModel::Classifier(model), Some(classes)) => classify(model.as_ref(), read, classes),
            (model, _) => self.write(TextWriter::of(model)?, read, sampling, interrupt, on_piece),
        }
    }

    /// Writes a text, as it comes.
    fn write(
        &self,
        writer: TextWriter,
        mut read: PromptedText,
        sampling: &TextSampling,
        interrupt: &Interrupt,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        let cache = read.cache.take().unwrap_or_default();
        let began = Instant::now();
        let (mut stream, mut text) = (self.tokenizer.stream(), String::new());
        let mut show = |piece: String| {
            // A character can take several tokens.
            if !piece.is_empty() {
                on_piece(&piece);
                text.push_str(&piece);
            }
        };
        let mut on_token = |token: i64| {
            // The end has no text.
            if !sampling.ends.contains(&token) {
                show(stream.push(token)?);
            }
            interrupt.check()
        };
        let made = writer.write(read.tokens(), cache, self.device, sampling, &mut on_token);
        let made = made.map_err(|error| match error {
            Error::Interrupted(_) => Error::Interrupted("the text is not finished".to_owned()),
            error => error,
        })?;
        show(stream.finish()?);
        let tokens_per_s = made.len() as f64 / began.elapsed().as_secs_f64();
        Ok(Completion::Text { text, tokens: made.len(), tokens_per_s })
    }
}

/// How likely each class is, the likeliest first.
fn classify(model: &dyn SequenceClassifier, mut read: PromptedText, classes: &[String]) -> Result<Completion> {
    let mut cache = read.cache.take();
    let logits = catching(|| {
        let inputs = ClassifierInputs { cache: cache.as_mut(), ..ClassifierInputs::new(read.tokens()) };
        Ok(tch::no_grad(|| model.classify(inputs)))
    })?;
    let probabilities = Vec::<f64>::try_from(logits.get(0).softmax(0, Kind::Double))?;
    let mut ranked: Vec<(String, f64)> = classes.iter().cloned().zip(probabilities).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(Completion::Classes(ranked))
}

fn check_positions(model: &LanguageModel, prompt: Option<&Prompt>, tokens: usize, most_new: usize) -> Result<()> {
    let virtual_tokens = prompt.map_or(0, Prompt::length) as usize;
    let Some(most) = model
        .shape()
        .longest
        .filter(|&most| virtual_tokens.saturating_add(tokens).saturating_add(most_new) as u64 > most as u64)
    else {
        return Ok(());
    };
    let behind = if virtual_tokens > 0 { format!(" behind {virtual_tokens} virtual ones") } else { String::new() };
    Err(Error::invalid(match most_new {
        0 => format!("a prompt of {tokens} tokens{behind} exceeds the model's {most} positions; shorten it"),
        _ => format!(
            "a prompt of {tokens} tokens{behind} and ⟨max_new_tokens⟩ {most_new} exceed the model's {most} positions; lower one of them"
        ),
    }))
}

/// Warns of a text that reaches beyond the `made_for` positions that the model has learned from, where it can number more.
fn warn_beyond_positions(
    made_for: Option<i64>,
    prompt: Option<&Prompt>,
    tokens: usize,
    most_new: usize,
    observer: &mut dyn Observer,
) {
    let read = prompt.map_or(0, Prompt::length) as usize + tokens;
    let reaches = read.saturating_add(most_new);
    let Some(most) = made_for.and_then(|most| usize::try_from(most).ok()).filter(|most| reaches > *most) else {
        return;
    };
    observer.warning(match read > most {
        true => format!(
            "⟨prompt⟩ has {read} tokens, and the model was made for {most}: it knows little of what lies behind; shorten it"
        ),
        false => format!(
            "⟨prompt⟩ has {read} tokens, and the model was made for {most}: it writes {} that it was made for, and knows little of \
             the rest of ⟨max_new_tokens⟩ {most_new}",
            most - read
        ),
    });
}

fn without_end(ids: &[i64], end: Option<i64>) -> &[i64] {
    match ids.split_last() {
        Some((last, before)) if Some(*last) == end && !before.is_empty() => before,
        _ => ids,
    }
}
