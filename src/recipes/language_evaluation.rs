//! What a language model makes of records that it does not learn from.

use super::language_loss::{language_loss, LossOptions};
use super::prompted_text::PromptedText;
use crate::adapters::Prompt;
use crate::data::language_dataset::LanguageDataset;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::Result;
use crate::models::language::{ClassifierInputs, LanguageModel};
use crate::sample::text_generation::{answer_text, continue_text, TextSampling};
use serde::{Deserialize, Serialize};
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
    /// Mean loss of a label over all of `data`.
    pub fn loss(&self, data: &LanguageDataset) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let (prompt, pad, device) = (self.prompt, self.tokenizer.pad()?, self.device);
        let options = LossOptions { prompt, pad, device, checkpointing: false };
        let (mut sum, mut count) = (0.0, 0);
        for places in (0..data.len()).collect::<Vec<_>>().chunks(BATCH) {
            let loss = language_loss(self.model, &data.batch(places)?, options)?;
            sum += loss.mean.double_value(&[]) * loss.labels as f64;
            count += loss.labels;
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The answer to each example of `data`: a class's name, or the text that the model writes.
    pub fn answers(&self, data: &LanguageDataset) -> Result<Vec<String>> {
        let _no_grad = tch::no_grad_guard();
        (0..data.len()).map(|place| self.answer(data, place)).collect()
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
            LanguageModel::Causal(model) => {
                let cache = cache.unwrap_or_default();
                continue_text(model.as_ref(), tokens, cache, self.device, &sampling, &mut |_| Ok(()))?
            }
            LanguageModel::EncoderDecoder(model) => {
                answer_text(model.as_ref(), tokens, cache.unwrap_or_default(), &sampling, &mut |_| Ok(()))?
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

    /// All that can be said of `data` after `step`.
    pub fn evaluate(&self, data: &LanguageDataset, step: u64) -> Result<Evaluation> {
        let loss = self.loss(data)?;
        let classes = matches!(self.model, LanguageModel::Classifier(_));
        let mut evaluation =
            Evaluation { step, loss, perplexity: (!classes).then(|| loss.exp()), accuracy: None, f1: None };
        if !data.has_answers() {
            return Ok(evaluation);
        }
        let answers = self.answers(data)?;
        let pairs: Vec<(&str, &str)> =
            (0..data.len()).map(|place| (data.answer(place).trim(), answers[place].trim())).collect();
        let right = pairs.iter().filter(|(expected, answer)| expected == answer).count();
        evaluation.accuracy = Some(right as f64 / pairs.len() as f64);
        evaluation.f1 = classes.then(|| macro_f1(&pairs));
        Ok(evaluation)
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
