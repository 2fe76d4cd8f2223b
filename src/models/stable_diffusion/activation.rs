//! The activations that `config.json` names.

use serde::Deserialize;
use tch::Tensor;

/// An element-wise nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`: the one CLIP was trained with.
    QuickGelu,
    /// `x · Φ(x)` (arXiv 1606.08415).
    Gelu,
    /// `x · sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
}

impl Activation {
    /// Applied to each element.
    pub fn forward(self, xs: &Tensor) -> Tensor {
        match self {
            Self::QuickGelu => xs * (xs * 1.702).sigmoid(),
            Self::Gelu => xs.gelu("none"),
            Self::Silu => xs.silu(),
        }
    }
}
