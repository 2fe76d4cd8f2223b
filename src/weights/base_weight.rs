//! How the frozen weight of one projection is kept, and what the projection computes with it.

use super::convolution::{conv2d, Stride};
use super::int8::Int8Weight;
use tch::{Kind, Tensor};

/// What a projection does with its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `[.., in] -> [.., out]` with a weight `[out, in]`.
    Linear,
    /// `[batch, in, h, w] -> [batch, out, h', w']` with a weight `[out, in, k, k]`.
    Conv2d(Stride),
    /// int64 `[..] -> [.., width]` with a table `[rows, width]`.
    Embedding,
}

impl Op {
    /// The projection of `xs` with `weight` and `bias`.
    pub fn run(self, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            Op::Linear => xs.linear(weight, bias),
            Op::Conv2d(stride) => conv2d(xs, weight, bias, stride),
            Op::Embedding => Tensor::embedding(weight, xs, -1, false, false),
        }
    }
}

/// How the weights of linear projections are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Storage {
    /// As they are.
    #[default]
    Dense,
    /// In 8 bits.
    Int8 {
        /// Inputs of at least this size make their column an outlier, which is computed in 16 bits.
        threshold: f64,
    },
}

/// Frozen storage of one projection's weight.
pub enum BaseWeight {
    /// The numbers themselves, in the compute dtype.
    Dense(Tensor),
    /// Codes of 8 bits.
    Int8(Int8Weight),
}

impl BaseWeight {
    /// `op` applied to `xs`, in the dtype of `xs`.
    pub fn run(&self, op: Op, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            BaseWeight::Dense(weight) => op.run(xs, weight, bias),
            BaseWeight::Int8(weight) => weight.run(xs, bias),
        }
    }

    /// The weight as a dense tensor in `kind`.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match self {
            BaseWeight::Dense(weight) => weight.to_kind(kind),
            BaseWeight::Int8(weight) => weight.dense(kind),
        }
    }

    /// Shape of the weight.
    pub fn shape(&self) -> Vec<i64> {
        match self {
            BaseWeight::Dense(weight) => weight.size(),
            BaseWeight::Int8(weight) => weight.shape(),
        }
    }

    /// The dtype in which the projection computes.
    pub fn kind(&self) -> Kind {
        match self {
            BaseWeight::Dense(weight) => weight.kind(),
            BaseWeight::Int8(weight) => weight.kind(),
        }
    }

    /// The device that holds the weight.
    pub fn device(&self) -> tch::Device {
        match self {
            BaseWeight::Dense(weight) => weight.device(),
            BaseWeight::Int8(weight) => weight.device(),
        }
    }
}
