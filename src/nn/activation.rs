//! The activations that `config.json` names.

use crate::libtorch::gates;
use serde::Deserialize;
use tch::Tensor;

/// An element-wise nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`: the one CLIP was trained with.
    QuickGelu,
    /// `x · Φ(x)` (arXiv 1606.08415).
    #[serde(alias = "gelu_python")]
    Gelu,
    /// The same with Φ through a tanh (the paper's approximation).
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
}

impl Activation {
    /// Applied to each element.
    pub fn forward(self, xs: &Tensor) -> Tensor {
        match self {
            Self::QuickGelu => gates::quick_gelu(xs),
            Self::Gelu => xs.gelu("none"),
            Self::GeluNew => xs.gelu("tanh"),
            Self::Relu => xs.relu(),
            Self::Silu => xs.silu(),
        }
    }
}
