//! The kinds of jobs whose options can be given by name, and what can be asked of each.

use super::command_line::command_line;
use super::complete::CompleteConfig;
use super::dreambooth::DreamBoothConfig;
use super::evaluate::EvaluateConfig;
use super::form::{form, Group};
use super::generate::GenerateConfig;
use super::language::LanguageConfig;
use super::reading::Configuration;
use crate::error::Result;
use clap::Command;
use serde_json::{Map, Value};

/// A kind of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `train dreambooth`.
    DreamBooth,
    /// `train llm`.
    Llm,
    /// `complete`.
    Complete,
    /// `generate`.
    Generate,
    /// `evaluate`.
    Evaluate,
}

/// The options of a job.
#[derive(Debug, Clone)]
pub enum JobConfig {
    /// Of [`Kind::DreamBooth`].
    DreamBooth(Box<DreamBoothConfig>),
    /// Of [`Kind::Llm`].
    Llm(Box<LanguageConfig>),
    /// Of [`Kind::Complete`].
    Complete(Box<CompleteConfig>),
    /// Of [`Kind::Generate`].
    Generate(Box<GenerateConfig>),
    /// Of [`Kind::Evaluate`].
    Evaluate(Box<EvaluateConfig>),
}

impl Kind {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::DreamBooth, Self::Llm, Self::Generate, Self::Complete, Self::Evaluate];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::DreamBooth => "dreambooth",
            Self::Llm => "llm",
            Self::Complete => "complete",
            Self::Generate => "generate",
            Self::Evaluate => "evaluate",
        }
    }

    /// The kind of the short name `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Its options as clap has them.
    pub fn command(self) -> Command {
        match self {
            Self::DreamBooth => DreamBoothConfig::command(),
            Self::Llm => LanguageConfig::command(),
            Self::Complete => CompleteConfig::command(),
            Self::Generate => GenerateConfig::command(),
            Self::Evaluate => EvaluateConfig::command(),
        }
    }

    /// Its options as a form shows them.
    pub fn form(self) -> Vec<Group> {
        form(&self.command())
    }

    /// The configuration that `options` stand for, by their names (`lora_r`). An error's sentence begins with the option at fault
    /// ([`crate::sentence::subject`]).
    pub fn read(self, options: &Map<String, Value>) -> Result<JobConfig> {
        Ok(match self {
            Self::DreamBooth => JobConfig::DreamBooth(Box::new(Configuration::from_map(options)?)),
            Self::Llm => JobConfig::Llm(Box::new(Configuration::from_map(options)?)),
            Self::Complete => JobConfig::Complete(Box::new(Configuration::from_map(options)?)),
            Self::Generate => JobConfig::Generate(Box::new(Configuration::from_map(options)?)),
            Self::Evaluate => JobConfig::Evaluate(Box::new(Configuration::from_map(options)?)),
        })
    }
}

impl JobConfig {
    /// The command line that stands for it, with what differs from the defaults alone.
    pub fn command_line(&self, seed: i64) -> Result<String> {
        match self {
            Self::DreamBooth(config) => command_line(config.as_ref(), seed),
            Self::Llm(config) => command_line(config.as_ref(), seed),
            Self::Complete(config) => command_line(config.as_ref(), seed),
            Self::Generate(config) => command_line(config.as_ref(), seed),
            Self::Evaluate(config) => command_line(config.as_ref(), seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_form_and_reads_what_it_needs() {
        for &kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
            let mut options = Map::new();
            for arg in kind.command().get_arguments().filter(|arg| arg.is_required_set()) {
                let value =
                    arg.get_possible_values().first().map_or("x".to_owned(), |value| value.get_name().to_owned());
                options.insert(arg.get_id().to_string(), Value::String(value));
            }
            let line = kind.read(&options).unwrap().command_line(7).unwrap();
            let flags = options.len() + 1;
            assert_eq!(line.matches(" --").count(), flags, "{line}");
            assert!(kind.form().iter().map(|group| group.fields.len()).sum::<usize>() > options.len());
        }
        assert_eq!(Kind::named("no such kind"), None);
    }
}
