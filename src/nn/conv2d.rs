//! A two-dimensional convolution.

use super::loader::{Bias, Loader};
use crate::adapters::{Site, SiteTraits};
use crate::error::Result;
use crate::weights::{Op, Stride};
use std::rc::Rc;
use tch::Tensor;

/// A convolution with the adapters of its site.
pub struct Conv2d(Rc<Site>);

impl Conv2d {
    /// Loads a weight `[outputs, inputs, kernel, kernel]` and its bias; the input is padded by `kernel / 2`.
    pub fn load(loader: &Loader, inputs: i64, outputs: i64, kernel: i64) -> Result<Self> {
        Self::strided(loader, inputs, outputs, kernel, (1, kernel / 2))
    }

    /// The same with a stride and a padding of its own.
    pub fn strided(
        loader: &Loader,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        (stride, padding): (i64, i64),
    ) -> Result<Self> {
        let op = Op::Conv2d(Stride { stride, padding });
        Ok(Self(loader.site(op, &[outputs, inputs, kernel, kernel], Bias::Yes, SiteTraits::default())?))
    }

    /// `[batch, inputs, h, w] -> [batch, outputs, h', w']`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        self.0.forward(xs)
    }
}

/// `xs` `[batch, c, h, w]` laid out channels-last: convolutions are a quarter faster on the CPU, and the layout of a GPU's tensor cores.
pub fn channels_last(xs: &Tensor) -> Tensor {
    xs.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
