//! What a user can say: one struct for each group of options, for the command line, TOML files, records of runs and pages alike.

pub mod adapter_argument;
pub(crate) mod checks;
pub mod command_line;
pub mod complete;
pub mod convert;
pub mod demo;
pub mod dreambooth;
mod dreambooth_checks;
pub mod evaluate;
pub mod form;
pub mod generate;
pub mod given;
pub mod hub;
pub mod kind;
pub mod language;
pub mod lora;
pub mod merge;
pub mod model;
pub mod pattern;
pub mod precision;
pub mod prompts;
pub mod push;
pub mod ranks;
pub mod reading;
pub mod recorded;
pub mod records;
pub mod secret;
mod shell_word;
pub mod storage;
pub mod training;
pub(crate) mod values;

pub use shell_word::{shell_path, shell_word};
