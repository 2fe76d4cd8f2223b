//! `lorabooth complete`: continues, answers or classifies a text with a language model and any number of adapters.

use super::{Common, Dtype, Reporter};
use crate::adapters::Prompt;
use crate::data::language_dataset::LanguageTask;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::random::seed_globally;
use crate::models::language::{ClassifierInputs, HeadOptions, LanguageModel, SequenceClassifier};
use crate::options::storage::StorageArgs;
use crate::plain_text;
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::given_adapters::GivenAdapters;
use crate::recipes::language::prompted_text::PromptedText;
use crate::recipes::prompt_checks::warn_of_doubled_start;
use crate::recipes::training::observer::Observer;
use crate::recipes::{report_device, report_given_adapter, report_model, report_weights};
use crate::sample::text_generation::{TextSampling, TextWriter};
use crate::weights::Placement;
use clap::Args;
use serde_json::{json, Map, Value};
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// The default of `--max-new-tokens`.
pub const MAX_NEW_TOKENS: usize = 50;

/// A longer text on standard input is no prompt.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Flags of the command.
#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// Model: a folder in the transformers layout, a .gguf file of the LLaMA family, or a hub id
    #[arg(long)]
    model: PathBuf,
    /// Branch, tag or commit of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times, at most one of them a prompt
    #[arg(long, visible_alias = "lora", value_name = "PATH[=SCALE]", action = clap::ArgAction::Append)]
    adapter: Vec<String>,
    /// The text to continue, answer or classify; - reads standard input
    #[arg(long)]
    prompt: String,
    /// Maximum number of tokens to generate
    #[arg(long, default_value_t = MAX_NEW_TOKENS)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample from the K most likely tokens
    #[arg(long)]
    top_k: Option<i64>,
    /// Sample from the most likely tokens whose probabilities add up to P (nucleus sampling)
    #[arg(long)]
    top_p: Option<f64>,
    /// Number of beams of beam search
    #[arg(long, default_value_t = 1)]
    num_beams: usize,
    /// Dtype of the computation
    #[arg(long, visible_alias = "mixed-precision", value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// How the model's weights are kept.
    #[command(flatten)]
    weights: StorageArgs,
}

/// Runs the command.
pub fn run(args: &CompleteArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    args.weights.check()?;
    let device = common.device()?;
    let kind = args.dtype.kind(device);
    reporter.result_is_for_programs();
    let model = WantedModel::new(&args.model, args.revision.as_deref());
    model.check_path()?;
    let mut base = model.open(reporter)?;
    base.files.store_in(args.weights.storage());
    let sampling = args.sampling(base.ends()?);
    sampling.check()?;
    let adapters = GivenAdapters::read(&args.adapter)?;
    adapters.check_for(&base.files)?;
    let only_classifies = base.files.architecture().tasks == [LanguageTask::SeqCls.peft_name()];
    let classifies = base.files.is_classifier() || only_classifies;
    let classes = match classifies || adapters.are_for(LanguageTask::SeqCls) {
        true => Some(adapters.classes(&base.files)?.ok_or_else(|| adapters.without_classes(&base.files))?),
        false => None,
    };
    let text = args.text()?;
    let observer: &mut dyn Observer = reporter;
    report_model(&args.model.display().to_string(), Some(base.files.architecture().model_type), observer);
    report_device(device, kind, observer)?;
    report_weights(&args.weights, device, observer);
    args.adapter.iter().for_each(|text| report_given_adapter(text, observer));
    // A head that no adapter brings must be in the model's files.
    let labels = adapters.head_rows(&base.files)?;
    let loaded = base.files.load(Placement { device, kind }, HeadOptions { labels, seed: common.seed })?;
    let prompt = adapters.put_on(&loaded, device)?;
    loaded.sites.merge();

    warn_of_doubled_start("--prompt", &text, &base.tokenizer, observer)?;
    let ids = base.tokenizer.encode(&text, usize::MAX)?.ids;
    let ids = match loaded.model {
        // What ends a text is nothing to go on with.
        LanguageModel::Causal(_) => without_end(&ids, base.tokenizer.special_ids().eos),
        _ => &ids,
    };
    if ids.is_empty() {
        return Err(Error::invalid(
            "--prompt is empty, but the model needs at least one token to continue; give it a text",
        ));
    }
    let most = if classes.is_some() { 0 } else { args.max_new_tokens };
    check_positions(&loaded.model, prompt.as_ref(), ids.len(), most)?;
    seed_globally(device, common.seed)?;
    let read = tch::no_grad(|| {
        let ids = Tensor::from_slice(ids).unsqueeze(0).to_device(device);
        PromptedText::new(&loaded.model, prompt.as_ref(), ids, None)
    })?;
    match (&loaded.model, &classes) {
        (LanguageModel::Classifier(model), Some(classes)) => classify(model.as_ref(), read, classes, reporter),
        (model, _) => write(TextWriter::of(model)?, read, &sampling, &base.tokenizer, device, reporter),
    }
}

impl CompleteArgs {
    fn sampling(&self, ends: Vec<i64>) -> TextSampling {
        TextSampling {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            num_beams: self.num_beams,
            ends,
        }
    }

    /// The prompt, which may come from standard input.
    fn text(&self) -> Result<String> {
        if self.prompt != "-" {
            return Ok(self.prompt.clone());
        }
        // Standard input can be without end.
        let mut text = String::new();
        let read = std::io::stdin().take(MAX_PROMPT_BYTES + 1).read_to_string(&mut text);
        match read.map_err(|error| Error::io("read", "standard input", error))? as u64 > MAX_PROMPT_BYTES {
            true => {
                let most = MAX_PROMPT_BYTES >> 20;
                Err(Error::invalid(format!(
                    "standard input holds more than {most} MB, which is too long for a prompt; shorten it"
                )))
            }
            false => Ok(text),
        }
    }
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
            "a prompt of {tokens} tokens{behind} and --max-new-tokens {most_new} exceed the model's {most} positions; lower one of them"
        ),
    }))
}

/// Tells how likely each class is, the likeliest first.
fn classify(
    model: &dyn SequenceClassifier,
    mut read: PromptedText,
    classes: &[String],
    reporter: &mut Reporter,
) -> Result<()> {
    let mut cache = read.cache.take();
    let logits = catching(|| {
        let inputs = ClassifierInputs { cache: cache.as_mut(), ..ClassifierInputs::new(read.tokens()) };
        Ok(tch::no_grad(|| model.classify(inputs)))
    })?;
    let probabilities = Vec::<f64>::try_from(logits.get(0).softmax(0, Kind::Double))?;
    let mut ranked: Vec<(&str, f64)> = classes.iter().map(String::as_str).zip(probabilities).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let names: Vec<String> = ranked.iter().map(|(class, _)| plain_text::value(class)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> =
        names.iter().zip(&ranked).map(|(name, (_, share))| format!("{name:<width$}  {share:.4}")).collect();
    let shares: Map<String, Value> = ranked.iter().map(|&(class, share)| (class.to_owned(), json!(share))).collect();
    let (class, probability) = ranked[0];
    let json = json!({ "class": class, "probability": probability, "probabilities": shares });
    reporter.result(json, &lines.join("\n"));
    Ok(())
}

/// Writes a text, as it comes.
fn write(
    writer: TextWriter,
    mut read: PromptedText,
    sampling: &TextSampling,
    tokenizer: &LanguageTokenizer,
    device: Device,
    reporter: &mut Reporter,
) -> Result<()> {
    let cache = read.cache.take().unwrap_or_default();
    let began = Instant::now();
    let (mut stream, mut text) = (tokenizer.stream(), String::new());
    let mut show = |piece: String| {
        // A character can take several tokens.
        if !piece.is_empty() {
            reporter.text(&piece);
            text.push_str(&piece);
        }
    };
    let mut on_token = |token: i64| {
        // The end has no text.
        if !sampling.ends.contains(&token) {
            show(stream.push(token)?);
        }
        Ok(())
    };
    let made = writer.write(read.tokens(), cache, device, sampling, &mut on_token)?;
    show(stream.finish()?);
    let tokens_per_s = made.len() as f64 / began.elapsed().as_secs_f64();
    reporter.end_text(json!({ "text": text, "tokens": made.len(), "tokens_per_s": tokens_per_s }));
    Ok(())
}

fn without_end(ids: &[i64], end: Option<i64>) -> &[i64] {
    match ids.split_last() {
        Some((last, before)) if Some(*last) == end && !before.is_empty() => before,
        _ => ids,
    }
}
