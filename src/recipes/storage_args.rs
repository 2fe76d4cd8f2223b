//! The options of how frozen weights are kept: the same for training, generating and completing.

use super::observer::Observer;
use super::option_checks::{in_range, refuse, MAX_FACTOR};
use crate::error::Result;
use crate::weights::{Storage, DEFAULT_THRESHOLD};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use tch::Device;

/// Where frozen weights wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// On the device that computes.
    None,
    /// In host memory.
    Cpu,
}

/// How frozen weights are kept.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct StorageArgs {
    /// Store the frozen weights of linear layers in 8 bits (LLM.int8())
    #[arg(long, help_heading = "Memory")]
    pub load_in_8bit: bool,
    /// With --load-in-8bit: input features of at least this magnitude are computed in 16 bits [default: 6]
    #[arg(long, help_heading = "Memory")]
    pub int8_threshold: Option<f64>,
    /// cpu: keep the frozen weights in host memory and copy each block to the device when it is used; on the CPU they stay in
    /// their files
    #[arg(long, value_enum, default_value_t = Offload::None, help_heading = "Memory")]
    pub offload: Offload,
}

impl StorageArgs {
    /// Refuses what cannot be meant, by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        in_range("--int8-threshold", self.int8_threshold.unwrap_or(DEFAULT_THRESHOLD), MAX_FACTOR)?;
        if self.int8_threshold.is_some() && !self.load_in_8bit {
            return refuse("--int8-threshold needs --load-in-8bit, without which nothing is computed in 8 bits".into());
        }
        match (self.load_in_8bit, self.offload) {
            (true, Offload::Cpu) => refuse(
                "--load-in-8bit and --offload cpu exclude each other; the first computes faster, the second takes less memory"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// How the weights of projections are kept.
    pub fn storage(&self) -> Storage {
        match (self.load_in_8bit, self.offload) {
            (true, _) => Storage::Int8 { threshold: self.int8_threshold.unwrap_or(DEFAULT_THRESHOLD) },
            (false, Offload::Cpu) => Storage::Streamed,
            (false, Offload::None) => Storage::Dense,
        }
    }

    /// Tells how they are kept, where that is not as they lie in memory anyway.
    pub fn report(&self, device: Device, observer: &mut dyn Observer) {
        let (kept, name) = match (self.storage(), device) {
            (Storage::Dense, _) => return,
            (Storage::Int8 { threshold }, _) => {
                (format!("linear layers in 8 bits; inputs of {threshold} or more are computed in 16"), "int8")
            }
            (Storage::Streamed, Device::Cpu) => {
                ("in their files, each block loaded when it is used".to_owned(), "files")
            }
            (Storage::Streamed, _) => ("in host memory, each block copied when it is used".to_owned(), "host"),
        };
        let threshold = match self.storage() {
            Storage::Int8 { threshold } => Some(threshold),
            _ => None,
        };
        observer.fact_with("weights", kept, json!({ "storage": name, "int8_threshold": threshold }));
    }

    /// The flags that ask for it, behind a space each.
    pub fn flags(&self) -> String {
        match self.storage() {
            Storage::Dense => String::new(),
            Storage::Int8 { threshold: DEFAULT_THRESHOLD } => " --load-in-8bit".to_owned(),
            Storage::Int8 { threshold } => format!(" --load-in-8bit --int8-threshold {threshold}"),
            Storage::Streamed => " --offload cpu".to_owned(),
        }
    }
}
