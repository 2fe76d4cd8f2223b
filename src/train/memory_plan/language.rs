//! The memory and the work of fine-tuning a language model, predicted from its outline.

use super::fit::{Changed, Choice, Planned};
use super::language_networks::{loss, Batch};
use super::layers::Network;
use super::tape::Tape;
use super::{adapter_parts, gaps, runtime, width, MemoryPlan, Phase, Work};
use crate::adapters::LoraConfig;
use crate::error::Result;
use crate::models::language::{HeadOutline, Outline};
use crate::weights::{Storage, DEFAULT_THRESHOLD};
use std::rc::Rc;
use tch::{Device, Kind};

/// Bytes that quantising takes for each number of a weight, beside the file's own: it in float16 and float32, and its codes
/// before they are rounded and after (`weights::int8`).
const QUANTISING: u64 = 13;

/// What the records of a run are.
#[derive(Debug, Clone, Copy)]
pub struct Texts {
    /// Tokens of the longest text that is read.
    pub length: i64,
    /// Tokens that are learnt of it, or written for it, at most.
    pub learnt: i64,
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
    /// Activations are computed again in backward.
    pub gradient_checkpointing: bool,
    /// AdamW with states of one byte each.
    pub optimizer_8bit: bool,
    /// Texts a micro-step.
    pub batch: i64,
    /// Their lengths.
    pub texts: Texts,
    /// Texts at a time, and their lengths, where the run is evaluated.
    pub evaluated: Option<(i64, Texts)>,
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
        let stays_mapped = self.device == Device::Cpu && self.kind == self.stored && self.storage != Storage::Streamed;
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
    fn of(input: &LanguagePlanInput) -> Result<Self> {
        let network = Network::new(input.lora.as_ref(), input.storage)?;
        let tape = Tape::new(width(input.kind), true);
        let loss = loss(&tape, &network.root(), input.outline, input.batch(input.batch, input.texts, true));
        let (kept, kept_small) = (tape.meter().live(), tape.meter().small());
        tape.backward(loss);
        let (on_top, work) = (tape.meter().peak().saturating_sub(kept), tape.meter().work());
        Ok(Self { network, kept, kept_small, on_top, work })
    }
}

impl Planned for LanguagePlanInput<'_> {
    fn plan(&self) -> Result<MemoryPlan> {
        let step = Step::of(self)?;
        let kept = step.network.kept_bytes(width(self.kind), self.storage, self.device);
        let weights = ("weights".to_owned(), kept - self.unread_embeddings());
        let runtime = runtime(self.device, self.kind, false);
        let mut phases = Vec::new();
        if matches!(self.storage, Storage::Int8 { .. }) {
            let largest = step.network.largest_linear() * (QUANTISING + width(self.stored));
            let parts = vec![weights.clone(), ("largest weight in the making".to_owned(), largest)];
            phases.push(Phase { name: "loading", parts, work: Work::default() });
        }
        let trained = step.network.trained_elements() + self.prompt.map_or(0, |prompt| prompt.trained);
        let mut resident = vec![weights];
        resident.extend(adapter_parts(trained, self.optimizer_8bit));
        if let Some((texts, lengths)) = self.evaluated {
            let (peak, _) = self.inference(texts, lengths)?;
            let parts = [("activations".to_owned(), peak), runtime.clone()];
            phases.push(Phase {
                name: "evaluation",
                parts: resident.iter().cloned().chain(parts).collect(),
                work: Work::default(),
            });
        }
        resident.push(("activations kept for backward".to_owned(), step.kept));
        resident.push(("largest step of forward or backward".to_owned(), step.on_top));
        resident.extend(gaps(self.device, step.kept_small));
        resident.push(runtime);
        let step_work = step.work.times(self.accumulation as f64);
        phases.push(Phase { name: "training", parts: resident, work: step_work.times(self.steps as f64) });
        Ok(MemoryPlan::of(phases, trained, step_work))
    }

    fn choices(&self) -> Vec<Choice<Self>> {
        let first: Choice<Self> = Self::half_precision;
        vec![first, Self::checkpointing, Self::int8, Self::adam_8bit, Self::batch_1, Self::offload]
    }

    fn smaller(&self) -> Option<Changed<Self>> {
        let texts = Texts { length: self.texts.length / 2, learnt: (self.texts.learnt / 2).max(1) };
        let changed = Self { texts, ..self.clone() };
        (texts.length >= 16).then(|| Changed {
            input: changed,
            what: format!("--max-seq-length {}", texts.length),
            costs: "longer texts are cut",
        })
    }
}

impl LanguagePlanInput<'_> {
    fn half_precision(&self) -> Option<Changed<Self>> {
        (self.kind == Kind::Float).then(|| Changed {
            input: Self { kind: Kind::BFloat16, ..self.clone() },
            what: "--mixed-precision bf16".into(),
            costs: super::fit::HALF_PRECISION_COSTS,
        })
    }

    fn checkpointing(&self) -> Option<Changed<Self>> {
        (!self.gradient_checkpointing).then(|| Changed {
            input: Self { gradient_checkpointing: true, ..self.clone() },
            what: "--gradient-checkpointing".into(),
            costs: super::fit::CHECKPOINTING_COSTS,
        })
    }

    fn int8(&self) -> Option<Changed<Self>> {
        (self.storage == Storage::Dense).then(|| Changed {
            input: Self { storage: Storage::Int8 { threshold: DEFAULT_THRESHOLD }, ..self.clone() },
            what: super::fit::INT8.into(),
            costs: "frozen weights are rounded to 8 bits",
        })
    }

    fn adam_8bit(&self) -> Option<Changed<Self>> {
        (!self.optimizer_8bit).then(|| Changed {
            input: Self { optimizer_8bit: true, ..self.clone() },
            what: "--use-8bit-adam".into(),
            costs: super::fit::ADAM_8BIT_COSTS,
        })
    }

    fn batch_1(&self) -> Option<Changed<Self>> {
        let accumulation = self.accumulation * self.batch.unsigned_abs();
        (self.batch > 1).then(|| Changed {
            input: Self { batch: 1, accumulation, ..self.clone() },
            what: format!("--train-batch-size 1 --gradient-accumulation-steps {accumulation}"),
            costs: super::fit::BATCH_1_COSTS,
        })
    }

    fn offload(&self) -> Option<Changed<Self>> {
        super::fit::offload_from(self.storage).map(|what| Changed {
            input: Self { storage: Storage::Streamed, ..self.clone() },
            what,
            costs: super::fit::OFFLOAD_COSTS,
        })
    }
}
