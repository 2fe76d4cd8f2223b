//! Transformer blocks over the pixels of a latent, with attention to the prompt.
//! Reference: diffusers `transformer_2d.py`, `attention.py`.
//!
//! Shapes: b batch, c channels, h and w height and width, s = h·w, t text length, e text width.

use crate::error::Result;
use crate::libtorch::gates::gated_gelu;
use crate::nn::{attend, attend_in_slices, Bias, Conv2d, GroupNorm, LayerNorm, Linear, Loader};
use tch::Tensor;

/// The sizes of a spatial transformer.
#[derive(Debug, Clone, Copy)]
pub struct TransformerSizes {
    /// Channels in, through and out.
    pub channels: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of the text embeddings.
    pub text_width: i64,
    /// Transformer blocks.
    pub layers: i64,
    /// Groups of the norm.
    pub groups: i64,
    /// Linear layers rather than 1×1 convolutions before and after the blocks.
    pub linear_projection: bool,
}

/// A spatial transformer.
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn load(loader: &Loader, channels: i64, linear: bool) -> Result<Self> {
        Ok(match linear {
            true => Self::Linear(Linear::load(loader, channels, channels, Bias::Yes)?),
            false => Self::Conv(Conv2d::load(loader, channels, channels, 1)?),
        })
    }
}

/// `[b, c, h, w] -> [b, s, c]`
fn to_rows(xs: &Tensor) -> Tensor {
    xs.permute([0, 2, 3, 1]).flatten(1, 2)
}

/// `[b, s, c] -> [b, c, h, w]`, channels-last as it lies
fn to_image(xs: &Tensor, height: i64, width: i64) -> Tensor {
    let shape = xs.size();
    xs.view([shape[0], height, width, shape[2]]).permute([0, 3, 1, 2])
}

impl Transformer2d {
    /// Loads a spatial transformer.
    pub fn load(loader: &Loader, sizes: TransformerSizes) -> Result<Self> {
        let blocks = loader / "transformer_blocks";
        Ok(Self {
            norm: GroupNorm::load(&(loader / "norm"), sizes.groups, sizes.channels, 1e-6)?,
            proj_in: Projection::load(&(loader / "proj_in"), sizes.channels, sizes.linear_projection)?,
            transformer_blocks: (0..sizes.layers)
                .map(|i| TransformerBlock::load(&(&blocks / i), sizes))
                .collect::<Result<_>>()?,
            proj_out: Projection::load(&(loader / "proj_out"), sizes.channels, sizes.linear_projection)?,
        })
    }

    /// `[b, c, h, w]` and text `[b, t, e]` to `[b, c, h, w]`
    pub fn forward(&self, xs: &Tensor, text: &Tensor) -> Tensor {
        let (height, width) = (xs.size()[2], xs.size()[3]);
        let normed = self.norm.forward(xs);
        let mut rows = match &self.proj_in {
            Projection::Conv(conv) => to_rows(&conv.forward(&normed)),
            Projection::Linear(linear) => linear.forward(&to_rows(&normed)),
        };
        for block in &self.transformer_blocks {
            rows = block.forward(&rows, text);
        }
        let image = match &self.proj_out {
            Projection::Conv(conv) => conv.forward(&to_image(&rows, height, width)),
            Projection::Linear(linear) => to_image(&linear.forward(&rows), height, width),
        };
        image + xs
    }
}

/// Self-attention, attention to the text, feed-forward; each normed before and added to its input.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn load(loader: &Loader, sizes: TransformerSizes) -> Result<Self> {
        let TransformerSizes { channels, heads, text_width, .. } = sizes;
        Ok(Self {
            norm1: LayerNorm::load(&(loader / "norm1"), channels, 1e-5)?,
            attn1: Attention::load(&(loader / "attn1"), channels, channels, heads)?,
            norm2: LayerNorm::load(&(loader / "norm2"), channels, 1e-5)?,
            attn2: Attention::load(&(loader / "attn2"), channels, text_width, heads)?,
            norm3: LayerNorm::load(&(loader / "norm3"), channels, 1e-5)?,
            ff: FeedForward::load(&(loader / "ff"), channels)?,
        })
    }

    /// `[b, s, c]` and `[b, t, e]` to `[b, s, c]`
    fn forward(&self, xs: &Tensor, text: &Tensor) -> Tensor {
        let xs = self.attn1.to_itself(&self.norm1.forward(xs)) + xs;
        let xs = self.attn2.forward(&self.norm2.forward(&xs), text) + xs;
        self.ff.forward(&self.norm3.forward(&xs)) + xs
    }
}

/// Attention with its four projections.
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    slicing: bool,
}

impl Attention {
    fn load(loader: &Loader, channels: i64, context: i64, heads: i64) -> Result<Self> {
        Ok(Self {
            to_q: Linear::load(&(loader / "to_q"), channels, channels, Bias::No)?,
            to_k: Linear::load(&(loader / "to_k"), context, channels, Bias::No)?,
            to_v: Linear::load(&(loader / "to_v"), context, channels, Bias::No)?,
            to_out: Linear::load(&(loader / "to_out.0"), channels, channels, Bias::Yes)?,
            heads,
            slicing: loader.slicing(),
        })
    }

    /// `[b, s, c]` and `[b, t, context]` to `[b, s, c]`
    fn forward(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let q = self.to_q.forward(xs);
        let [k, v] = Linear::forward_all([&self.to_k, &self.to_v], context);
        self.attend(&q, &k, &v)
    }

    /// The same of `xs` to itself.
    fn to_itself(&self, xs: &Tensor) -> Tensor {
        let [q, k, v] = Linear::forward_all([&self.to_q, &self.to_k, &self.to_v], xs);
        self.attend(&q, &k, &v)
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        self.to_out.forward(&match self.slicing {
            true => attend_in_slices(q, k, v, self.heads),
            false => attend(q, k, v, self.heads, false),
        })
    }
}

/// A gated GELU of four times the width (arXiv 2002.05202).
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn load(loader: &Loader, channels: i64) -> Result<Self> {
        Ok(Self {
            proj: Linear::load(&(loader / "net.0.proj"), channels, channels * 8, Bias::Yes)?,
            out: Linear::load(&(loader / "net.2"), channels * 4, channels, Bias::Yes)?,
        })
    }

    /// `[b, s, c] -> [b, s, c]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.out.forward(&gated_gelu(&self.proj.forward(xs)))
    }
}
