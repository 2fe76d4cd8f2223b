//! The memory and the work of fine-tuning a language model, predicted from its outline.

use super::fit::{Changed, Choice, Planned};
use super::language_networks::{loss, Batch};
use super::layers::Network;
use super::tape::Tape;
use super::{adapter_parts, gaps, runtime_text, width, MemoryPlan, Phase, Work};
use crate::adapters::LoraConfig;
use crate::error::Result;
use crate::models::language::{HeadOutline, Outline};
use crate::train::measure::Measure;
use crate::weights::{Quantize, Storage};
use std::rc::Rc;
use tch::{Device, Kind};

/// The lengths of a batch's texts.
#[derive(Debug, Clone, Copy)]
pub struct Texts {
    /// Tokens of the longest that is read.
    pub length: i64,
    /// Tokens that are learnt of it, or written for it, at most.
    pub learnt: i64,
}

/// What the records of a run are.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    /// Of the longest batch: what memory must hold.
    pub most: Texts,
    /// Of a usual one: what takes the time.
    pub usual: Texts,
}

/// How a run is evaluated.
#[derive(Debug, Clone, Copy)]
pub struct Evaluations {
    /// Records at a time.
    pub batch: i64,
    /// Their lengths.
    pub lengths: Lengths,
    /// Records.
    pub records: u64,
    /// How often.
    pub times: u64,
    /// Tokens that are written for a record at most; none: no answers are compared.
    pub written: Option<i64>,
}

/// A trained prompt.
#[derive(Debug, Clone, Copy)]
pub struct PlannedPrompt {
    /// Virtual tokens before each text.
    pub tokens: i64,
    /// Numbers that train.
    pub trained: u64,
}

/// All that a run's memory and time depend on.
#[derive(Debug, Clone)]
pub struct LanguagePlanInput<'a> {
    /// The model.
    pub outline: &'a Outline,
    /// The dtype of its files.
    pub stored: Kind,
    /// The dtype of the computation.
    pub kind: Kind,
    /// How frozen weights are kept.
    pub storage: Storage,
    /// The adapter on projections, where there is one.
    pub lora: Option<LoraConfig>,
    /// The prompt before each text, where there is one.
    pub prompt: Option<PlannedPrompt>,
    /// The 16-bit dtype of the device, which `--mixed-precision` can turn on.
    pub half: Kind,
    /// Activations are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
    /// AdamW with states of one byte each.
    pub optimizer_8bit: bool,
    /// Texts a micro-step.
    pub batch: i64,
    /// Their lengths.
    pub texts: Lengths,
    /// How the run is evaluated, where it is.
    pub evaluations: Option<Evaluations>,
    /// Batches that one optimizer step adds up.
    pub accumulation: u64,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Where it all runs.
    pub device: Device,
}

impl LanguagePlanInput<'_> {
    fn batch(&self, texts: i64, lengths: Texts, training: bool) -> Batch {
        Batch {
            texts,
            length: lengths.length + self.prompt.map_or(0, |prompt| prompt.tokens),
            learnt: lengths.learnt,
            training,
            learns_from_embeddings: self.prompt.is_some(),
            drops_out_scores: self.device == Device::Cpu,
            checkpointing: training && self.gradient_checkpointing,
        }
    }

    /// Bytes of the tokens' table that never come to memory where it is not streamed: it is mapped from the file, and texts read few
    /// of its rows.
    fn unread_embeddings(&self) -> u64 {
        let makes_logits = matches!(self.outline.head, HeadOutline::Tokens { tied: true, .. });
        let stays_mapped = self.device == Device::Cpu && self.kind == self.stored && !self.storage.streamed;
        let (_, rows, columns) = &self.outline.tables[0];
        match stays_mapped && !makes_logits {
            true => (rows * columns) as u64 * width(self.kind),
            false => 0,
        }
    }

    /// What a pass without gradients needs beside weights.
    fn inference(&self, texts: i64, lengths: Texts) -> Result<(u64, Work)> {
        let (network, tape) = (Network::new(None, self.storage)?, Tape::new(width(self.kind), false));
        drop(loss(&tape, &network.root(), self.outline, self.batch(texts, lengths, false)));
        Ok((tape.meter().peak(), tape.meter().work()))
    }

    /// Bytes of the keys and values that `batch` texts of these lengths leave while answers to them are written: their buffers grow
    /// twofold (`nn::KeyValueCache`).
    fn keys_and_values(&self, batch: i64, lengths: Texts, written: i64) -> u64 {
        let shape = self.outline.shape();
        let before = lengths.length + self.prompt.map_or(0, |prompt| prompt.tokens);
        let tokens = match self.outline.encoder_blocks() {
            Some(_) => before + 2 * written,
            None => (2 * before).max(before + written),
        };
        let numbers = batch * tokens * 2 * shape.blocks * shape.key_value_heads * shape.head_width;
        numbers as u64 * width(self.kind)
    }

    /// The work of all evaluations: the loss, and the answers.
    fn evaluating(&self, how: &Evaluations) -> Result<Work> {
        let batches = how.records.div_ceil(how.batch as u64) as f64;
        let (_, read) = self.inference(how.batch, how.lengths.usual)?;
        let Some(most) = how.written else {
            return Ok(read.times(batches * how.times as f64));
        };
        let (_, one) = self.inference(how.batch, Texts { length: 1, learnt: 1 })?;
        // An answer's tokens go through the decoder alone.
        let token = if self.outline.encoder_blocks().is_some() { one.times(0.5) } else { one };
        // What has learned nothing yet writes as much as it may; later answers are as long as those that are right.
        let learned = how.lengths.usual.learnt.min(most) as u64;
        let tokens = (most as u64 + how.times.saturating_sub(1) * learned) as f64;
        let (_, prompts) = self.inference(how.batch, Texts { learnt: 1, ..how.lengths.usual })?;
        let passes = read.plus(prompts).times(how.times as f64);
        Ok(passes.plus(token.times(tokens)).times(batches))
    }
}

/// A micro-step of training.
struct Step {
    network: Rc<Network>,
    kept: u64,
    kept_small: u64,
    on_top: u64,
    work: Work,
}

impl Step {
    fn of(input: &LanguagePlanInput, texts: Texts) -> Result<Self> {
        let network = Network::new(input.lora.as_ref(), input.storage)?;
        let tape = Tape::new(width(input.kind), true);
        let loss = loss(&tape, &network.root(), input.outline, input.batch(input.batch, texts, true));
        let (kept, kept_small) = (tape.meter().live(), tape.meter().small());
        tape.backward(loss);
        let (on_top, work) = (tape.meter().peak().saturating_sub(kept), tape.meter().work());
        Ok(Self { network, kept, kept_small, on_top, work })
    }
}

impl Planned for LanguagePlanInput<'_> {
    fn plan(&self) -> Result<MemoryPlan> {
        let step = Step::of(self, self.texts.most)?;
        let usual = Step::of(self, self.texts.usual)?.work;
        let kept = step.network.kept_bytes(width(self.kind), self.storage, self.device);
        let weights = ("weights".to_owned(), kept - self.unread_embeddings());
        let runtime = runtime_text(self.device, self.kind);
        let mut phases = Vec::new();
        let Storage { quantize, streamed, .. } = self.storage;
        if quantize != Quantize::None && !streamed {
            let largest = step.network.largest_quantised() * (quantize.bytes_in_the_making() + width(self.stored));
            let parts = vec![weights.clone(), ("largest weight in the making".to_owned(), largest)];
            phases.push(Phase { name: "loading", parts, work: Work::default() });
        }
        let trained = step.network.trained_elements() + self.prompt.map_or(0, |prompt| prompt.trained);
        let mut resident = vec![weights];
        resident.extend(adapter_parts(trained, self.optimizer_8bit));
        if let Some(how) = &self.evaluations {
            let (peak, _) = self.inference(how.batch, how.lengths.most)?;
            let mut parts = resident.clone();
            parts.push(("activations".to_owned(), peak));
            if let Some(written) = how.written {
                let bytes = self.keys_and_values(how.batch, how.lengths.most, written);
                parts.push(("keys and values of answers".to_owned(), bytes));
            }
            parts.push(runtime.clone());
            phases.push(Phase { name: "evaluation", parts, work: self.evaluating(how)? });
        }
        resident.push(("activations kept for backward".to_owned(), step.kept));
        resident.push(("largest step of forward or backward".to_owned(), step.on_top));
        resident.extend(gaps(self.device, step.kept_small));
        resident.push(runtime);
        let step_work = usual.times(self.accumulation as f64);
        phases.push(Phase { name: "training", parts: resident, work: step_work.clone().times(self.steps as f64) });
        Ok(MemoryPlan::of(phases, trained, step_work))
    }

    fn choices(&self) -> Vec<Choice<Self>> {
        let first: Choice<Self> = Self::half_precision;
        vec![first, Self::checkpointing, Self::quantize, Self::adam_8bit, Self::smaller_batch, Self::offload]
    }

    fn smaller(&self) -> Option<Changed<Self>> {
        let most = Texts { length: self.texts.most.length / 2, learnt: (self.texts.most.learnt / 2).max(1) };
        let Texts { length, learnt } = self.texts.usual;
        let usual = Texts { length: length.min(most.length), learnt: learnt.min(most.learnt) };
        let changed = Self { texts: Lengths { most, usual }, ..self.clone() };
        (most.length >= 16).then(|| Changed {
            input: changed,
            what: format!("⟨max_seq_length⟩ {}", most.length),
            costs: "longer texts are cut",
            measure: None,
        })
    }
}

impl LanguagePlanInput<'_> {
    fn half_precision(&self) -> Option<Changed<Self>> {
        (self.kind == Kind::Float).then(|| Changed {
            input: Self { kind: self.half, ..self.clone() },
            what: super::fit::half_precision_flag(self.half),
            costs: super::fit::HALF_PRECISION_COSTS,
            measure: None,
        })
    }

    fn checkpointing(&self) -> Option<Changed<Self>> {
        (!self.gradient_checkpointing).then(|| Changed {
            input: Self { gradient_checkpointing: true, ..self.clone() },
            what: "⟨gradient_checkpointing⟩".into(),
            costs: super::fit::CHECKPOINTING_COSTS,
            measure: Some(Measure::GradientCheckpointing),
        })
    }

    fn quantize(&self) -> Option<Changed<Self>> {
        let (storage, what) = super::fit::in_fewer_bits(self.storage, [Quantize::Int8, Quantize::Nf4])?;
        let costs = super::fit::QUANTIZE_COSTS;
        Some(Changed { input: Self { storage, ..self.clone() }, what, costs, measure: None })
    }

    fn adam_8bit(&self) -> Option<Changed<Self>> {
        (!self.optimizer_8bit).then(|| Changed {
            input: Self { optimizer_8bit: true, ..self.clone() },
            what: "⟨use_8bit_adam⟩".into(),
            costs: super::fit::ADAM_8BIT_COSTS,
            measure: None,
        })
    }

    fn smaller_batch(&self) -> Option<Changed<Self>> {
        let (batch, accumulation) = super::fit::smaller_batch(self.batch, self.accumulation)?;
        Some(super::fit::of_batch(Self { batch, accumulation, ..self.clone() }, batch, accumulation))
    }

    fn offload(&self) -> Option<Changed<Self>> {
        let storage = Storage { streamed: true, ..self.storage };
        (!self.storage.streamed).then(|| super::fit::of_streamed(Self { storage, ..self.clone() }))
    }
}
