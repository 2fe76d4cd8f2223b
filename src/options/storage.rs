//! The options of how frozen weights are kept: the same for training, generating and completing.

use super::checks::{in_range, refuse, MAX_FACTOR};
use crate::error::Result;
use crate::weights::{Quantize, Storage, DEFAULT_THRESHOLD};
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
    /// Bits of the frozen weights: int8 (LLM.int8()) and nf4 (4 bits, QLoRA) are for linear layers, fp8 (e4m3) for convolutions too
    #[arg(long, value_enum, default_value_t = Quantize::None, hide_possible_values = true, help_heading = "Memory")]
    pub quantize: Quantize,
    /// The same as --quantize int8
    #[arg(long, hide = true, help_heading = "Memory")]
    pub load_in_8bit: bool,
    /// With --quantize int8: input features of at least this magnitude are computed in 16 bits [default: 6]
    #[arg(long, help_heading = "Memory")]
    pub int8_threshold: Option<f64>,
    /// cpu: keep the frozen weights in host memory and copy each block to the device when it is used; on the CPU they stay in
    /// files
    #[arg(long, value_enum, default_value_t = Offload::None, help_heading = "Memory")]
    pub offload: Offload,
}

impl StorageArgs {
    /// Refuses what cannot be meant, by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        in_range("⟨int8_threshold⟩", self.int8_threshold.unwrap_or(DEFAULT_THRESHOLD), MAX_FACTOR)?;
        if self.load_in_8bit && !matches!(self.quantize, Quantize::None | Quantize::Int8) {
            let other = self.quantize.name();
            return refuse(format!(
                "⟨load_in_8bit⟩ is ⟨quantize⟩ int8, and ⟨quantize⟩ {other} is given too; leave one out"
            ));
        }
        if self.int8_threshold.is_some() && self.quantize() != Quantize::Int8 {
            return refuse(
                "⟨int8_threshold⟩ needs ⟨quantize⟩ int8, without which nothing is computed in 8 bits".into(),
            );
        }
        Ok(())
    }

    /// In how many bits the weights of projections are kept.
    pub fn quantize(&self) -> Quantize {
        match self.load_in_8bit {
            true => Quantize::Int8,
            false => self.quantize,
        }
    }

    /// How the weights of projections are kept.
    pub fn storage(&self) -> Storage {
        Storage {
            quantize: self.quantize(),
            int8_threshold: self.int8_threshold.unwrap_or(DEFAULT_THRESHOLD),
            streamed: self.offload == Offload::Cpu,
        }
    }
}
