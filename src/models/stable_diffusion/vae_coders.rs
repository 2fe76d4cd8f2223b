//! The two halves of the VAE: images to latents' moments, latents to images.
//! Reference: diffusers `autoencoders/vae.py`.
//!
//! Shapes: b batch, c channels, h and w height and width.

use super::resnet::{Downsample2d, ResnetBlock2d, ResnetSizes, Upsample2d};
use super::vae::VaeConfig;
use crate::error::Result;
use crate::nn::{attend, channels_last, Bias, Conv2d, GroupNorm, Linear, Loader};
use tch::Tensor;

const EPS: f64 = 1e-6;

fn load_resnets(
    loader: &Loader,
    config: &VaeConfig,
    inputs: i64,
    outputs: i64,
    layers: i64,
) -> Result<Vec<ResnetBlock2d>> {
    (0..layers)
        .map(|i| {
            let sizes = ResnetSizes {
                inputs: if i == 0 { inputs } else { outputs },
                outputs,
                time_embedding: None,
                groups: config.norm_num_groups,
                eps: EPS,
                output_scale: 1.0,
            };
            ResnetBlock2d::load(&(loader / "resnets" / i), sizes)
        })
        .collect()
}

fn run_all(resnets: &[ResnetBlock2d], xs: Tensor) -> Tensor {
    resnets.iter().fold(xs, |xs, resnet| resnet.forward(&xs, None))
}

/// Attention of one head over all pixels, added to its input.
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl PixelAttention {
    fn load(loader: &Loader, channels: i64, groups: i64) -> Result<Self> {
        let linear = |name: &str| Linear::load(&(loader / name), channels, channels, Bias::Yes);
        Ok(Self {
            group_norm: GroupNorm::load(&(loader / "group_norm"), groups, channels, EPS)?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
        })
    }

    /// `[b, c, h, w] -> [b, c, h, w]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        let shape = xs.size();
        let rows = self.group_norm.forward(xs).permute([0, 2, 3, 1]).flatten(1, 2); // [b, h·w, c]
        let (q, k, v) = (self.to_q.forward(&rows), self.to_k.forward(&rows), self.to_v.forward(&rows));
        let ys = self.to_out.forward(&attend(&q, &k, &v, 1, false));
        ys.view([shape[0], shape[2], shape[3], shape[1]]).permute([0, 3, 1, 2]) + xs
    }
}

struct MidBlock {
    resnets: Vec<ResnetBlock2d>,
    attention: Option<PixelAttention>,
}

impl MidBlock {
    fn load(loader: &Loader, config: &VaeConfig, channels: i64) -> Result<Self> {
        Ok(Self {
            resnets: load_resnets(loader, config, channels, channels, 2)?,
            attention: config
                .mid_block_add_attention
                .then(|| PixelAttention::load(&(loader / "attentions.0"), channels, config.norm_num_groups))
                .transpose()?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = self.resnets[0].forward(xs, None);
        let xs = match &self.attention {
            Some(attention) => attention.forward(&xs),
            None => xs,
        };
        self.resnets[1].forward(&xs, None)
    }
}

/// Images to moments.
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock2d>, Option<Downsample2d>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// Loads the encoder.
    pub fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let mut down_blocks = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let block = loader / "down_blocks" / i;
            let resnets =
                load_resnets(&block, config, channels[i.saturating_sub(1)], outputs, config.layers_per_block)?;
            let downsampler = (i + 1 < channels.len())
                .then(|| Downsample2d::load(&(&block / "downsamplers.0"), outputs, 0))
                .transpose()?;
            down_blocks.push((resnets, downsampler));
        }
        Ok(Self {
            conv_in: Conv2d::load(&(loader / "conv_in"), config.in_channels, channels[0], 3)?,
            down_blocks,
            mid_block: MidBlock::load(&(loader / "mid_block"), config, last)?,
            conv_norm_out: GroupNorm::load(&(loader / "conv_norm_out"), config.norm_num_groups, last, EPS)?,
            conv_out: Conv2d::load(&(loader / "conv_out"), last, config.latent_channels * 2, 3)?,
        })
    }

    /// `[b, 3, h, w] -> [b, 2 · latent channels, h/f, w/f]`
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let mut xs = self.conv_in.forward(&channels_last(images));
        for (resnets, downsampler) in &self.down_blocks {
            xs = run_all(resnets, xs);
            if let Some(downsampler) = downsampler {
                xs = downsampler.forward(&xs);
            }
        }
        xs = self.mid_block.forward(&xs);
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&xs))
    }
}

/// Latents to images.
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock2d>, Option<Upsample2d>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// Loads the decoder.
    pub fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut up_blocks = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let block = loader / "up_blocks" / i;
            let inputs = channels[i.saturating_sub(1)];
            let resnets = load_resnets(&block, config, inputs, outputs, config.layers_per_block + 1)?;
            let upsampler =
                (i + 1 < channels.len()).then(|| Upsample2d::load(&(&block / "upsamplers.0"), outputs)).transpose()?;
            up_blocks.push((resnets, upsampler));
        }
        Ok(Self {
            conv_in: Conv2d::load(&(loader / "conv_in"), config.latent_channels, first, 3)?,
            mid_block: MidBlock::load(&(loader / "mid_block"), config, first)?,
            up_blocks,
            conv_norm_out: GroupNorm::load(&(loader / "conv_norm_out"), config.norm_num_groups, last, EPS)?,
            conv_out: Conv2d::load(&(loader / "conv_out"), last, config.out_channels, 3)?,
        })
    }

    /// `[b, latent channels, h, w] -> [b, 3, h·f, w·f]`
    pub fn forward(&self, latents: &Tensor) -> Tensor {
        let mut xs = self.mid_block.forward(&self.conv_in.forward(&channels_last(latents)));
        for (resnets, upsampler) in &self.up_blocks {
            xs = run_all(resnets, xs);
            if let Some(upsampler) = upsampler {
                xs = upsampler.forward(&xs, None);
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&xs))
    }
}
