//! The dtype that a model computes in, as users choose it.

use crate::train::precision::Precision;
use clap::ValueEnum;
use serde::Serialize;
use tch::Device;

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
