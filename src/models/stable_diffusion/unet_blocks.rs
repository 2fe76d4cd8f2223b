//! The levels of the UNet: residual blocks, each followed by attention where the level has it.
//! Reference: diffusers `unet_2d_blocks.py`.
//!
//! Shapes: b batch, c channels, h and w height and width, t text length, e text width.

use super::resnet::{Downsample2d, ResnetBlock2d, ResnetSizes, Upsample2d};
use super::spatial_transformer::{Transformer2d, TransformerSizes};
use crate::error::Result;
use crate::libtorch::checkpoint::checkpoint;
use crate::nn::Loader;
use std::rc::Rc;
use tch::Tensor;

/// What every block of a forward is given beside its input.
pub struct Conditions<'a> {
    /// SiLU of the time embedding `[b, width]`.
    pub time: &'a Tensor,
    /// Text embeddings `[b, t, e]`.
    pub text: &'a Tensor,
    /// Compute each block's activations again in backward.
    pub checkpointing: bool,
}

/// The sizes of a level.
#[derive(Debug, Clone, Copy)]
pub struct LevelSizes {
    /// Channels that come in.
    pub inputs: i64,
    /// Channels inside and out.
    pub outputs: i64,
    /// Residual blocks.
    pub layers: i64,
    /// Width of the time embedding.
    pub time_embedding: i64,
    /// The norms of residual blocks.
    pub norm: (i64, f64),
    /// Attention after each residual block.
    pub attention: Option<TransformerSizes>,
    /// Change of resolution at the end.
    pub resample: bool,
}

/// A residual block and the attention after it.
struct Stage {
    resnet: Rc<ResnetBlock2d>,
    attention: Option<Rc<Transformer2d>>,
}

impl Stage {
    fn load(loader: &Loader, index: i64, inputs: i64, sizes: &LevelSizes) -> Result<Self> {
        let attentions = loader / "attentions";
        Ok(Self {
            resnet: load_resnet(loader, index, inputs, sizes, 1.0)?,
            attention: sizes
                .attention
                .map(|attention| Transformer2d::load(&(&attentions / index), attention).map(Rc::new))
                .transpose()?,
        })
    }

    fn forward(&self, xs: &Tensor, on: &Conditions) -> Tensor {
        let xs = run_resnet(&self.resnet, xs, on);
        match &self.attention {
            Some(attention) => run_attention(attention, &xs, on),
            None => xs,
        }
    }
}

fn load_resnet(
    loader: &Loader,
    index: i64,
    inputs: i64,
    sizes: &LevelSizes,
    output_scale: f64,
) -> Result<Rc<ResnetBlock2d>> {
    let sizes = ResnetSizes {
        inputs,
        outputs: sizes.outputs,
        time_embedding: Some(sizes.time_embedding),
        groups: sizes.norm.0,
        eps: sizes.norm.1,
        output_scale,
    };
    Ok(Rc::new(ResnetBlock2d::load(&(loader / "resnets" / index), sizes)?))
}

fn run_resnet(resnet: &Rc<ResnetBlock2d>, xs: &Tensor, on: &Conditions) -> Tensor {
    match on.checkpointing {
        true => {
            let resnet = resnet.clone();
            checkpoint(&[xs, on.time], move |inputs| resnet.forward(&inputs[0], Some(&inputs[1])))
        }
        false => resnet.forward(xs, Some(on.time)),
    }
}

fn run_attention(attention: &Rc<Transformer2d>, xs: &Tensor, on: &Conditions) -> Tensor {
    match on.checkpointing {
        true => {
            let attention = attention.clone();
            checkpoint(&[xs, on.text], move |inputs| attention.forward(&inputs[0], &inputs[1]))
        }
        false => attention.forward(xs, on.text),
    }
}

/// A level on the way down.
pub struct DownBlock {
    stages: Vec<Stage>,
    downsampler: Option<Downsample2d>,
}

impl DownBlock {
    /// Loads the level.
    pub fn load(loader: &Loader, sizes: LevelSizes, padding: i64) -> Result<Self> {
        Ok(Self {
            stages: (0..sizes.layers)
                .map(|i| Stage::load(loader, i, if i == 0 { sizes.inputs } else { sizes.outputs }, &sizes))
                .collect::<Result<_>>()?,
            downsampler: sizes
                .resample
                .then(|| Downsample2d::load(&(loader / "downsamplers.0"), sizes.outputs, padding))
                .transpose()?,
        })
    }

    /// `[b, inputs, h, w] -> [b, outputs, h/2, w/2]`; every stage's output is put on `skips`.
    pub fn forward(&self, xs: Tensor, skips: &mut Vec<Tensor>, on: &Conditions) -> Tensor {
        let mut xs = xs;
        for stage in &self.stages {
            xs = stage.forward(&xs, on);
            skips.push(xs.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            xs = downsampler.forward(&xs);
            skips.push(xs.shallow_clone());
        }
        xs
    }
}

/// The lowest level: residual blocks around attention.
pub struct MidBlock {
    first: Rc<ResnetBlock2d>,
    attention: Rc<Transformer2d>,
    second: Rc<ResnetBlock2d>,
}

impl MidBlock {
    /// Loads the level.
    pub fn load(loader: &Loader, sizes: LevelSizes, attention: TransformerSizes, output_scale: f64) -> Result<Self> {
        Ok(Self {
            first: load_resnet(loader, 0, sizes.outputs, &sizes, output_scale)?,
            attention: Rc::new(Transformer2d::load(&(loader / "attentions.0"), attention)?),
            second: load_resnet(loader, 1, sizes.outputs, &sizes, output_scale)?,
        })
    }

    /// `[b, c, h, w] -> [b, c, h, w]`
    pub fn forward(&self, xs: &Tensor, on: &Conditions) -> Tensor {
        let xs = run_attention(&self.attention, &run_resnet(&self.first, xs, on), on);
        run_resnet(&self.second, &xs, on)
    }
}

/// A level on the way up.
pub struct UpBlock {
    stages: Vec<Stage>,
    upsampler: Option<Upsample2d>,
}

impl UpBlock {
    /// Loads the level; `skip_channels` are those that stages take from the way down, in the order of use.
    pub fn load(loader: &Loader, sizes: LevelSizes, skip_channels: &[i64]) -> Result<Self> {
        Ok(Self {
            stages: (0..sizes.layers)
                .map(|i| {
                    let before = if i == 0 { sizes.inputs } else { sizes.outputs };
                    Stage::load(loader, i, before + skip_channels[i as usize], &sizes)
                })
                .collect::<Result<_>>()?,
            upsampler: sizes
                .resample
                .then(|| Upsample2d::load(&(loader / "upsamplers.0"), sizes.outputs))
                .transpose()?,
        })
    }

    /// `[b, inputs, h, w] -> [b, outputs, 2h, 2w]`, taking one of `skips` for each stage. The size out is that of the
    /// next skip, so that odd sizes meet again.
    pub fn forward(&self, xs: Tensor, skips: &mut Vec<Tensor>, on: &Conditions) -> Tensor {
        let mut xs = xs;
        for stage in &self.stages {
            let joined = match skips.pop() {
                Some(skip) => Tensor::cat(&[&xs, &skip], 1),
                None => xs,
            };
            xs = stage.forward(&joined, on);
        }
        let size = skips.last().map(|skip| skip.size()).map(|shape| (shape[2], shape[3]));
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&xs, size),
            None => xs,
        }
    }
}
