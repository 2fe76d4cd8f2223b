//! What fine-tuning a language model will take, from its options, the model's configuration and, where it is there, the data.

use super::language_adapter::{fitted_to, WantedAdapter};
use super::language_config::LanguageConfig;
use super::language_evaluation::BATCH;
use super::outlook;
use crate::adapters::{Init, LoraConfig, Prompt, PromptConfig, Sites};
use crate::data::language_dataset::{LanguageDataset, LanguageTask};
use crate::error::Result;
use crate::libtorch::random::Generator;
use crate::models::language::{LanguageModelFiles, Outline};
use crate::train::memory_plan::{LanguagePlanInput, PlannedPrompt, Texts};
use tch::{Device, Kind};

/// The lengths of a run's records.
#[derive(Debug, Clone, Copy)]
pub struct RecordLengths {
    training: Texts,
    validation: Option<Texts>,
    /// Records to learn from; 0: not known.
    count: u64,
}

impl RecordLengths {
    /// Those of records that have been read.
    pub fn of(training: &LanguageDataset, validation: Option<&LanguageDataset>) -> Self {
        let texts =
            |data: &LanguageDataset| Texts { length: data.longest() as i64, learnt: data.most_targets() as i64 };
        Self { training: texts(training), validation: validation.map(texts), count: training.len() as u64 }
    }

    /// As long as the options let records be, on a model of positions up to `longest`.
    pub fn longest(config: &LanguageConfig, longest: Option<i64>) -> Self {
        let length = (config.data.max_seq_length as i64).min(longest.unwrap_or(i64::MAX));
        let learnt = match config.data.task.into() {
            LanguageTask::SeqCls => 1,
            LanguageTask::CausalLm => length - 1,
            LanguageTask::Seq2SeqLm => length,
        };
        let training = Texts { length, learnt };
        Self { training, validation: config.validation_file.as_ref().map(|_| training), count: 0 }
    }
}

/// The model that a run is planned for.
pub struct PlannedModel {
    outline: Outline,
    stored: Kind,
    lora: Option<LoraConfig>,
    prompt: Option<PlannedPrompt>,
}

impl PlannedModel {
    /// That of `files`, of which nothing but the configuration and the headers is read, with what `wanted` trains. A classifier
    /// has `labels` classes where they are known.
    pub fn of(files: &LanguageModelFiles, wanted: &WantedAdapter, labels: Option<i64>) -> Result<Self> {
        let mut outline = files.outline()?;
        if let Some(labels) = labels {
            outline.head = outline.head.with_labels(labels);
        }
        let (lora, prompt) = match wanted {
            WantedAdapter::Lora(lora) => (Some(lora.clone().checked()?), None),
            WantedAdapter::Prompt(prompt) => (None, Some(planned(prompt, &outline)?)),
        };
        Ok(Self { outline, stored: files.stored_kind()?, lora, prompt })
    }

    /// Most tokens that it has positions for.
    pub fn longest(&self) -> Option<i64> {
        self.outline.longest
    }

    /// What the plan of a run depends on.
    pub fn input(&self, config: &LanguageConfig, records: RecordLengths, device: Device) -> LanguagePlanInput<'_> {
        let training = &config.training;
        let batches = records.count.div_ceil(config.train_batch_size as u64);
        let updates = batches.div_ceil(training.gradient_accumulation_steps);
        LanguagePlanInput {
            outline: &self.outline,
            stored: self.stored,
            kind: training.precision(device).compute_kind(),
            storage: training.weights.storage(),
            lora: self.lora.clone(),
            prompt: self.prompt,
            gradient_checkpointing: training.gradient_checkpointing,
            optimizer_8bit: training.use_8bit_adam,
            batch: config.train_batch_size as i64,
            texts: records.training,
            evaluated: records.validation.map(|texts| (BATCH as i64, texts)),
            accumulation: training.gradient_accumulation_steps,
            steps: training.max_train_steps.unwrap_or(training.num_train_epochs.saturating_mul(updates)),
            device,
        }
    }

    /// What is to be told of a run's memory; see [`outlook::outlook`].
    pub fn outlook(
        &self,
        config: &LanguageConfig,
        records: RecordLengths,
        device: Device,
        budget: u64,
    ) -> Result<(u64, String)> {
        outlook::outlook(&self.input(config, records, device), budget)
    }
}

/// The size of a prompt on a model, from one that is made for no more than that.
fn planned(prompt: &PromptConfig, outline: &Outline) -> Result<PlannedPrompt> {
    let alone = PromptConfig { modules_to_save: None, ..prompt.clone() };
    let prompt = fitted_to(alone, outline.shape(), outline.encoder_blocks(), outline.tables[0].2)?;
    let made = Prompt::attach(&Sites::new(), Device::Cpu, prompt, Init::Draw(&mut Generator::new(0)))?;
    Ok(PlannedPrompt { tokens: made.length(), trained: made.trainable() as u64 })
}
