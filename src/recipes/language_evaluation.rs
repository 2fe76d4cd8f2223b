//! What a language model makes of records that it does not learn from.

use super::language_loss::{language_loss, LossOptions};
use super::observer::Observer;
use super::prompted_text::PromptedText;
use crate::adapters::{Prompt, PromptConfig};
use crate::data::language_dataset::LanguageDataset;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::models::language::{ClassifierInputs, LanguageModel, Outline};
use crate::sample::text_generation::{TextSampling, TextWriter};
use crate::whole_file::write_whole;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Tensor};

/// Records at a time.
pub(super) const BATCH: usize = 8;

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
    /// In one line.
    pub fn in_words(&self) -> String {
        let number =
            |name: &str, value: Option<f64>| value.map(|value| format!(", {name} {value:.3}")).unwrap_or_default();
        let (perplexity, right) = (number("perplexity", self.perplexity), number("right", self.accuracy));
        format!("loss {:.4}{perplexity}{right}{}", self.loss, number("F1", self.f1))
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
             --max-seq-length cuts texts"
        ));
    }
    let Some(most) = model.longest else { return Ok(()) };
    let room = most - virtual_tokens;
    if longest as i64 <= room {
        return Ok(());
    }
    let cure = match room {
        2.. => format!("give --max-seq-length {room} or less"),
        _ => format!("give --num-virtual-tokens less than {most}"),
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
}

impl Evaluator<'_> {
    /// What `progress` is told in the end: each record is read for its loss, and again for its answer.
    pub fn units(&self, data: &LanguageDataset) -> u64 {
        (1 + u64::from(data.has_answers())) * data.len() as u64
    }

    /// Mean loss of a label over all of `data`. `progress` is told of records as they are done, here and below.
    pub fn loss(&self, data: &LanguageDataset, progress: &mut dyn FnMut(u64)) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let (prompt, pad, device) = (self.prompt, self.tokenizer.pad()?, self.device);
        let options = LossOptions { prompt, pad, device, checkpointing: false };
        let (mut sum, mut count) = (0.0, 0);
        for places in (0..data.len()).collect::<Vec<_>>().chunks(BATCH) {
            let loss = language_loss(self.model, &data.batch(places)?, options)?;
            sum += loss.mean.double_value(&[]) * loss.labels as f64;
            count += loss.labels;
            progress(places.len() as u64);
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The answer to each example of `data`: a class's name, or the text that the model writes.
    pub fn answers(&self, data: &LanguageDataset, progress: &mut dyn FnMut(u64)) -> Result<Vec<String>> {
        let _no_grad = tch::no_grad_guard();
        let mut answer = |place: usize| self.answer(data, place).inspect(|_| progress(1));
        (0..data.len()).map(&mut answer).collect()
    }

    /// Writes the texts of `data`, what is right and what was answered.
    pub fn write_predictions(&self, data: &LanguageDataset, answers: &[String], path: &Path) -> Result<()> {
        let failed = |error: csv::Error| Error::file(path, error.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["text", "label", "prediction"]).map_err(failed)?;
        for (place, answer) in answers.iter().enumerate() {
            let prompt = self.tokenizer.decode(data.prompt(place))?;
            writer.write_record([prompt.as_str(), data.answer(place), answer]).map_err(failed)?;
        }
        let bytes = writer.into_inner().map_err(|error| Error::file(path, error.to_string()))?;
        write_whole(path, &bytes)
    }

    fn answer(&self, data: &LanguageDataset, place: usize) -> Result<String> {
        let ids = Tensor::from_slice(data.prompt(place)).unsqueeze(0).to_device(self.device);
        let most = self.most_new_tokens(data.prompt(place).len());
        let mut text = PromptedText::new(self.model, self.prompt, ids, None)?;
        let mut cache = text.cache.take();
        let tokens = text.tokens();
        let sampling = TextSampling::greedy(most, self.tokenizer.eos().into_iter().collect());
        let ids = match self.model {
            LanguageModel::Classifier(model) => {
                let inputs = ClassifierInputs { cache: cache.as_mut(), ..ClassifierInputs::new(tokens) };
                let class = model.classify(inputs).argmax(-1, false).int64_value(&[0]);
                return Ok(data.classes().get(class as usize).cloned().unwrap_or_default());
            }
            LanguageModel::Causal(_) if most == 0 => Vec::new(),
            model => {
                let cache = cache.unwrap_or_default();
                TextWriter::of(model)?.write(tokens, cache, self.device, &sampling, &mut |_| Ok(()))?
            }
        };
        self.tokenizer.decode(&ids)
    }

    /// The tokens of an answer to a prompt of `length` at most: a decoder's end where its positions do.
    fn most_new_tokens(&self, length: usize) -> usize {
        let before = length as i64 + self.prompt.map_or(0, Prompt::length);
        let room = self.model.shape().longest.map_or(i64::MAX, |most| (most - before).max(0));
        self.max_new_tokens.min(room as usize)
    }

    /// All that can be said of `data` after `step`, and the answers to it, where there is something to answer.
    pub fn evaluate(
        &self,
        data: &LanguageDataset,
        step: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Evaluation, Vec<String>)> {
        let loss = self.loss(data, progress)?;
        let classes = matches!(self.model, LanguageModel::Classifier(_));
        let mut evaluation =
            Evaluation { step, loss, perplexity: (!classes).then(|| loss.exp()), accuracy: None, f1: None };
        if !data.has_answers() {
            return Ok((evaluation, Vec::new()));
        }
        let answers = self.answers(data, progress)?;
        let pairs: Vec<(&str, &str)> =
            (0..data.len()).map(|place| (data.answer(place).trim(), answers[place].trim())).collect();
        let right = pairs.iter().filter(|(expected, answer)| expected == answer).count();
        evaluation.accuracy = Some(right as f64 / pairs.len() as f64);
        evaluation.f1 = classes.then(|| macro_f1(&pairs));
        Ok((evaluation, answers))
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
