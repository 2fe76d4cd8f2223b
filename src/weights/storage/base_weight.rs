//! How the frozen weight of one projection is kept, and what the projection computes with it.

use super::int8::{self, Int8Weight};
use super::streamed::StreamedWeight;
use super::{Form, Fp8Weight, Nf4Weight};
use crate::error::Result;
use crate::libtorch::autograd_node;
use crate::libtorch::failure::or_panic;
use crate::weights::convolution::{conv2d, conv2d_input_gradient, Stride};
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

/// Frozen storage of one projection's weight.
pub enum BaseWeight {
    /// The numbers themselves, in the compute dtype.
    Dense(Tensor),
    /// Codes of 8 bits, with which it computes.
    Int8(Int8Weight),
    /// Codes of 4 bits.
    Nf4(Nf4Weight),
    /// Numbers of 8 bits.
    Fp8(Fp8Weight),
    /// Elsewhere, brought for each use.
    Streamed(StreamedWeight),
}

impl BaseWeight {
    /// `op` applied to `xs`, in the dtype of `xs`. Nothing but the weight as it is kept is saved for backward, and it has no gradient
    /// unless it is a dense one.
    pub fn run(&self, op: Op, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            Self::Dense(weight) if op == Op::Embedding => op.run(xs, weight, bias),
            Self::Dense(weight) => op.run(xs, &weight.to_kind(xs.kind()), bias),
            Self::Streamed(weight) => weight.rows(xs).unwrap_or_else(|| self.run_frozen(op, xs, bias)),
            Self::Int8(_) | Self::Nf4(_) | Self::Fp8(_) => self.run_frozen(op, xs, bias),
        }
    }

    /// The same as one node of the graph, which makes what it needs of the weight once more in backward.
    fn run_frozen(&self, op: Op, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        // No view, which could not be added to in place where gradients flow.
        let ys = tch::no_grad(|| self.compute(op, xs, bias)).detach();
        let (weight, shape) = (self.share(), xs.size());
        let wanted = [xs.requires_grad(), bias.is_some_and(|bias| bias.requires_grad())];
        let backward = move |grads: &[Option<Tensor>], _: &[Tensor]| {
            let _no_grad = tch::no_grad_guard();
            let Some(grad) = &grads[0] else { return Ok(vec![None, None]) };
            let to_input = wanted[0].then(|| weight.input_gradient(op, grad, &shape));
            Ok(vec![to_input, wanted[1].then(|| op.bias_gradient(grad))])
        };
        let inputs: Vec<&Tensor> = std::iter::once(xs).chain(bias).collect();
        or_panic(autograd_node::attach(&inputs, &[], &[&ys], Box::new(backward)));
        ys
    }

    /// `op` applied to `xs` without a gradient.
    fn compute(&self, op: Op, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            Self::Int8(weight) => weight.product(xs, bias),
            Self::Streamed(weight) => weight.with(|weight| weight.compute(op, xs, bias)),
            Self::Dense(_) | Self::Nf4(_) | Self::Fp8(_) => op.run(xs, &self.dense(xs.kind()), bias),
        }
    }

    /// The gradient of an input of `shape`, from that of the output. Linear inputs are `[rows, in]`.
    fn input_gradient(&self, op: Op, grad: &Tensor, shape: &[i64]) -> Tensor {
        match self {
            Self::Int8(weight) => int8::input_gradient(grad, weight),
            Self::Streamed(weight) => weight.with(|weight| weight.input_gradient(op, grad, shape)),
            Self::Dense(_) | Self::Nf4(_) | Self::Fp8(_) => op.input_gradient(grad, &self.dense(grad.kind()), shape),
        }
    }

    /// `sum` with the gradient of a linear projection's input added in place, from that of the output `[m, n]`: `[m, k]`. Without a
    /// gradient of its own.
    pub fn add_input_gradient(&self, sum: Option<Tensor>, grad: &Tensor) -> Tensor {
        match (self, sum) {
            (Self::Streamed(weight), sum) => weight.with(|weight| weight.add_input_gradient(sum, grad)),
            (Self::Int8(weight), None) => int8::input_gradient(grad, weight),
            (Self::Int8(weight), Some(sum)) => sum + int8::input_gradient(grad, weight),
            (Self::Dense(_) | Self::Nf4(_) | Self::Fp8(_), None) => grad.mm(&self.dense(grad.kind())),
            (Self::Dense(_) | Self::Nf4(_) | Self::Fp8(_), Some(mut sum)) => sum.addmm_(grad, &self.dense(grad.kind())),
        }
    }

    /// The weight as a dense tensor in `kind`: itself, where it lies so.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match self {
            Self::Dense(weight) => weight.to_kind(kind),
            Self::Int8(weight) => weight.dense(kind),
            Self::Nf4(weight) => weight.dense(kind),
            Self::Fp8(weight) => weight.dense(kind),
            // What was brought is another weight's soon.
            Self::Streamed(weight) => weight.with(|weight| weight.dense(kind).copy()),
        }
    }

    /// The same weight, over the same memory.
    pub fn share(&self) -> Self {
        match self {
            Self::Streamed(weight) => Self::Streamed(weight.clone()),
            here => {
                let (form, parts) = here.parts();
                form.weight(parts, here.kind())
            }
        }
    }

    /// The same weight on `device`; one that waits elsewhere stays there.
    pub fn moved_to(&self, device: tch::Device) -> Result<Self> {
        if matches!(self, Self::Streamed(_)) {
            return Ok(self.share());
        }
        let (form, parts) = self.parts();
        let parts = parts.iter().map(|part| Ok(part.f_to_device(device)?)).collect::<Result<Vec<_>>>()?;
        Ok(form.weight(parts, self.kind()))
    }

    /// What it is, and the tensors that it is made of. None for a weight that is elsewhere.
    pub fn parts(&self) -> (Form, Vec<Tensor>) {
        match self {
            Self::Dense(weight) => (Form::Dense, vec![weight.shallow_clone()]),
            Self::Int8(weight) => {
                let parts = vec![weight.codes().shallow_clone(), weight.scales().shallow_clone()];
                (Form::Int8 { threshold: weight.threshold() }, parts)
            }
            Self::Nf4(weight) => (Form::Nf4(weight.form().clone()), weight.parts()),
            Self::Fp8(weight) => (Form::Fp8, vec![weight.codes().shallow_clone()]),
            Self::Streamed(_) => (Form::Dense, Vec::new()),
        }
    }

    /// Whether it lies where it computes, in the dtype of the computation.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Shape of the weight.
    pub fn shape(&self) -> Vec<i64> {
        match self {
            Self::Dense(weight) => weight.size(),
            Self::Int8(weight) => weight.shape(),
            Self::Nf4(weight) => weight.form().shape.clone(),
            Self::Fp8(weight) => weight.codes().size(),
            Self::Streamed(weight) => weight.shape(),
        }
    }

    /// The dtype in which the projection computes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dense(weight) => weight.kind(),
            Self::Int8(weight) => weight.kind(),
            Self::Nf4(weight) => weight.kind(),
            Self::Fp8(weight) => weight.kind(),
            Self::Streamed(weight) => weight.placement().kind,
        }
    }

    /// The device that computes with the weight.
    pub fn device(&self) -> tch::Device {
        match self {
            Self::Dense(weight) => weight.device(),
            Self::Int8(weight) => weight.device(),
            Self::Nf4(weight) => weight.device(),
            Self::Fp8(weight) => weight.device(),
            Self::Streamed(weight) => weight.placement().device,
        }
    }
}
