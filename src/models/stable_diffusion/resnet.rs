//! Residual blocks and changes of resolution, of the UNet and of the VAE.
//! Reference: diffusers `resnet.py`, `downsampling.py`, `upsampling.py`.
//!
//! Shapes: b batch, c channels, h and w height and width.

use crate::error::Result;
use crate::nn::{Bias, Conv2d, GroupNorm, Linear, Loader};
use tch::Tensor;

/// Two convolutions and a shortcut; in the UNet the time embedding is added between them.
pub struct ResnetBlock2d {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    output_scale: f64,
}

/// The sizes of a residual block.
#[derive(Debug, Clone, Copy)]
pub struct ResnetSizes {
    /// Channels that come in.
    pub inputs: i64,
    /// Channels that go out.
    pub outputs: i64,
    /// Width of the time embedding, in the UNet.
    pub time_embedding: Option<i64>,
    /// Groups of the norms.
    pub groups: i64,
    /// The norms' epsilon.
    pub eps: f64,
    /// Divides the output (`mid_block_scale_factor`).
    pub output_scale: f64,
}

impl ResnetBlock2d {
    /// Loads a block.
    pub fn load(loader: &Loader, sizes: ResnetSizes) -> Result<Self> {
        let ResnetSizes { inputs, outputs, time_embedding, groups, eps, output_scale } = sizes;
        Ok(Self {
            norm1: GroupNorm::load(&(loader / "norm1"), groups, inputs, eps)?,
            conv1: Conv2d::load(&(loader / "conv1"), inputs, outputs, 3)?,
            time_emb_proj: time_embedding
                .map(|width| Linear::load(&(loader / "time_emb_proj"), width, outputs, Bias::Yes))
                .transpose()?,
            norm2: GroupNorm::load(&(loader / "norm2"), groups, outputs, eps)?,
            conv2: Conv2d::load(&(loader / "conv2"), outputs, outputs, 3)?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::load(&(loader / "conv_shortcut"), inputs, outputs, 1))
                .transpose()?,
            output_scale,
        })
    }

    /// `[b, inputs, h, w]` and the time embedding's SiLU `[b, width]` to `[b, outputs, h, w]`
    pub fn forward(&self, xs: &Tensor, time_embedding: Option<&Tensor>) -> Tensor {
        let mut hidden = self.conv1.forward(&self.norm1.forward_silu(xs));
        if let (Some(project), Some(embedding)) = (&self.time_emb_proj, time_embedding) {
            hidden += project.forward(embedding).unsqueeze(-1).unsqueeze(-1);
            // [b, outputs, 1, 1]
        }
        // In its own place, so that what it was is let go.
        hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden));
        let sum = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(xs) + hidden,
            None => xs + hidden,
        };
        match self.output_scale == 1.0 {
            true => sum,
            false => sum / self.output_scale,
        }
    }
}

/// A convolution of stride 2.
pub struct Downsample2d {
    conv: Conv2d,
    asymmetric: bool,
}

impl Downsample2d {
    /// Loads the convolution; a `padding` of 0 pads right and bottom by one, as the VAE does.
    pub fn load(loader: &Loader, channels: i64, padding: i64) -> Result<Self> {
        let conv = Conv2d::strided(&(loader / "conv"), channels, channels, 3, (2, padding))?;
        Ok(Self { conv, asymmetric: padding == 0 })
    }

    /// `[b, c, h, w] -> [b, c, h/2, w/2]`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        match self.asymmetric {
            true => self.conv.forward(&xs.constant_pad_nd([0, 1, 0, 1])),
            false => self.conv.forward(xs),
        }
    }
}

/// Nearest-neighbour doubling, then a convolution.
pub struct Upsample2d {
    conv: Conv2d,
}

impl Upsample2d {
    /// Loads the convolution.
    pub fn load(loader: &Loader, channels: i64) -> Result<Self> {
        Ok(Self { conv: Conv2d::load(&(loader / "conv"), channels, channels, 3)? })
    }

    /// `[b, c, h, w] -> [b, c, height, width]`; twice the size where none is given.
    pub fn forward(&self, xs: &Tensor, size: Option<(i64, i64)>) -> Tensor {
        let shape = xs.size();
        let (height, width) = size.unwrap_or((shape[2] * 2, shape[3] * 2));
        self.conv.forward(&xs.upsample_nearest2d([height, width], None, None))
    }
}
