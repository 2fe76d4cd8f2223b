//! What fine-tuning a language model will take, from its options, the model's configuration and, where it is there, the data.

use super::adapter::{fitted_to, WantedAdapter};
use super::evaluation::BATCH;
use crate::adapters::{Init, LoraConfig, Prompt, PromptConfig, Sites};
use crate::data::language_dataset::{LanguageDataset, LanguageTask};
use crate::error::Result;
use crate::libtorch::random::Generator;
use crate::models::language::{LanguageModelFiles, Outline};
use crate::options::language::LanguageConfig;
use crate::plan::{Evaluations, LanguagePlanInput, Lengths, PlannedPrompt, Texts};
use crate::recipes::training::memory_advice;
use crate::train::precision::half_kind;
use crate::weights::{Quantize, Storage};
use tch::{Device, Kind};

/// The sizes of a run's records.
#[derive(Debug, Clone, Copy)]
pub struct RecordLengths {
    training: Records,
    validation: Option<Records>,
}

/// Those of one file.
#[derive(Debug, Clone, Copy)]
struct Records {
    lengths: Lengths,
    /// How many; 0: not known.
    count: u64,
    /// Answers to them are compared.
    are_answered: bool,
}

impl Records {
    fn of(data: &LanguageDataset, batch: usize) -> Self {
        let most = Texts { length: data.longest() as i64, learnt: data.most_targets() as i64 };
        let (length, learnt) = data.usual_batch(batch);
        let lengths = Lengths { most, usual: Texts { length: length as i64, learnt: learnt as i64 } };
        Self { lengths, count: data.len() as u64, are_answered: data.has_answers() }
    }
}

impl RecordLengths {
    /// Those of records that have been read, and are learned from `batch` at a time.
    pub fn of(training: &LanguageDataset, validation: Option<&LanguageDataset>, batch: usize) -> Self {
        let validation = validation.map(|data| Records::of(data, BATCH));
        Self { training: Records::of(training, batch), validation }
    }

    /// As long as the options let records be, on a model of positions up to `longest`.
    pub fn longest(config: &LanguageConfig, longest: Option<i64>) -> Self {
        let length = (config.data.max_seq_length as i64).min(longest.unwrap_or(i64::MAX));
        let learnt = match config.data.task {
            LanguageTask::SeqCls => 1,
            LanguageTask::CausalLm => length - 1,
            LanguageTask::Seq2SeqLm => length,
        };
        let texts = Texts { length, learnt };
        let lengths = Lengths { most: texts, usual: texts };
        let training = Records { lengths, count: 0, are_answered: config.data.label_column.is_some() };
        Self { training, validation: config.validation_file.as_ref().map(|_| training) }
    }
}

/// The model that a run is planned for.
pub struct PlannedModel<'a> {
    files: &'a LanguageModelFiles,
    outline: Outline,
    labels: Option<i64>,
    stored: Kind,
    is_four_bit: bool,
    lora: Option<LoraConfig>,
    prompt: Option<PlannedPrompt>,
}

impl<'a> PlannedModel<'a> {
    /// That of `files`, of which nothing but the configuration and the headers is read, with what `wanted` trains. A classifier
    /// has `labels` classes where they are known.
    pub fn of(files: &'a LanguageModelFiles, wanted: &WantedAdapter, labels: Option<i64>) -> Result<Self> {
        let mut outline = files.outline()?;
        if labels.is_some() {
            outline.head = outline.head.of_classes();
        }
        let (lora, prompt) = match wanted {
            WantedAdapter::Lora(lora) => (Some(lora.clone().checked()?), None),
            WantedAdapter::Prompt(prompt) => (None, Some(planned(prompt, &outline)?)),
        };
        let (stored, is_four_bit) = (files.stored_kind()?, files.is_four_bit());
        Ok(Self { files, outline, labels, stored, is_four_bit, lora, prompt })
    }

    /// What it is made of.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// What the plan of a run depends on.
    pub fn input(&self, config: &LanguageConfig, records: RecordLengths, device: Device) -> LanguagePlanInput<'_> {
        let training = &config.training;
        let batches =
            records.training.count.div_ceil(config.train_batch_size as u64).div_ceil(training.ranks_args.count());
        let updates = batches.div_ceil(training.gradient_accumulation_steps);
        let steps = training.steps(updates, None);
        let between = config.eval_steps.unwrap_or(updates).max(1);
        let writes = config.data.task != LanguageTask::SeqCls;
        let evaluations = records.validation.map(|records| Evaluations {
            batch: BATCH as i64,
            lengths: records.lengths,
            records: records.count,
            // Before the first step too, and after the last.
            times: 1 + steps.div_ceil(between),
            written: (writes && records.are_answered).then_some(config.data.eval_max_new_tokens as i64),
        });
        LanguagePlanInput {
            files: self.files,
            outline: &self.outline,
            labels: self.labels,
            stored: self.stored,
            kind: training.precision(device).compute_kind(),
            storage: match self.is_four_bit {
                true => Storage { quantize: Quantize::Nf4, ..training.weights.storage() },
                false => training.weights.storage(),
            },
            lora: self.lora.clone(),
            prompt: self.prompt,
            half: half_kind(device),
            gradient_checkpointing: training.gradient_checkpointing,
            optimizer_8bit: training.use_8bit_adam,
            batch: config.train_batch_size as i64,
            texts: records.training.lengths,
            evaluations,
            accumulation: training.gradient_accumulation_steps,
            steps,
            device,
        }
    }

    /// What is to be told of a run's memory; see [`memory_advice::peak_and_advice`].
    pub fn peak_and_advice(
        &self,
        config: &LanguageConfig,
        records: RecordLengths,
        device: Device,
        budget: u64,
    ) -> Result<(u64, String)> {
        memory_advice::peak_and_advice(&self.input(config, records, device), budget)
    }
}

/// The size of a prompt on a model, from one that is made for no more than that.
fn planned(prompt: &PromptConfig, outline: &Outline) -> Result<PlannedPrompt> {
    let alone = PromptConfig { modules_to_save: None, ..prompt.clone() };
    let prompt = fitted_to(alone, outline.shape, outline.encoder_blocks, outline.embedding_width)?;
    let made = Prompt::attach(&Sites::new(), Device::Cpu, prompt, Init::Draw(&mut Generator::new(0)))?;
    Ok(PlannedPrompt { tokens: made.length(), trained: made.trainable() as u64 })
}
