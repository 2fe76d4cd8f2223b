//! The options of how frozen weights are kept: the same for training, generating and completing.

use super::checks::{in_range, refuse, MAX_FACTOR};
use crate::error::Result;
use crate::weights::{Storage, DEFAULT_THRESHOLD};
use clap::{Args, ValueEnum};
use serde::Serialize;

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
        in_range("⟨int8_threshold⟩", self.int8_threshold.unwrap_or(DEFAULT_THRESHOLD), MAX_FACTOR)?;
        if self.int8_threshold.is_some() && !self.load_in_8bit {
            return refuse("⟨int8_threshold⟩ needs ⟨load_in_8bit⟩, without which nothing is computed in 8 bits".into());
        }
        match (self.load_in_8bit, self.offload) {
            (true, Offload::Cpu) => refuse(
                "⟨load_in_8bit⟩ and ⟨offload⟩ cpu exclude each other; the first computes faster, the second takes less memory"
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
}
