//! How the frozen weight of one projection is kept, and what the projection computes with it.

use super::convolution::{conv2d, conv2d_input_gradient, Stride};
use super::int8::{self, Int8Weight};
use super::streamed::StreamedWeight;
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

    /// The gradient of an input of `shape`, from that of the output. Linear inputs are `[rows, in]`.
    pub(super) fn input_gradient(self, grad: &Tensor, weight: &Tensor, shape: &[i64]) -> Tensor {
        match self {
            Op::Linear => grad.mm(weight),
            Op::Conv2d(stride) => conv2d_input_gradient(grad, weight, shape, stride),
            Op::Embedding => unreachable!("ids have no gradient"),
        }
    }

    /// The gradient of the bias, from that of the output.
    pub(super) fn bias_gradient(self, grad: &Tensor) -> Tensor {
        let dims: &[i64] = match self {
            Op::Linear | Op::Embedding => &[0],
            Op::Conv2d(_) => &[0, 2, 3],
        };
        grad.sum_dim_intlist(dims, false, grad.kind())
    }
}

/// How the weights of projections are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Storage {
    /// As they are.
    #[default]
    Dense,
    /// Those of linear projections in 8 bits.
    Int8 {
        /// Inputs of at least this size make their column an outlier, which is computed in 16 bits.
        threshold: f64,
    },
    /// In host memory, brought for each use; tables of embeddings too.
    Streamed,
}

/// Frozen storage of one projection's weight.
pub enum BaseWeight {
    /// The numbers themselves, in the compute dtype.
    Dense(Tensor),
    /// Codes of 8 bits.
    Int8(Int8Weight),
    /// Elsewhere, brought for each use.
    Streamed(StreamedWeight),
}

impl BaseWeight {
    /// `op` applied to `xs`, in the dtype of `xs`.
    pub fn run(&self, op: Op, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            BaseWeight::Dense(weight) if op == Op::Embedding => op.run(xs, weight, bias),
            BaseWeight::Dense(weight) => op.run(xs, &weight.to_kind(xs.kind()), bias),
            BaseWeight::Int8(weight) => weight.run(xs, bias),
            BaseWeight::Streamed(weight) => weight.run(op, xs, bias),
        }
    }

    /// What a linear projection needs of the weight in backward.
    pub fn input_gradient(&self) -> InputGradient {
        match self {
            BaseWeight::Dense(weight) => InputGradient::Dense(weight.shallow_clone()),
            BaseWeight::Int8(weight) => {
                InputGradient::Int8 { codes: weight.codes().shallow_clone(), scales: weight.scales().shallow_clone() }
            }
            BaseWeight::Streamed(weight) => InputGradient::Streamed(weight.clone()),
        }
    }

    /// The weight as a dense tensor in `kind`.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match self {
            BaseWeight::Dense(weight) => weight.to_kind(kind),
            BaseWeight::Int8(weight) => weight.dense(kind),
            BaseWeight::Streamed(weight) => weight.with(|weight| weight.to_kind(kind).copy()),
        }
    }

    /// Shape of the weight.
    pub fn shape(&self) -> Vec<i64> {
        match self {
            BaseWeight::Dense(weight) => weight.size(),
            BaseWeight::Int8(weight) => weight.shape(),
            BaseWeight::Streamed(weight) => weight.shape(),
        }
    }

    /// The dtype in which the projection computes.
    pub fn kind(&self) -> Kind {
        match self {
            BaseWeight::Dense(weight) => weight.kind(),
            BaseWeight::Int8(weight) => weight.kind(),
            BaseWeight::Streamed(weight) => weight.placement().kind,
        }
    }

    /// The device that computes with the weight.
    pub fn device(&self) -> tch::Device {
        match self {
            BaseWeight::Dense(weight) => weight.device(),
            BaseWeight::Int8(weight) => weight.device(),
            BaseWeight::Streamed(weight) => weight.placement().device,
        }
    }
}

/// A linear projection's weight as its backward needs it.
pub enum InputGradient {
    /// `[n, k]`
    Dense(Tensor),
    /// Codes of 8 bits.
    Int8 {
        /// int8 `[n, k]`
        codes: Tensor,
        /// float32 `[n]`
        scales: Tensor,
    },
    /// Elsewhere, brought once more.
    Streamed(StreamedWeight),
}

impl InputGradient {
    /// `sum` with the gradient of the input added in place, from that of the output `[m, n]`: `[m, k]`. Without a gradient of its own.
    pub fn add_to(&self, sum: Option<Tensor>, grad: &Tensor) -> Tensor {
        let add_product = |sum: Option<Tensor>, weight: &Tensor| match sum {
            None => grad.mm(weight),
            Some(mut sum) => sum.addmm_(grad, weight),
        };
        match self {
            Self::Dense(weight) => add_product(sum, weight),
            Self::Streamed(weight) => weight.with(|weight| add_product(sum, weight)),
            Self::Int8 { codes, scales } => {
                let gradient = int8::input_gradient(grad, codes, scales);
                match sum {
                    None => gradient,
                    Some(sum) => sum + gradient,
                }
            }
        }
    }
}
