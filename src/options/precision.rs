//! The dtype that a model computes in, as users choose it.

use crate::train::precision::Precision;
use clap::ValueEnum;
use serde::Serialize;
use tch::{Device, Kind};

/// Dtype that a model computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MixedPrecision {
    /// bf16 where the device supports it, fp16 on older CUDA cards, otherwise fp32.
    Auto,
    /// float32.
    #[value(alias = "fp32")]
    No,
    /// float16 with loss scaling.
    Fp16,
    /// bfloat16.
    Bf16,
}

impl MixedPrecision {
    /// The dtype of a computation on `device`.
    pub fn on(self, device: Device) -> Precision {
        match self {
            Self::No => Precision::Fp32,
            Self::Fp16 => Precision::Fp16,
            Self::Bf16 => Precision::Bf16,
            Self::Auto => Precision::auto(device),
        }
    }
}

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
