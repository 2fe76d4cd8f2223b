//! The UNet that predicts a latent's noise, conditioned on timestep and text.
//! Paper: arXiv 2112.10752. Reference: diffusers `unet_2d_condition.py`.
//!
//! Shapes: b batch, h and w height and width of the latent, t text length, e text width.

use super::config_file::{self, check_sizes, MAX_LAYERS, MAX_LEVELS};
use super::spatial_transformer::TransformerSizes;
use super::time_embedding::{sinusoids, TimestepEmbedding};
use super::unet_blocks::{Conditions, DownBlock, LevelSizes, MidBlock, UpBlock};
use crate::error::{Error, Result};
use crate::nn::{channels_last, Conv2d, GroupNorm, Loader};
use serde::Deserialize;
use std::path::Path;
use tch::Tensor;

/// One number for all levels, or one a level.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same for all.
    Same(i64),
    /// One a level.
    Each(Vec<i64>),
}

impl PerLevel {
    /// The number of `level`.
    pub fn at(&self, level: usize) -> i64 {
        match self {
            Self::Same(number) => *number,
            Self::Each(numbers) => numbers.get(level).or(numbers.last()).copied().unwrap_or(1),
        }
    }
}

/// `unet/config.json`; absent fields are diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// Channels of the latent.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Latent's height and width that the model was made for.
    pub sample_size: Option<i64>,
    /// Kind of each level on the way down.
    pub down_block_types: Vec<String>,
    /// Kind of each level on the way up.
    pub up_block_types: Vec<String>,
    /// Channels of each level.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub layers_per_block: i64,
    /// Number of heads, in spite of its name (a misnomer that diffusers keeps).
    pub attention_head_dim: PerLevel,
    /// Number of heads, where a configuration names it right.
    pub num_attention_heads: Option<PerLevel>,
    /// Width of the text embeddings.
    pub cross_attention_dim: i64,
    /// Transformer blocks at each attention.
    pub transformer_layers_per_block: PerLevel,
    /// Linear projections around them.
    pub use_linear_projection: bool,
    /// Groups of the norms.
    pub norm_num_groups: i64,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: i64,
    /// Divides the middle block's outputs.
    pub mid_block_scale_factor: f64,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Shift in the sinusoids' frequencies.
    pub freq_shift: f64,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            in_channels: 4,
            out_channels: 4,
            sample_size: None,
            down_block_types: names(&[
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ]),
            up_block_types: names(&["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            attention_head_dim: PerLevel::Same(8),
            num_attention_heads: None,
            cross_attention_dim: 1280,
            transformer_layers_per_block: PerLevel::Same(1),
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        }
    }
}

/// Fields of the configuration that must have these values.
const FIXED: &[(&str, &[&str])] = &[
    ("_class_name", &["UNet2DConditionModel"]),
    ("act_fn", &["silu", "swish"]),
    ("addition_embed_type", &[]),
    ("attention_type", &["default"]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &[]),
    ("class_embeddings_concat", &["false"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &[]),
    ("dropout", &["0", "0.0"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &[]),
    ("encoder_hid_dim_type", &[]),
    ("mid_block_only_cross_attention", &["false"]),
    ("mid_block_type", &["UNetMidBlock2DCrossAttn"]),
    ("num_class_embeds", &[]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["default"]),
    ("reverse_transformer_layers_per_block", &[]),
    ("time_cond_proj_dim", &[]),
    ("time_embedding_act_fn", &[]),
    ("time_embedding_dim", &[]),
    ("time_embedding_type", &["positional"]),
    ("timestep_post_act", &[]),
];

impl UNetConfig {
    /// Reads `config.json` in `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = config_file::read(&path, FIXED)?;
        config.checked().map_err(|message| Error::file(&path, message))
    }

    pub(super) fn checked(self) -> std::result::Result<Self, String> {
        let levels = self.block_out_channels.len();
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            return Err("block_out_channels, down_block_types and up_block_types must have one length".into());
        }
        if levels > MAX_LEVELS {
            return Err(format!("{levels} levels are more than the {MAX_LEVELS} that are supported"));
        }
        check_sizes(&[
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("cross_attention_dim", self.cross_attention_dim),
            ("norm_num_groups", self.norm_num_groups),
        ])?;
        for &channels in &self.block_out_channels {
            check_sizes(&[("block_out_channels", channels)])?;
        }
        let depth = (0..levels).map(|level| self.transformer_layers_per_block.at(level)).max().unwrap_or(1);
        if self.layers_per_block > MAX_LAYERS || !(1..=MAX_LAYERS).contains(&depth) {
            return Err(format!("layers_per_block and transformer_layers_per_block must be 1 to {MAX_LAYERS}"));
        }
        if !(0..=1).contains(&self.downsample_padding) {
            return Err(format!("`downsample_padding` is {}; it must be 0 or 1", self.downsample_padding));
        }
        let known = |kind: &str, plain: &str, cross: &str| kind == plain || kind == cross;
        let unknown = self
            .down_block_types
            .iter()
            .find(|kind| !known(kind, "DownBlock2D", "CrossAttnDownBlock2D"))
            .or(self.up_block_types.iter().find(|kind| !known(kind, "UpBlock2D", "CrossAttnUpBlock2D")));
        if let Some(kind) = unknown {
            return Err(format!("the block type {kind} is not supported (`down_block_types`, `up_block_types`)"));
        }
        if let Some(channels) =
            self.block_out_channels.iter().find(|&&c| c <= 0 || c % self.norm_num_groups.max(1) != 0)
        {
            return Err(format!(
                "{channels} channels cannot be parted into {} groups (`norm_num_groups`)",
                self.norm_num_groups
            ));
        }
        let heads_fit = (0..levels).all(|i| self.heads(i) > 0 && self.block_out_channels[i] % self.heads(i) == 0);
        if !heads_fit {
            return Err(
                "`block_out_channels` cannot be parted into that many attention heads (`attention_head_dim`)".into()
            );
        }
        match self.in_channels {
            4 => Ok(self),
            9 => Err("this is an inpainting model (9 input channels), which cannot be trained or sampled here".into()),
            other => Err(format!("`in_channels` is {other}; Stable Diffusion's is 4")),
        }
    }

    /// Attention heads at `level`.
    pub fn heads(&self, level: usize) -> i64 {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }

    /// Width of the time embedding.
    pub fn time_embedding_width(&self) -> i64 {
        self.block_out_channels[0] * 4
    }

    /// What latent sizes must be multiples of, so that no level has an odd one.
    pub fn size_multiple(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    fn transformer(&self, level: usize) -> TransformerSizes {
        TransformerSizes {
            channels: self.block_out_channels[level],
            heads: self.heads(level),
            text_width: self.cross_attention_dim,
            layers: self.transformer_layers_per_block.at(level),
            groups: self.norm_num_groups,
            linear_projection: self.use_linear_projection,
        }
    }

    /// The sizes of the level with `block_out_channels[level]`, entered with `inputs` channels.
    fn level(&self, level: usize, inputs: i64, layers: i64, attention: bool, resample: bool) -> LevelSizes {
        LevelSizes {
            inputs,
            outputs: self.block_out_channels[level],
            layers,
            time_embedding: self.time_embedding_width(),
            norm: (self.norm_num_groups, self.norm_eps),
            attention: attention.then(|| self.transformer(level)),
            resample,
        }
    }
}

/// The UNet.
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNetConfig,
}

impl UNet2DConditionModel {
    /// Loads the UNet.
    pub fn load(loader: &Loader, config: &UNetConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        Ok(Self {
            conv_in: Conv2d::load(&(loader / "conv_in"), config.in_channels, channels[0], 3)?,
            time_embedding: TimestepEmbedding::load(
                &(loader / "time_embedding"),
                channels[0],
                config.time_embedding_width(),
            )?,
            down_blocks: load_down_blocks(&(loader / "down_blocks"), config)?,
            mid_block: MidBlock::load(
                &(loader / "mid_block"),
                config.level(last, channels[last], 1, true, false),
                config.transformer(last),
                config.mid_block_scale_factor,
            )?,
            up_blocks: load_up_blocks(&(loader / "up_blocks"), config)?,
            conv_norm_out: GroupNorm::load(
                &(loader / "conv_norm_out"),
                config.norm_num_groups,
                channels[0],
                config.norm_eps,
            )?,
            conv_out: Conv2d::load(&(loader / "conv_out"), channels[0], config.out_channels, 3)?,
            config: config.clone(),
        })
    }

    /// The prediction `[b, out_channels, h, w]` for noisy latents `[b, in_channels, h, w]`, timesteps `[b]` and text
    /// embeddings `[b, t, e]`, in the dtype of the latents. With `checkpointing` the activations of each residual block
    /// and each transformer are computed again in backward.
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, text: &Tensor, checkpointing: bool) -> Tensor {
        let config = &self.config;
        let time = sinusoids(timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift);
        // Every residual block starts with the SiLU of the embedding: it is taken once.
        let time = self.time_embedding.forward(&time.to_kind(latents.kind())).silu();
        let on = Conditions { time: &time, text, checkpointing };

        let mut xs = self.conv_in.forward(&channels_last(latents));
        let mut skips = vec![xs.shallow_clone()];
        for block in &self.down_blocks {
            xs = block.forward(xs, &mut skips, &on);
        }
        xs = self.mid_block.forward(&xs, &on);
        for block in &self.up_blocks {
            xs = block.forward(xs, &mut skips, &on);
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&xs))
    }
}

fn load_down_blocks(loader: &Loader, config: &UNetConfig) -> Result<Vec<DownBlock>> {
    let channels = &config.block_out_channels;
    (0..channels.len())
        .map(|i| {
            let inputs = channels[i.saturating_sub(1)];
            let attention = config.down_block_types[i].starts_with("CrossAttn");
            let sizes = config.level(i, inputs, config.layers_per_block, attention, i + 1 < channels.len());
            DownBlock::load(&(loader / i), sizes, config.downsample_padding)
        })
        .collect()
}

fn load_up_blocks(loader: &Loader, config: &UNetConfig) -> Result<Vec<UpBlock>> {
    let channels = &config.block_out_channels;
    let levels = channels.len();
    let layers = config.layers_per_block + 1;
    (0..levels)
        .map(|i| {
            let level = levels - 1 - i;
            let inputs = channels[(level + 1).min(levels - 1)];
            // The last stage takes what the level above handed down (or conv_in's output).
            let mut skips = vec![channels[level]; layers as usize];
            skips[layers as usize - 1] = channels[level.saturating_sub(1)];
            let attention = config.up_block_types[i].starts_with("CrossAttn");
            UpBlock::load(&(loader / i), config.level(level, inputs, layers, attention, i + 1 < levels), &skips)
        })
        .collect()
}
