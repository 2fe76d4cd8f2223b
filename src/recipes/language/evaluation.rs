//! What a language model makes of records that it does not learn from.

use super::loss::{language_loss, LossOptions};
use super::prompted_text::PromptedText;
use crate::adapters::{Prompt, PromptConfig};
use crate::data::language_dataset::LanguageDataset;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::models::language::{LanguageModel, Outline};
use crate::recipes::training::observer::Observer;
use crate::recipes::training::watched::Watched;
use crate::sample::text_generation::{Prompts, TextWriter};
use crate::train::data_parallel::Ranks;
use crate::whole_file::write_whole;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use tch::{Device, Kind};

/// Records at a time.
pub(in crate::recipes) const BATCH: usize = 8;

/// What was measured after a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean loss of a label.
    pub loss: f64,
    /// Its exponential, of language models.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub perplexity: Option<f64>,
    /// Share of answers that are right: of classes, or of texts that are the same but for space around them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
    /// Mean over the classes of the harmonic mean of precision and recall (macro F1).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub f1: Option<f64>,
}

impl Evaluation {
    /// Its fields by name, for programs.
    pub fn fields(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// What was measured, by name.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let values = [("perplexity", self.perplexity), ("accuracy", self.accuracy), ("f1", self.f1)];
        let known = values.into_iter().filter_map(|(name, value)| value.map(|value| (name, value)));
        std::iter::once(("loss", self.loss)).chain(known)
    }

    /// In one line.
    pub fn in_words(&self) -> String {
        let number =
            |name: &str, value: Option<f64>| value.map(|value| format!(", {name} {value:.3}")).unwrap_or_default();
        // The share of right answers is of classes, or of texts that are the same.
        let right = if self.f1.is_some() { "accuracy" } else { "exact match" };
        let (perplexity, right) = (number("perplexity", self.perplexity), number(right, self.accuracy));
        format!("loss {:.4}{perplexity}{right}{}", self.loss, number("macro F1", self.f1))
    }
}

/// Refuses texts, the `longest` of so many tokens, that are longer than the model's table of positions: they have no place to stand.
/// Warns of those that are longer than any that the model has learned from.
pub fn check_positions(
    model: &Outline,
    prompt: Option<&PromptConfig>,
    longest: usize,
    observer: &mut dyn Observer,
) -> Result<()> {
    let virtual_tokens = prompt.map_or(0, |prompt| prompt.num_virtual_tokens);
    let behind = match virtual_tokens {
        0 => String::new(),
        count => format!(" behind {count} virtual ones"),
    };
    if let Some(most) = model.made_for.filter(|most| longest as i64 + virtual_tokens > *most) {
        observer.warning(format!(
            "a text has {longest} tokens{behind}, and the model was made for {most}: it knows little of what lies behind; \
             ⟨max_seq_length⟩ cuts texts"
        ));
    }
    let Some(most) = model.shape.longest else { return Ok(()) };
    let room = most - virtual_tokens;
    if longest as i64 <= room {
        return Ok(());
    }
    let cure = match room {
        2.. => format!("give ⟨max_seq_length⟩ {room} or less"),
        _ => format!("give ⟨num_virtual_tokens⟩ less than {most}"),
    };
    let what = format!("a text has {longest} tokens{behind}, and the model's positions end at {most}");
    Err(Error::invalid(format!("{what}; {cure}")))
}

/// Where the model is, and what it needs beside.
pub struct Evaluator<'a> {
    /// The model.
    pub model: &'a LanguageModel,
    /// What stands before each text.
    pub prompt: Option<&'a Prompt>,
    /// Its tokenizer.
    pub tokenizer: &'a LanguageTokenizer,
    /// Where it is.
    pub device: Device,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Tokens that end one.
    pub ends: &'a [i64],
    /// Processes that do their shares of it.
    pub ranks: &'a Ranks,
}

/// What the model makes of one batch of records; numbers by their bits, which text would round.
#[derive(Default, Serialize, Deserialize)]
struct OfBatch {
    number: usize,
    loss: u64,
    labels: i64,
    classes: Vec<usize>,
    probabilities: Vec<Vec<u64>>,
}

/// What a pass over records gives.
struct Pass {
    /// Mean loss of a label.
    loss: f64,
    /// Of a classifier, the class of each record and the probabilities.
    answers: Answers,
}

/// What the model answers to records.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// A text, or the name of a class, for each.
    pub texts: Vec<String>,
    /// Of a classifier, the probability of each class for each, in the order of the classes.
    pub probabilities: Vec<Vec<f64>>,
}

impl Evaluator<'_> {
    /// All that can be said of `data` after `step`, and the answers to it, where there is something to answer.
    pub fn evaluate(
        &self,
        data: &LanguageDataset,
        step: u64,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<(Evaluation, Answers)> {
        let Pass { loss, answers } = self.pass(data, interrupt, observer)?;
        let classifies = self.classifies();
        let mut evaluation =
            Evaluation { step, loss, perplexity: (!classifies).then(|| loss.exp()), accuracy: None, f1: None };
        if !data.has_answers() {
            return Ok((evaluation, Answers::default()));
        }
        let answers = if classifies { answers } else { self.texts(data, interrupt, observer)? };
        let pairs: Vec<(&str, &str)> =
            (0..data.len()).map(|place| (data.answer(place).trim(), answers.texts[place].trim())).collect();
        let right = pairs.iter().filter(|(expected, answer)| expected == answer).count();
        evaluation.accuracy = Some(right as f64 / pairs.len() as f64);
        evaluation.f1 = classifies.then(|| macro_f1(&pairs));
        Ok((evaluation, answers))
    }

    /// The answer to each example of `data`: a class's name, or the text that the model writes.
    pub fn answers(
        &self,
        data: &LanguageDataset,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Answers> {
        match self.classifies() {
            true => self.pass(data, interrupt, observer).map(|pass| pass.answers),
            false => self.texts(data, interrupt, observer),
        }
    }

    /// Writes the texts of `data`, what is right where that is known, what was answered, and a classifier's probabilities.
    pub fn write_predictions(data: &LanguageDataset, answers: &Answers, path: &Path) -> Result<()> {
        let failed = |error: csv::Error| Error::file(path, error.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        let labelled = data.is_labelled();
        let columns: &[&str] = if labelled { &["text", "label", "prediction"] } else { &["text", "prediction"] };
        let classes = if answers.probabilities.is_empty() { &[][..] } else { data.classes() };
        let of_classes = classes.iter().map(|class| format!("probability_{class}"));
        writer.write_record(columns.iter().map(|column| (*column).to_owned()).chain(of_classes)).map_err(failed)?;
        for (place, answer) in answers.texts.iter().enumerate() {
            let label = labelled.then(|| data.answer(place));
            let fields = [Some(data.text(place)), label, Some(answer)].into_iter().flatten().map(str::to_owned);
            let shares = answers.probabilities.get(place).into_iter().flatten().map(|share| format!("{share:.6}"));
            writer.write_record(fields.chain(shares)).map_err(failed)?;
        }
        let bytes = writer.into_inner().map_err(|error| Error::file(path, error.to_string()))?;
        write_whole(path, &bytes)
    }

    fn classifies(&self) -> bool {
        matches!(self.model, LanguageModel::Classifier(_))
    }

    /// Reads all of `data` once.
    fn pass(&self, data: &LanguageDataset, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<Pass> {
        let _no_grad = tch::no_grad_guard();
        let mut work = Watched::begin("evaluating", data.len(), "records", interrupt, observer);
        let (prompt, pad, device) = (self.prompt, self.tokenizer.pad()?, self.device);
        let options = LossOptions { prompt, pad, device, checkpointing: false };
        let places: Vec<usize> = (0..data.len()).collect();
        let own = places.chunks(BATCH).enumerate().filter(|(number, _)| self.ranks.has_share(*number));
        let of_batch = |(number, places): (usize, &[usize])| {
            work.check()?;
            let loss = language_loss(self.model, &data.batch(places)?, options)?;
            let (mean, labels) = (loss.mean.double_value(&[]), loss.labels);
            let mut batch = OfBatch { number, loss: (mean * labels as f64).to_bits(), labels, ..OfBatch::default() };
            if let Some(logits) = loss.classes {
                let found = Vec::<i64>::try_from(logits.argmax(-1, false))?;
                batch.classes = found.iter().map(|&class| class as usize).collect();
                let shares = Vec::<Vec<f64>>::try_from(logits.softmax(-1, Kind::Double).to_device(Device::Cpu))?;
                batch.probabilities =
                    shares.iter().map(|row| row.iter().map(|share| share.to_bits()).collect()).collect();
            }
            work.add(places.len());
            Ok(batch)
        };
        let mut batches = self.ranks.collect(own.map(of_batch).collect::<Result<Vec<_>>>())?;
        batches.sort_by_key(|batch| batch.number);
        let (mut sum, mut count, mut answers) = (0.0, 0, Answers::default());
        for batch in &batches {
            sum += f64::from_bits(batch.loss);
            count += batch.labels;
            let name = |&class: &usize| data.classes().get(class).cloned().unwrap_or_default();
            answers.texts.extend(batch.classes.iter().map(name));
            let shares = |row: &Vec<u64>| row.iter().map(|&bits| f64::from_bits(bits)).collect();
            answers.probabilities.extend(batch.probabilities.iter().map(shares));
        }
        Ok(Pass { loss: sum / count.max(1) as f64, answers })
    }

    /// The text that the model writes for each example of `data`, several at a time: what reads weights reads them for all of them.
    fn texts(&self, data: &LanguageDataset, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<Answers> {
        let mut work = Watched::begin("answering", data.len(), "records", interrupt, observer);
        let mut answers = vec![String::new(); data.len()];
        // Texts of like lengths together, so that few places are filled up; the longest first, where memory ends soonest.
        let mut places: Vec<usize> = (0..data.len()).collect();
        places.sort_by_key(|&place| std::cmp::Reverse(data.prompt(place).len()));
        // Between virtual tokens and a text nothing is to be filled up: a sliding window would count it.
        let alike = |a: &usize, b: &usize| self.prompt.is_none() || data.prompt(*a).len() == data.prompt(*b).len();
        let batches = places.chunk_by(alike).flat_map(|places| places.chunks(BATCH));
        let share = || -> Result<Vec<(usize, String)>> {
            let mut own = Vec::new();
            for (_, places) in batches.enumerate().filter(|(number, _)| self.ranks.has_share(*number)) {
                for (&place, ids) in places.iter().zip(self.written(data, places, &work)?) {
                    // The end has no text.
                    let end = ids.split_last().filter(|(last, _)| self.ends.contains(last));
                    let text = end.map_or(&ids[..], |(_, text)| text);
                    own.push((place, self.tokenizer.decode(text)?));
                }
                work.add(places.len());
            }
            Ok(own)
        };
        for (place, text) in self.ranks.collect(share())? {
            answers[place] = text;
        }
        Ok(Answers { texts: answers, probabilities: Vec::new() })
    }

    /// The tokens that follow, or answer, the prompts of `places`.
    fn written(&self, data: &LanguageDataset, places: &[usize], work: &Watched) -> Result<Vec<Vec<i64>>> {
        let _no_grad = tch::no_grad_guard();
        let most: Vec<usize> = places.iter().map(|&place| self.most_new_tokens(data.prompt(place).len())).collect();
        // A decoder goes on behind all of them; an encoder counts the tokens between virtual ones and a text's.
        let (ids, mask) = data.prompts(places, matches!(self.model, LanguageModel::Causal(_)))?;
        let is_filled_up = mask.min().int64_value(&[]) == 0;
        let mask = is_filled_up.then(|| mask.to_device(self.device));
        let mut text = PromptedText::new(self.model, self.prompt, ids.to_device(self.device), mask)?;
        let cache = text.cache.take().unwrap_or_default();
        let prompts = Prompts { tokens: text.tokens(), attention_mask: text.attention_mask.as_ref(), cache };
        TextWriter::of(self.model)?.write_all(prompts, self.device, &most, self.ends, &mut || work.check())
    }

    /// The tokens of an answer to a prompt of `length` at most: a decoder's end where its positions do.
    fn most_new_tokens(&self, length: usize) -> usize {
        if matches!(self.model, LanguageModel::EncoderDecoder(_)) {
            return self.max_new_tokens;
        }
        let before = length as i64 + self.prompt.map_or(0, Prompt::length);
        let room = self.model.shape().longest.map_or(i64::MAX, |most| (most - before).max(0));
        self.max_new_tokens.min(room as usize)
    }
}

/// Of pairs of what is right and what was answered; classes that occur in neither do not count.
fn macro_f1(pairs: &[(&str, &str)]) -> f64 {
    let mut classes: Vec<&str> = pairs.iter().flat_map(|(expected, answer)| [*expected, *answer]).collect();
    classes.sort_unstable();
    classes.dedup();
    let f1 = |class: &&str| {
        let count = |of: &dyn Fn(&(&str, &str)) -> bool| pairs.iter().filter(|pair| of(pair)).count() as f64;
        let both = count(&|(expected, answer)| expected == class && answer == class);
        2.0 * both / (count(&|(expected, _)| expected == class) + count(&|(_, answer)| answer == class))
    };
    classes.iter().map(f1).sum::<f64>() / classes.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_is_the_mean_over_classes() {
        // Class a: precision 1/2, recall 1; class b: precision 1, recall 2/3.
        let pairs = [("a", "a"), ("b", "a"), ("b", "b"), ("b", "b")];
        assert!((macro_f1(&pairs) - (2.0 / 3.0 + 0.8) / 2.0).abs() < 1e-12);
        assert_eq!(macro_f1(&[("a", "a"), ("b", "b")]), 1.0);
    }
}
