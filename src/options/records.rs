//! What a language model does with records: the same flags for training and evaluating.

use super::checks::{counted, refuse, MAX_PLACES};
use super::values::{name, name_of};
use crate::data::language_dataset::{LanguageDataOptions, LanguageTask};
use crate::data::prompt_template::PromptTemplate;
use crate::error::Result;
use crate::models::language::LanguageModelFiles;
use clap::{Args, ValueEnum};
use serde::Serialize;

/// Refuses models that do another task.
pub(crate) fn check_task(task: LanguageTask, files: &LanguageModelFiles) -> Result<()> {
    let architecture = files.architecture();
    let does = |task: &&LanguageTask| architecture.tasks.contains(&task.peft_name());
    if does(&&task) {
        return Ok(());
    }
    let done: Vec<String> = LanguageTask::value_variants().iter().filter(does).map(name).collect();
    refuse(format!(
        "⟨task⟩ {} does not work with a {} model; choose {}",
        name(&task),
        architecture.model_type,
        done.join(" and ")
    ))
}

/// What PEFT calls so, as users write it where they can.
pub(crate) fn task_name(peft_name: &str) -> String {
    LanguageTask::named(peft_name).map_or_else(|| peft_name.to_owned(), |task| name(&task))
}

/// What examples are made of, and how answers to them are written.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Data")]
pub struct LanguageDataArgs {
    /// Task: causal-lm (continue a text), seq2seq-lm (text to text) or seq-cls (text classification)
    #[arg(long, value_enum)]
    #[serde(serialize_with = "name_of")]
    pub task: LanguageTask,
    /// Column with the text
    #[arg(long, default_value = "text")]
    pub text_column: String,
    /// Column with the expected answer or the class
    #[arg(long)]
    pub label_column: Option<String>,
    /// Template of the text in place of --text-column, with columns in braces: "Tweet: {text} Label: "
    #[arg(long)]
    pub prompt_template: Option<String>,
    /// Maximum length of a text, and of an answer, in tokens; longer ones are truncated
    #[arg(long, default_value_t = 512)]
    pub max_seq_length: usize,
    /// Maximum number of tokens to generate for an answer in evaluations
    #[arg(long, default_value_t = 32)]
    pub eval_max_new_tokens: usize,
}

impl LanguageDataArgs {
    /// Refuses what cannot be meant, by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        counted("⟨max_seq_length⟩", self.max_seq_length as u64, 2, MAX_PLACES)?;
        counted("⟨eval_max_new_tokens⟩", self.eval_max_new_tokens as u64, 1, MAX_PLACES)
    }

    /// The same of what is to be learnt, which records must tell.
    pub fn check_labels(&self) -> Result<()> {
        match self.label_column.is_none() && self.task != LanguageTask::CausalLm {
            true => refuse("⟨label_column⟩ is missing: the column with the expected answer or the class".into()),
            false => Ok(()),
        }
    }

    /// The same for the data set.
    pub fn options(&self) -> Result<LanguageDataOptions> {
        let prompt = match &self.prompt_template {
            Some(template) => PromptTemplate::parse(template)?,
            None => PromptTemplate::column(&self.text_column),
        };
        Ok(LanguageDataOptions {
            task: self.task,
            prompt,
            label_column: self.label_column.clone(),
            max_length: self.max_seq_length,
        })
    }
}
