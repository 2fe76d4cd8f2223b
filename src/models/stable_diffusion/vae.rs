//! The variational autoencoder between images and latents (arXiv 1312.6114, arXiv 2112.10752).
//! Reference: diffusers `autoencoder_kl.py`.
//!
//! Shapes: b batch, h and w height and width of the image, f the scale factor (8 for Stable Diffusion).

use super::config_file::{self, check_sizes, MAX_LAYERS, MAX_LEVELS};
use super::vae_coders::{Decoder, Encoder};
use super::vae_tiling::Tiles;
use crate::error::{Error, Result};
use crate::nn::{Conv2d, Loader};
use serde::Deserialize;
use std::path::Path;
use tch::{Kind, Tensor};

/// `vae/config.json`; absent fields are diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of images in.
    pub in_channels: i64,
    /// Channels of images out.
    pub out_channels: i64,
    /// Channels of latents.
    pub latent_channels: i64,
    /// Channels of each level.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of a level in the encoder; one more in the decoder.
    pub layers_per_block: i64,
    /// Groups of the norms.
    pub norm_num_groups: i64,
    /// Height and width in pixels that it was trained at: a tile's.
    pub sample_size: i64,
    /// Latents are multiplied by this for the UNet.
    pub scaling_factor: f64,
    /// Attention in the middle.
    pub mid_block_add_attention: bool,
    /// A 1×1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// A 1×1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Its numbers are too large for float16, in Stable Diffusion XL.
    pub force_upcast: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            force_upcast: true,
        }
    }
}

/// Fields of the configuration that must have these values.
const FIXED: &[(&str, &[&str])] = &[
    ("_class_name", &["AutoencoderKL"]),
    ("act_fn", &["silu", "swish"]),
    ("latents_mean", &[]),
    ("latents_std", &[]),
    ("shift_factor", &[]),
];

impl VaeConfig {
    /// Reads `config.json` in `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = config_file::read(&path, FIXED)?;
        config.checked().map_err(|message| Error::file(&path, message))
    }

    pub(super) fn checked(self) -> std::result::Result<Self, String> {
        let (groups, channels) = (self.norm_num_groups, &self.block_out_channels);
        check_sizes(&[
            ("norm_num_groups", groups),
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("in_channels", self.in_channels),
        ])?;
        for &channels in channels {
            check_sizes(&[("block_out_channels", channels)])?;
        }
        if channels.len() > MAX_LEVELS || self.layers_per_block > MAX_LAYERS {
            return Err(format!("more than {MAX_LEVELS} levels or {MAX_LAYERS} layers a level are not supported"));
        }
        if !self.scaling_factor.is_finite() || self.scaling_factor <= 0.0 {
            return Err(format!("`scaling_factor` is {}; it must be a positive number", self.scaling_factor));
        }
        match channels.is_empty() || channels.iter().any(|&c| c <= 0 || c % groups != 0) {
            true => Err(format!("`block_out_channels` {channels:?} do not fit `norm_num_groups` {groups}")),
            false => Ok(self),
        }
    }

    /// The side of a tile in latents' places, where pictures can be decoded in tiles.
    pub fn tile_side(&self) -> Option<i64> {
        Tiles::of(self).map(|tiles| tiles.side())
    }

    /// Pixels along one side of a latent's place: 8 for Stable Diffusion.
    pub fn scale_factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// What the encoder says of an image: a normal distribution over latents, unscaled.
pub struct LatentDistribution {
    /// `[b, latent channels, h/f, w/f]`
    pub mean: Tensor,
    /// Logarithm of the variance, of the same shape, kept in [-30, 20] as diffusers does.
    pub log_variance: Tensor,
}

impl LatentDistribution {
    /// Whether both are numbers. Waits for the device.
    pub fn is_finite(&self) -> bool {
        // What is no number stays none in a sum, and no sum of float64 passes its range.
        let sum = self.mean.sum(Kind::Double) + self.log_variance.sum(Kind::Double);
        sum.double_value(&[]).is_finite()
    }

    /// A draw, from standard normal `noise` of the latents' shape.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.log_variance * 0.5).exp() * noise
    }
}

/// The half of the autoencoder that training needs: images to latents.
pub struct VaeEncoder {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    tiles: Option<Tiles>,
    slicing: bool,
    tiling: bool,
}

impl VaeEncoder {
    /// Loads the encoder of the autoencoder at `loader`.
    pub fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        let moments = config.latent_channels * 2;
        let conv = || Conv2d::load(&(loader / "quant_conv"), moments, moments, 1);
        Ok(Self {
            encoder: Encoder::load(&(loader / "encoder"), config)?,
            quant_conv: config.use_quant_conv.then(conv).transpose()?,
            tiles: Tiles::of(config),
            slicing: loader.slicing(),
            tiling: false,
        })
    }

    /// Whether images larger than a tile are encoded in overlapping tiles, for the memory of one tile.
    pub fn use_tiling(&mut self, tiling: bool) {
        self.tiling = tiling;
    }

    fn moments(&self, images: &Tensor) -> Tensor {
        let whole = |images: &Tensor| {
            let moments = self.encoder.forward(images);
            self.quant_conv.as_ref().map_or_else(|| moments.shallow_clone(), |conv| conv.forward(&moments))
        };
        match self.tiles.filter(|_| self.tiling) {
            Some(tiles) => tiles.encode(images, whole),
            None => whole(images),
        }
    }

    /// Images `[b, 3, h, w]` in [-1, 1] to latents `[b, latent channels, h/f, w/f]`, float32 and unscaled.
    pub fn encode(&self, images: &Tensor) -> LatentDistribution {
        let moments = match self.slicing {
            true => Tensor::cat(&images.split(1, 0).iter().map(|image| self.moments(image)).collect::<Vec<_>>(), 0),
            false => self.moments(images),
        };
        let halves = moments.to_kind(Kind::Float).contiguous().chunk(2, 1);
        LatentDistribution { mean: halves[0].contiguous(), log_variance: halves[1].clamp(-30.0, 20.0) }
    }
}

/// The half of the autoencoder that generating needs: latents to images.
pub struct VaeDecoder {
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: VaeConfig,
    tiling: bool,
}

impl VaeDecoder {
    /// Loads the decoder of the autoencoder at `loader`.
    pub fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        let latent = config.latent_channels;
        let conv = || Conv2d::load(&(loader / "post_quant_conv"), latent, latent, 1);
        Ok(Self {
            post_quant_conv: config.use_post_quant_conv.then(conv).transpose()?,
            decoder: Decoder::load(&(loader / "decoder"), config)?,
            config: config.clone(),
            tiling: false,
        })
    }

    /// The autoencoder's configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Whether images larger than a tile are decoded in overlapping tiles, for the memory of one tile.
    pub fn use_tiling(&mut self, tiling: bool) {
        self.tiling = tiling;
    }

    /// Unscaled latents `[b, latent channels, h, w]` to images `[b, 3, h·f, w·f]`, about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        match self.tiling {
            true => self.decode_in_tiles(latents),
            false => self.decode_whole(latents),
        }
    }

    /// The same in tiles, whatever [`VaeDecoder::use_tiling`] was told.
    pub fn decode_in_tiles(&self, latents: &Tensor) -> Tensor {
        match Tiles::of(&self.config) {
            Some(tiles) => tiles.decode(latents, |tile| self.decode_whole(tile)),
            None => self.decode_whole(latents),
        }
    }

    /// Whether `latents` are larger than a tile.
    pub fn has_tiles_in(&self, latents: &Tensor) -> bool {
        Tiles::of(&self.config).is_some_and(|tiles| latents.size()[2..].iter().any(|&size| size > tiles.side()))
    }

    fn decode_whole(&self, latents: &Tensor) -> Tensor {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(latents)),
            None => self.decoder.forward(latents),
        }
    }
}

/// The whole autoencoder.
pub struct AutoencoderKl {
    /// Images to latents.
    pub encoder: VaeEncoder,
    /// Latents to images.
    pub decoder: VaeDecoder,
}

impl AutoencoderKl {
    /// Loads both halves.
    pub fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        Ok(Self { encoder: VaeEncoder::load(loader, config)?, decoder: VaeDecoder::load(loader, config)? })
    }

    /// Its configuration.
    pub fn config(&self) -> &VaeConfig {
        self.decoder.config()
    }

    /// See [`VaeEncoder::encode`].
    pub fn encode(&self, images: &Tensor) -> LatentDistribution {
        self.encoder.encode(images)
    }

    /// See [`VaeDecoder::decode`].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.decoder.decode(latents)
    }
}
