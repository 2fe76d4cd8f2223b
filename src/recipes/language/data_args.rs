//! What a language model does with records: the same flags for training and evaluating.

use crate::data::language_dataset::{LanguageDataOptions, LanguageTask};
use crate::data::prompt_template::PromptTemplate;
use crate::error::Result;
use crate::models::language::LanguageModelFiles;
use crate::recipes::option_checks::{counted, refuse, MAX_PLACES};
use clap::{Args, ValueEnum};
use serde::Serialize;

/// `--task`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskChoice {
    /// Continue a text.
    CausalLm,
    /// Text to text.
    #[value(name = "seq2seq-lm")]
    #[serde(rename = "seq2seq-lm")]
    Seq2SeqLm,
    /// Text classification.
    SeqCls,
}

impl TaskChoice {
    /// PEFT's `task_type`.
    pub fn peft_name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::SeqCls => "SEQ_CLS",
        }
    }

    /// The task that PEFT calls so.
    pub fn named(peft_name: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|task| task.peft_name() == peft_name)
    }

    /// What PEFT calls so, as the flag's value where there is one.
    pub fn flag_of(peft_name: &str) -> String {
        Self::named(peft_name).map_or_else(|| peft_name.to_owned(), Self::flag)
    }

    /// As the flag's value.
    pub fn flag(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Refuses models that do another.
    pub(in crate::recipes) fn check(self, files: &LanguageModelFiles) -> Result<()> {
        let architecture = files.architecture();
        let does = |task: &&Self| architecture.tasks.contains(&task.peft_name());
        if does(&&self) {
            return Ok(());
        }
        let done: Vec<String> = Self::value_variants().iter().filter(does).map(|task| task.flag()).collect();
        refuse(format!(
            "--task {} does not work with a {} model; choose {}",
            self.flag(),
            architecture.model_type,
            done.join(" and ")
        ))
    }
}

impl From<TaskChoice> for LanguageTask {
    fn from(choice: TaskChoice) -> Self {
        match choice {
            TaskChoice::CausalLm => Self::CausalLm,
            TaskChoice::Seq2SeqLm => Self::Seq2SeqLm,
            TaskChoice::SeqCls => Self::SeqCls,
        }
    }
}

/// What examples are made of, and how answers to them are written.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Data")]
pub struct LanguageDataArgs {
    /// Task: causal-lm (continue a text), seq2seq-lm (text to text) or seq-cls (text classification)
    #[arg(long, value_enum)]
    pub task: TaskChoice,
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
        counted("--max-seq-length", self.max_seq_length as u64, 2, MAX_PLACES)?;
        counted("--eval-max-new-tokens", self.eval_max_new_tokens as u64, 1, MAX_PLACES)
    }

    /// The same of what is to be learnt, which records must tell.
    pub fn check_labels(&self) -> Result<()> {
        match self.label_column.is_none() && self.task != TaskChoice::CausalLm {
            true => refuse("--label-column is missing: the column with the expected answer or the class".into()),
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
            task: self.task.into(),
            prompt,
            label_column: self.label_column.clone(),
            max_length: self.max_seq_length,
        })
    }
}
