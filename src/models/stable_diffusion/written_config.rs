//! `config.json` of networks whose configuration was read from the shapes of a single-file checkpoint, as diffusers and
//! transformers read it.

use super::unet::PerLevel;
use super::{ClipTextConfig, UNetConfig, VaeConfig};
use crate::nn::Activation;
use serde_json::{json, Value};

/// The UNet's.
pub fn unet(config: &UNetConfig) -> Value {
    let per_level = |value: &PerLevel| match value {
        PerLevel::Same(one) => json!(one),
        PerLevel::Each(list) => json!(list),
    };
    let mut written = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": per_level(&config.attention_head_dim),
        "block_out_channels": config.block_out_channels,
        "center_input_sample": false,
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": config.down_block_types,
        "downsample_padding": config.downsample_padding,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": config.freq_shift as i64,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_scale_factor": config.mid_block_scale_factor,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "transformer_layers_per_block": per_level(&config.transformer_layers_per_block),
        "up_block_types": config.up_block_types,
        "use_linear_projection": config.use_linear_projection,
    });
    if let (Some(kind), Some((width, inputs))) = (&config.addition_embed_type, config.addition()) {
        written["addition_embed_type"] = json!(kind);
        written["addition_time_embed_dim"] = json!(width);
        written["projection_class_embeddings_input_dim"] = json!(inputs);
    }
    written
}

/// The VAE's.
pub fn vae(config: &VaeConfig) -> Value {
    let levels = config.block_out_channels.len();
    json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": config.block_out_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "force_upcast": config.force_upcast,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": config.mid_block_add_attention,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": config.use_post_quant_conv,
        "use_quant_conv": config.use_quant_conv,
    })
}

/// A text encoder's.
pub fn text_encoder(config: &ClipTextConfig) -> Value {
    let hidden_act = match config.hidden_act {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
        Activation::Silu => "silu",
        Activation::GeluNew => "gelu_new",
        Activation::Relu => "relu",
    };
    let class = if config.with_projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
    json!({
        "architectures": [class],
        "bos_token_id": 0,
        "eos_token_id": config.eos_token_id,
        "hidden_act": hidden_act,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "pad_token_id": 1,
        "projection_dim": config.projection_dim,
        "vocab_size": config.vocab_size,
    })
}
