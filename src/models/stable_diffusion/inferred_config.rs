//! The configurations of a single-file checkpoint, read from its shapes: the file has no others.
//!
//! Shapes don't tell the number of attention heads, the groups of the norms or the noise schedule: these are the
//! original models', as diffusers takes them (`loaders/single_file_utils.py`).

use super::clip_text::OLD_EOS;
use super::unet::PerLevel;
use super::{ClipTextConfig, UNetConfig, VaeConfig};
use crate::error::{Error, Result};
use crate::nn::Activation;
use crate::weights::original_spelling::OPEN_CLIP_LAYERS;
use crate::weights::{OriginalGeneration, WeightSet};
use serde_json::{json, Value};

/// Heads of Stable Diffusion 1.x, at every level.
const V1_HEADS: i64 = 8;
/// Width of a head in Stable Diffusion 2.x and in the text encoders.
const HEAD_WIDTH: i64 = 64;
/// Stable Diffusion XL's latents in the UNet's scale.
const XL_SCALING_FACTOR: f64 = 0.13025;
/// Width of each size's sinusoids in Stable Diffusion XL.
const XL_SIZE_WIDTH: i64 = 256;

/// Why a configuration cannot be read from shapes alone, and what to do.
const GIVE_CONFIGS: &str = "give a folder of configurations with `⟨config_folder⟩`";

/// The UNet's configuration, from its weights under our keys.
pub fn unet(weights: &WeightSet) -> Result<UNetConfig> {
    let levels = count(weights, |i| format!("down_blocks.{i}.resnets.0.conv1.weight"));
    let block_out_channels = (0..levels)
        .map(|i| dimension(weights, &format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>>>()?;
    let resnets = |i: usize| count(weights, |j| format!("down_blocks.{i}.resnets.{j}.conv1.weight"));
    let layers = resnets(0);
    if (0..levels).any(|i| resnets(i) != layers) {
        return Err(Error::file(weights.origin(), "the levels of its UNet have different numbers of blocks"));
    }
    let attends: Vec<bool> =
        (0..levels).map(|i| weights.contains(&format!("down_blocks.{i}.attentions.0.norm.weight"))).collect();
    let depth =
        |place: &str| count(weights, |j| format!("{place}.attentions.0.transformer_blocks.{j}.norm1.weight")) as i64;
    let depths: Vec<i64> =
        (0..levels).map(|i| depth(&if attends[i] { format!("down_blocks.{i}") } else { "mid_block".into() })).collect();
    let transformer_layers_per_block = match depths.first() {
        Some(&first) if depths.iter().all(|&depth| depth == first) => PerLevel::Same(first),
        _ => PerLevel::Each(depths),
    };
    let middle = "mid_block.attentions.0";
    let use_linear_projection = weights.shape(&format!("{middle}.proj_in.weight")).is_some_and(|s| s.len() == 2);
    let attention_head_dim = match use_linear_projection {
        true => PerLevel::Each(block_out_channels.iter().map(|channels| channels / HEAD_WIDTH).collect()),
        false => PerLevel::Same(V1_HEADS),
    };
    let kinds = |plain: &str, cross: &str| attends.iter().map(|&a| if a { cross } else { plain }.to_owned()).collect();
    let mut up_block_types: Vec<String> = kinds("UpBlock2D", "CrossAttnUpBlock2D");
    up_block_types.reverse();
    let added = weights.shape("add_embedding.linear_1.weight").and_then(|shape| shape.get(1).copied());
    let config = UNetConfig {
        addition_embed_type: added.map(|_| "text_time".to_owned()),
        addition_time_embed_dim: added.map(|_| XL_SIZE_WIDTH),
        projection_class_embeddings_input_dim: added,
        in_channels: dimension(weights, "conv_in.weight", 1)?,
        out_channels: dimension(weights, "conv_out.weight", 0)?,
        down_block_types: kinds("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types,
        layers_per_block: layers as i64,
        attention_head_dim,
        cross_attention_dim: dimension(weights, &format!("{middle}.transformer_blocks.0.attn2.to_k.weight"), 1)?,
        transformer_layers_per_block,
        use_linear_projection,
        block_out_channels,
        ..UNetConfig::default()
    };
    config.checked().map_err(|message| cannot_infer(weights, &message))
}

/// The VAE's configuration, from its weights under our keys; of Stable Diffusion XL where `of_xl`, whose latents are scaled otherwise.
pub fn vae(weights: &WeightSet, of_xl: bool) -> Result<VaeConfig> {
    let levels = count(weights, |i| format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"));
    let config = VaeConfig {
        in_channels: dimension(weights, "encoder.conv_in.weight", 1)?,
        out_channels: dimension(weights, "decoder.conv_out.weight", 0)?,
        latent_channels: dimension(weights, "decoder.conv_in.weight", 1)?,
        block_out_channels: (0..levels)
            .map(|i| dimension(weights, &format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"), 0))
            .collect::<Result<_>>()?,
        layers_per_block: count(weights, |j| format!("encoder.down_blocks.0.resnets.{j}.conv1.weight")) as i64,
        mid_block_add_attention: weights.contains("decoder.mid_block.attentions.0.to_q.weight"),
        use_quant_conv: weights.contains("quant_conv.weight"),
        use_post_quant_conv: weights.contains("post_quant_conv.weight"),
        scaling_factor: if of_xl { XL_SCALING_FACTOR } else { VaeConfig::default().scaling_factor },
        ..VaeConfig::default()
    };
    config.checked().map_err(|message| cannot_infer(weights, &message))
}

/// The configuration of the only or first text encoder of a `generation`, from its weights under our keys.
pub fn text_encoder(weights: &WeightSet, generation: OriginalGeneration) -> Result<ClipTextConfig> {
    match generation {
        OriginalGeneration::V1 | OriginalGeneration::Xl => {
            let config = clip(weights, Activation::QuickGelu, usize::MAX)?;
            Ok(ClipTextConfig { projection_dim: config.hidden_size, ..config })
        }
        OriginalGeneration::V2 => clip(weights, Activation::Gelu, OPEN_CLIP_LAYERS - 1),
    }
}

/// That of Stable Diffusion XL's second text encoder.
pub fn text_encoder_2(weights: &WeightSet) -> Result<ClipTextConfig> {
    let projection_dim = dimension(weights, "text_projection.weight", 0)?;
    Ok(ClipTextConfig { with_projection: true, projection_dim, ..clip(weights, Activation::Gelu, usize::MAX)? })
}

/// Of a text model with this activation, of whose layers at most `most` are used.
fn clip(weights: &WeightSet, hidden_act: Activation, most: usize) -> Result<ClipTextConfig> {
    let width = dimension(weights, "embeddings.token_embedding.weight", 1)?;
    if width % HEAD_WIDTH != 0 {
        return Err(cannot_infer(weights, &format!("a text encoder of width {width} has no heads of {HEAD_WIDTH}")));
    }
    let layers = count(weights, |i| format!("encoder.layers.{i}.layer_norm1.weight"));
    Ok(ClipTextConfig {
        vocab_size: dimension(weights, "embeddings.token_embedding.weight", 0)?,
        hidden_size: width,
        intermediate_size: dimension(weights, "encoder.layers.0.mlp.fc1.weight", 0)?,
        num_hidden_layers: layers.min(most) as i64,
        num_attention_heads: width / HEAD_WIDTH,
        max_position_embeddings: dimension(weights, "embeddings.position_embedding.weight", 0)?,
        hidden_act,
        eos_token_id: OLD_EOS,
        ..ClipTextConfig::default()
    })
}

/// The scheduler's configuration, as the repositories of Stable Diffusion 1.5, 2.1 and XL have it, for a model that predicts
/// `prediction`. One that was trained to zero terminal SNR is sampled from the very last timestep on.
pub fn scheduler(generation: OriginalGeneration, prediction: &str, zero_terminal_snr: bool) -> Value {
    let class = match generation {
        OriginalGeneration::Xl => "EulerDiscreteScheduler",
        OriginalGeneration::V1 if !zero_terminal_snr => "PNDMScheduler",
        // PNDM knows no rescaled betas.
        _ => "DDIMScheduler",
    };
    let mut config = json!({
        "_class_name": class,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    if generation == OriginalGeneration::Xl {
        config["timestep_spacing"] = json!("leading");
    }
    if zero_terminal_snr {
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing");
    }
    config
}

fn cannot_infer(weights: &WeightSet, message: &str) -> Error {
    Error::file(
        weights.origin(),
        format!("its configuration cannot be read from its shapes ({message}); {GIVE_CONFIGS}"),
    )
}

/// How many keys of a numbered series there are.
fn count(weights: &WeightSet, key: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&i| weights.contains(&key(i))).count()
}

fn dimension(weights: &WeightSet, key: &str, dimension: usize) -> Result<i64> {
    let missing = || Error::MissingWeight { path: weights.origin().to_owned(), key: key.to_owned() };
    weights.shape(key).ok_or_else(missing)?.get(dimension).copied().ok_or_else(missing)
}
