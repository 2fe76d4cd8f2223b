//! Normalisations.

use super::conv2d::channels_last;
use super::loader::Loader;
use crate::adapters::Param;
use crate::error::Result;
use crate::libtorch::group_norm::group_norm;
use crate::libtorch::planned::device_of;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

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
        in_one_kind(xs, [self.weight.get(), self.bias.get()], |xs, [weight, bias]| {
            xs.layer_norm([self.width], Some(weight), Some(bias), self.eps, true)
        })
    }
}

/// `norm` of `xs` by `params`, in float32 where their dtypes differ: what comes from layers in float32 is of the others' dtype again.
fn in_one_kind(xs: &Tensor, params: [Tensor; 2], norm: impl Fn(&Tensor, [&Tensor; 2]) -> Tensor) -> Tensor {
    let kind = params[0].kind();
    if xs.kind() == kind {
        return norm(xs, params.each_ref());
    }
    let wide = params.map(|param| param.to_kind(Kind::Float));
    norm(&xs.to_kind(Kind::Float), wide.each_ref()).to_kind(kind)
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
        self.on_cuda(xs, false).unwrap_or_else(|| self.by_libtorch(xs))
    }

    /// SiLU of [`GroupNorm::forward`].
    pub fn forward_silu(&self, xs: &Tensor) -> Tensor {
        self.on_cuda(xs, true).unwrap_or_else(|| self.by_libtorch(xs).silu())
    }

    fn on_cuda(&self, xs: &Tensor, silu: bool) -> Option<Tensor> {
        let (weight, bias) = (self.weight.get(), self.bias.get());
        // What comes from a layer in float32 is normed as wide.
        (xs.kind() == weight.kind()).then(|| group_norm(xs, &weight, &bias, self.groups, self.eps, silu)).flatten()
    }

    fn by_libtorch(&self, xs: &Tensor) -> Tensor {
        in_one_kind(xs, [self.weight.get(), self.bias.get()], |xs, [weight, bias]| self.norm(xs, weight, bias))
    }

    fn norm(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        // libtorch 2.11 crashes in the backward of a channels-last norm that learns from an input that does not.
        let learns_alone = (weight.requires_grad() || bias.requires_grad()) && !xs.requires_grad();
        let norm = |xs: &Tensor| xs.group_norm(self.groups, Some(weight), Some(bias), self.eps, true);
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
        device_of(xs) == Device::Cpu && partly_filled && places < SMALL_IMAGE && !xs.is_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;

    #[test]
    fn a_channels_last_image_is_normed_as_libtorch_does_and_stays_channels_last() {
        let mut generator = Generator::new(1);
        for (channels, groups, side, slow) in
            [(64, 16, 8, true), (160, 16, 4, true), (64, 8, 8, false), (16, 4, 32, false)]
        {
            let param = |name: &str, value: Tensor| Rc::new(Param::new(name.into(), value));
            let (weight, bias) = (generator.randn(&[channels]), generator.randn(&[channels]));
            let norm = GroupNorm {
                weight: param("weight", weight.shallow_clone()),
                bias: param("bias", bias.shallow_clone()),
                groups,
                eps: 1e-5,
            };
            let image = channels_last(&generator.randn(&[2, channels, side, side]));
            assert_eq!(norm.is_slow_channels_last(&image), slow, "{channels} channels in {groups} groups");
            let run = |norm: &dyn Fn(&Tensor) -> Tensor, kind: Kind| {
                let xs = image.detach().to_kind(kind).set_requires_grad(true);
                let ys = norm(&xs);
                (&ys * &image).sum(kind).backward();
                (ys, xs.grad())
            };
            let (ys, gradient) = run(&|xs| norm.forward(xs), Kind::Float);
            assert_eq!(ys.stride()[1], 1);
            let exact = |xs: &Tensor| {
                let (weight, bias) = (weight.to_kind(Kind::Double), bias.to_kind(Kind::Double));
                xs.contiguous().group_norm(groups, Some(&weight), Some(&bias), 1e-5, true)
            };
            let (wanted, wanted_gradient) = run(&exact, Kind::Double);
            for (actual, wanted) in [(&ys, &wanted), (&gradient, &wanted_gradient)] {
                let error = ((actual - wanted).abs().max() / wanted.abs().max()).double_value(&[]);
                assert!(error < 2e-6, "{channels} channels in {groups} groups: {error}");
            }
        }
    }
}
