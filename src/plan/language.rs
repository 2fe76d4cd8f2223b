//! The memory and the work of fine-tuning a language model, predicted from its configuration.

use super::fit::{Changed, Choice, Planned};
use super::networks::{
    adapted, largest_quantised, new_gradients, state_bytes, trained_numbers, Inference, Place, Step,
};
use super::{adapter_parts, gaps, runtime_text, width, MemoryPlan, Phase, Work};
use crate::adapters::LoraConfig;
use crate::error::Result;
use crate::libtorch::planned::PLANNED;
use crate::models::language::{
    ClassifierInputs, DecoderInputs, Encoded, HeadOptions, HeadOutline, LanguageModel, LanguageModelFiles, Outline,
    Tokens,
};
use crate::nn::Loader;
use crate::train::head_loss::mean_cross_entropy;
use crate::train::measure::Measure;
use crate::train::Parameters;
use crate::weights::{Quantize, Storage};
use tch::{Device, Kind, Tensor};

/// The lengths of a batch's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Clone)]
pub struct LanguagePlanInput<'a> {
    /// The model.
    pub files: &'a LanguageModelFiles,
    /// What of it is asked for beside.
    pub outline: &'a Outline,
    /// Number of classes of a classifier, where the data say it.
    pub labels: Option<i64>,
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
    fn place(&self) -> Place {
        let shares = matches!(self.outline.head, HeadOutline::Tokens { tied: true, .. });
        Place { device: self.device, kind: self.kind, stored: self.stored, shares, keeping: self.storage.into() }
    }

    fn build(&self, loader: &Loader) -> Result<LanguageModel> {
        self.files.build(loader, HeadOptions { labels: self.labels, seed: 0 })
    }

    /// Bytes of the tokens' table that never come to memory where it is not streamed: it is mapped from the file, and texts read few
    /// of its rows.
    fn unread_embeddings(&self) -> u64 {
        let makes_logits = matches!(self.outline.head, HeadOutline::Tokens { tied: true, .. });
        let stays_mapped = self.device == Device::Cpu && self.kind == self.stored && !self.storage.streamed;
        let (rows, columns) = (self.outline.shape.vocabulary, self.outline.embedding_width);
        match stays_mapped && !makes_logits {
            true => (rows * columns) as u64 * width(self.kind),
            false => 0,
        }
    }

    /// What a pass without gradients needs.
    fn inference(&self, texts: i64, lengths: Texts) -> Result<Inference> {
        let run = |model: &LanguageModel| self.loss(model, texts, lengths, false).map(drop);
        self.place().inference(|loader| self.build(loader), run)
    }

    /// The loss of a batch, behind the trained prompt where there is one.
    fn loss(&self, model: &LanguageModel, texts: i64, lengths: Texts, checkpointing: bool) -> Result<Tensor> {
        let ids = |length: i64| Tensor::empty([texts, length], (Kind::Int64, PLANNED));
        let numbers = |count: i64| Tensor::empty([count], (Kind::Int64, PLANNED));
        let text = ids(lengths.length + self.prompt.map_or(0, |prompt| prompt.tokens));
        let mask = text.ones_like();
        let embedded = self.prompt.map(|_| model.embed(&text).detach().set_requires_grad(true));
        let tokens = embedded.as_ref().map_or(Tokens::Ids(&text), Tokens::Embeddings);
        let written = ids(lengths.learnt);
        let hidden = match model {
            LanguageModel::Causal(model) => {
                model.forward(DecoderInputs { checkpointing, ..DecoderInputs::new(tokens) })
            }
            LanguageModel::EncoderDecoder(model) => {
                let read = model.encode(tokens, Some(&mask), checkpointing);
                let inputs = DecoderInputs { checkpointing, ..DecoderInputs::new(Tokens::Ids(&written)) };
                model.decode(inputs, Encoded { hidden: &read, attention_mask: Some(&mask) })
            }
            LanguageModel::Classifier(model) => {
                let inputs =
                    ClassifierInputs { attention_mask: Some(&mask), checkpointing, ..ClassifierInputs::new(tokens) };
                let logits = model.classify(inputs).to_kind(Kind::Float);
                return Ok(logits.cross_entropy_for_logits(&numbers(texts)));
            }
        };
        let learnt = numbers(texts * lengths.learnt);
        let rows = hidden.reshape([-1, hidden.size()[2]]).index_select(0, &learnt);
        drop(hidden);
        mean_cross_entropy(&rows, &learnt, |rows| match model {
            LanguageModel::Causal(model) => model.logits(rows),
            LanguageModel::EncoderDecoder(model) => model.logits(rows),
            LanguageModel::Classifier(_) => rows.shallow_clone(),
        })
    }

    /// Bytes of the keys and values that `batch` texts of these lengths leave while answers to them are written: their buffers grow
    /// twofold (`nn::KeyValueCache`).
    fn keys_and_values(&self, batch: i64, lengths: Texts, written: i64) -> u64 {
        let shape = self.outline.shape;
        let before = lengths.length + self.prompt.map_or(0, |prompt| prompt.tokens);
        let tokens = match self.outline.encoder_blocks {
            Some(_) => before + 2 * written,
            None => (2 * before).max(before + written),
        };
        let numbers = batch * tokens * 2 * shape.blocks * shape.key_value_heads * shape.head_width;
        numbers as u64 * width(self.kind)
    }

    /// The work of all evaluations: the loss, and the answers.
    fn evaluating(&self, how: &Evaluations) -> Result<Work> {
        let batches = how.records.div_ceil(how.batch as u64) as f64;
        let read = self.inference(how.batch, how.lengths.usual)?.work;
        let Some(most) = how.written else {
            return Ok(read.times(batches * how.times as f64));
        };
        let one = self.inference(how.batch, Texts { length: 1, learnt: 1 })?.work;
        // An answer's tokens go through the decoder alone.
        let token = if self.outline.encoder_blocks.is_some() { one.times(0.5) } else { one };
        // What has learned nothing yet writes as much as it may; later answers are as long as those that are right.
        let learned = how.lengths.usual.learnt.min(most) as u64;
        let tokens = (most as u64 + how.times.saturating_sub(1) * learned) as f64;
        let prompts = self.inference(how.batch, Texts { learnt: 1, ..how.lengths.usual })?.work;
        let passes = read.plus(prompts).times(how.times as f64);
        Ok(passes.plus(token.times(tokens)).times(batches))
    }
}

/// What a micro-step needs, and what it takes.
struct Training {
    weights: u64,
    /// Numbers of the largest weight in few bits.
    largest: u64,
    trained: u64,
    /// Bytes of the optimizer's state.
    state: u64,
    step: Step,
}

impl Training {
    fn of(input: &LanguagePlanInput, texts: Texts) -> Result<Self> {
        let place = input.place();
        place.planned(|planning| {
            let (network, weights) = place.load(planning, |loader| input.build(loader))?;
            let adapter = input.lora.as_ref().map(|lora| adapted(&network.sites, lora)).transpose()?;
            network.sites.set_training(true);
            let adapters = adapter.as_slice();
            let (on_model, gradients) = (trained_numbers(adapters), new_gradients(adapters, input.accumulation)?);
            let checkpointing = input.gradient_checkpointing;
            let loss = || input.loss(&network.model, input.batch, texts, checkpointing);
            let step = Step::of(planning, gradients, loss)?;
            let prompt = numbers_of_prompt(input);
            let params = adapter.map_or(prompt, |adapter| adapter.params);
            let state = state_bytes(planning, &params, input.optimizer_8bit)?;
            let trained = on_model + input.prompt.map_or(0, |prompt| prompt.trained);
            Ok(Self { weights, largest: largest_quantised(&network.sites), trained, state, step })
        })
    }
}

/// What a trained prompt has the optimizer keep a state of.
fn numbers_of_prompt(input: &LanguagePlanInput) -> Parameters {
    let numbers = |prompt: PlannedPrompt| Tensor::empty([prompt.trained as i64], (Kind::Float, PLANNED));
    input.prompt.map(|prompt| ("prompt".to_owned(), numbers(prompt))).into_iter().collect()
}

impl Planned for LanguagePlanInput<'_> {
    fn plan(&self) -> Result<MemoryPlan> {
        let Training { weights, largest, trained, state, step } = Training::of(self, self.texts.most)?;
        let usual = match self.texts.usual == self.texts.most {
            true => step.work.clone(),
            false => Training::of(self, self.texts.usual)?.step.work,
        };
        let weights = ("weights".to_owned(), weights - self.unread_embeddings());
        let runtime = runtime_text(self.device, self.kind);
        let mut phases = Vec::new();
        let Storage { quantize, streamed, .. } = self.storage;
        if quantize != Quantize::None && !streamed {
            let making = largest * (quantize.bytes_in_the_making() + width(self.stored));
            let parts = vec![weights.clone(), ("largest weight in the making".to_owned(), making)];
            phases.push(Phase { name: "loading", parts, work: Work::default() });
        }
        let mut resident = vec![weights];
        resident.extend(adapter_parts(trained, state));
        if let Some(how) = &self.evaluations {
            let peak = self.inference(how.batch, how.lengths.most)?.peak;
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
