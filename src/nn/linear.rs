//! A linear projection.

use super::loader::{Bias, Loader};
use crate::adapters::Site;
use crate::error::Result;
use crate::weights::Op;
use std::rc::Rc;
use tch::Tensor;

/// `xs Wᵀ + b`, with the adapters of its site.
pub struct Linear(Rc<Site>);

impl Linear {
    /// Loads a weight `[outputs, inputs]`.
    pub fn load(loader: &Loader, inputs: i64, outputs: i64, bias: Bias) -> Result<Self> {
        Ok(Self(loader.site(Op::Linear, &[outputs, inputs], bias)?))
    }

    /// `[.., inputs] -> [.., outputs]`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        self.0.forward(xs)
    }
}
