//! Normalisations.

use super::conv2d::channels_last;
use super::loader::Loader;
use crate::adapters::Param;
use crate::error::Result;
use std::rc::Rc;
use tch::{Device, Tensor};

/// Places of an image below which libtorch's channels-last norm goes through the channels group by group, in vectors of `VECTOR`.
const SMALL_IMAGE: i64 = 1024;
const VECTOR: i64 = 8;

/// Layer normalisation over the last dimension (arXiv 1607.06450).
pub struct LayerNorm {
    weight: Rc<Param>,
    bias: Rc<Param>,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    /// Loads a weight and a bias of `[width]`.
    pub fn load(loader: &Loader, width: i64, eps: f64) -> Result<Self> {
        let (weight, bias) = (loader.param("weight", &[width])?, loader.param("bias", &[width])?);
        Ok(Self { weight, bias, width, eps })
    }

    /// `[.., width] -> [.., width]`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        xs.layer_norm([self.width], Some(&self.weight.get()), Some(&self.bias.get()), self.eps, true)
    }
}

/// Group normalisation over channels (arXiv 1803.08494).
pub struct GroupNorm {
    weight: Rc<Param>,
    bias: Rc<Param>,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Loads a weight and a bias of `[channels]`.
    pub fn load(loader: &Loader, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        let (weight, bias) = (loader.param("weight", &[channels])?, loader.param("bias", &[channels])?);
        Ok(Self { weight, bias, groups, eps })
    }

    /// `[batch, channels, h, w] -> [batch, channels, h, w]`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.get(), self.bias.get());
        // libtorch 2.11 crashes in the backward of a channels-last norm that learns from an input that does not.
        let learns_alone = (weight.requires_grad() || bias.requires_grad()) && !xs.requires_grad();
        let norm = |xs: &Tensor| xs.group_norm(self.groups, Some(&weight), Some(&bias), self.eps, true);
        if learns_alone {
            norm(&xs.contiguous())
        } else if self.is_slow_channels_last(xs) {
            channels_last(&norm(&xs.contiguous()))
        } else {
            norm(xs)
        }
    }

    /// Groups that do not fill vectors: laying the image out twice takes a quarter of the time (measured).
    fn is_slow_channels_last(&self, xs: &Tensor) -> bool {
        let (channels, places) = (xs.size()[1], xs.size()[2..].iter().product::<i64>());
        let of_a_group = channels / self.groups;
        let partly_filled = of_a_group < 2 * VECTOR && of_a_group % VECTOR != 0;
        xs.device() == Device::Cpu && partly_filled && places < SMALL_IMAGE && !xs.is_contiguous()
    }
}
