//! Normalisation by the root mean square alone.

use super::loader::Loader;
use crate::adapters::Param;
use crate::error::Result;
use std::rc::Rc;
use tch::Tensor;

/// Divides by the root mean square over the last dimension, and scales (arXiv 1910.07467).
pub struct RmsNorm {
    weight: Rc<Param>,
    width: i64,
    eps: f64,
}

impl RmsNorm {
    /// Loads a weight of `[width]`.
    pub fn load(loader: &Loader, width: i64, eps: f64) -> Result<Self> {
        Ok(Self { weight: loader.param("weight", &[width])?, width, eps })
    }

    /// `[.., width] -> [.., width]`, in the weight's dtype; the mean is taken in float32.
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let weight = self.weight.get();
        match xs.kind() == weight.kind() {
            true => xs.rms_norm(self.width, Some(&weight), self.eps),
            false => xs.rms_norm(self.width, None::<&Tensor>, self.eps).to_kind(weight.kind()) * weight,
        }
    }
}
