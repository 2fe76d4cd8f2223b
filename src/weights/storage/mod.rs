//! How frozen weights are kept: as they are, in fewer bits, where they compute or elsewhere. A new way to keep them is a file here, an arm
//! of [`Quantize`], [`BaseWeight`] and [`Form`], and what it takes by [`Quantize::bytes`].

mod base_weight;
mod block_stream;
mod dynamic_map;
mod fp8;
mod int8;
mod nf4;
mod packed_file;
mod streamed;

pub use base_weight::{BaseWeight, Op};
pub use block_stream::{block_of, BlockStream};
pub use dynamic_map::dynamic_map;
pub use fp8::Fp8Weight;
pub use int8::{Int8Weight, DEFAULT_THRESHOLD, DENSE_AT_ONCE};
pub use nf4::{Nf4Form, Nf4Weight};
pub use packed_file::PackedFile;
pub use streamed::{on_shared_host, Layout, Sources, StreamedWeight};

use crate::error::Result;
use clap::ValueEnum;
use serde::Serialize;
use tch::{Kind, Tensor};

/// In how many bits the frozen weights of projections are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// As many as the dtype of the computation has
    #[default]
    None,
    /// 8, linear layers (LLM.int8()): their products are computed in 8 bits too
    Int8,
    /// 4, linear layers (QLoRA's NF4 with double quantisation): expanded for each use
    Nf4,
    /// 8, linear layers and convolutions (e4m3, without scales): expanded for each use
    Fp8,
}

impl Quantize {
    /// As an option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
            Self::Fp8 => "fp8",
        }
    }

    /// Whether the weights of `op` are quantised.
    pub fn takes(self, op: Op) -> bool {
        match self {
            Self::None => false,
            Self::Int8 | Self::Nf4 => op == Op::Linear,
            Self::Fp8 => matches!(op, Op::Linear | Op::Conv2d(_)),
        }
    }

    /// Bytes of a quantised weight of `shape`; none where it is not quantised.
    pub fn bytes(self, shape: &[i64]) -> Option<u64> {
        let numbers = shape.iter().product::<i64>() as u64;
        match self {
            Self::None => None,
            Self::Int8 => Some(numbers + 4 * shape[0] as u64),
            Self::Nf4 => Some(nf4::bytes(numbers)),
            Self::Fp8 => Some(numbers),
        }
    }

    /// Bytes that quantising takes for each number of a weight, beside the file's own.
    pub fn bytes_in_the_making(self) -> u64 {
        match self {
            Self::None => 0,
            // It in float16 and float32, and its codes before they are rounded and after.
            Self::Int8 => 13,
            Self::Nf4 => 1,
            Self::Fp8 => 1,
        }
    }
}

/// How the weights of projections are to be kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Storage {
    /// In how many bits.
    pub quantize: Quantize,
    /// With [`Quantize::Int8`]: inputs of at least this size make their column an outlier, which is computed in 16 bits.
    pub int8_threshold: f64,
    /// In host memory or in files, brought for each use; tables of embeddings too.
    pub streamed: bool,
}

impl Default for Storage {
    fn default() -> Self {
        Self { quantize: Quantize::None, int8_threshold: DEFAULT_THRESHOLD, streamed: false }
    }
}

impl From<Quantize> for Storage {
    fn from(quantize: Quantize) -> Self {
        Self { quantize, ..Self::default() }
    }
}

impl Storage {
    /// Kept as they are, brought for each use.
    pub const STREAMED: Self = Self { quantize: Quantize::None, int8_threshold: DEFAULT_THRESHOLD, streamed: true };

    /// `weight`, in its layout, in these bits, to be computed with in `kind`.
    pub fn quantised(self, weight: Tensor, kind: Kind) -> Result<BaseWeight> {
        let _no_grad = tch::no_grad_guard();
        Ok(match self.quantize {
            Quantize::None => BaseWeight::Dense(weight.f_to_kind(kind)?),
            Quantize::Int8 => BaseWeight::Int8(Int8Weight::quantise(&weight, kind, self.int8_threshold)),
            Quantize::Nf4 => BaseWeight::Nf4(Nf4Weight::quantise(&weight, kind, true)?),
            Quantize::Fp8 => BaseWeight::Fp8(Fp8Weight::quantise(&weight, kind)?),
        })
    }
}

/// What a weight is beside its tensors, by which they become one again elsewhere.
#[derive(Debug, Clone)]
pub enum Form {
    /// The numbers themselves.
    Dense,
    /// LLM.int8().
    Int8 {
        /// Inputs of at least this size make their column an outlier.
        threshold: f64,
    },
    /// NF4.
    Nf4(Nf4Form),
    /// e4m3.
    Fp8,
}

impl Form {
    /// Whether its part lies in the weight's layout.
    fn has_a_layout(&self) -> bool {
        matches!(self, Self::Dense | Self::Fp8)
    }

    /// The weight of `parts`, as [`BaseWeight::parts`] gives them, to be computed with in `kind`.
    pub fn weight(&self, parts: Vec<Tensor>, kind: Kind) -> BaseWeight {
        let part = |i: usize| parts.get(i).map(Tensor::shallow_clone).unwrap_or_default();
        match self {
            Self::Dense => BaseWeight::Dense(part(0)),
            Self::Int8 { threshold } => BaseWeight::Int8(Int8Weight::of(part(0), part(1), *threshold, kind)),
            Self::Nf4(form) => BaseWeight::Nf4(Nf4Weight::of(form.clone(), parts, kind)),
            Self::Fp8 => BaseWeight::Fp8(Fp8Weight::of(part(0), kind)),
        }
    }
}
