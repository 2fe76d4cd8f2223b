//! The option of the dtype in which commands compute that do not train.

use crate::train::precision::Precision;
use clap::ValueEnum;
use tch::{Device, Kind};

/// Dtype for commands that do not train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// bf16 where the device supports it, otherwise fp32 on the CPU and fp16 on a GPU.
    Auto,
    /// float32.
    #[value(alias = "no")]
    Fp32,
    /// float16.
    Fp16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// What it is on `device`.
    pub fn kind(self, device: Device) -> Kind {
        match self {
            Self::Auto => Precision::auto(device).compute_kind(),
            Self::Fp32 => Kind::Float,
            Self::Fp16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}
