//! Our keys by the names of the original code: what a single-file checkpoint is written with. The other way round is
//! [`super::OriginalCheckpoint`].

use super::original_stable_diffusion::{numbers, renamed, CLIP, OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP};
use super::{original_unet_module, OriginalGeneration, WeightSet};
use crate::error::{Error, Result};
use tch::Tensor;

/// Layers of OpenCLIP's text tower (ViT-H) in Stable Diffusion 2.x, which is conditioned on the last but one: folders in the diffusers
/// layout lack the last.
pub const OPEN_CLIP_LAYERS: usize = 24;

/// A tensor of a single-file checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalTensor {
    /// Its name in the file.
    pub name: String,
    /// Our keys of the weights that it is made of.
    pub keys: Vec<String>,
    form: Form,
}

/// How a tensor of the file is made of its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One as it is.
    Whole,
    /// Several, one below another.
    Stacked,
    /// One that a text is multiplied with from the left.
    Transposed,
    /// A linear layer as a 1×1 convolution.
    Convolution,
}

impl OriginalTensor {
    fn whole(name: String, key: &str) -> Self {
        Self { name, keys: vec![key.to_owned()], form: Form::Whole }
    }

    /// Its shape, made of the weights in `weights`.
    pub fn shape(&self, weights: &WeightSet) -> Vec<i64> {
        let mut shape = weights.shape(&self.keys[0]).unwrap_or_default();
        match self.form {
            Form::Whole => {}
            Form::Stacked => shape[0] *= self.keys.len() as i64,
            Form::Transposed => shape.reverse(),
            Form::Convolution => shape.resize(4, 1),
        }
        shape
    }

    /// It, made of the weights `parts` of its keys.
    pub fn made_of(&self, parts: &[Tensor]) -> Result<Tensor> {
        Ok(match self.form {
            Form::Whole => parts[0].shallow_clone(),
            Form::Stacked => Tensor::f_cat(parts, 0)?,
            Form::Transposed => parts[0].f_tr()?.f_contiguous()?,
            Form::Convolution => {
                let size = parts[0].size();
                parts[0].f_view([size[0], size[1], 1, 1])?
            }
        })
    }
}

/// The tensors that hold the UNet's `weights`.
pub fn original_unet_tensors(weights: &WeightSet) -> Result<Vec<OriginalTensor>> {
    let layers = numbers(weights, "down_blocks.0.resnets.").len();
    let attends = |level: &str| !numbers(weights, &format!("up_blocks.{level}.attentions.")).is_empty();
    let name = |key: &str| {
        let (module, leaf) = key.rsplit_once('.')?;
        let mut original = original_unet_module(module, layers)?;
        let resampled = module.strip_prefix("up_blocks.").and_then(|rest| rest.split_once(".upsamplers."));
        if resampled.is_some_and(|(level, _)| !attends(level)) {
            // Behind the residual block itself.
            original = original.replace(".2.conv", ".1.conv");
        }
        Some(format!("{UNET}{original}.{leaf}"))
    };
    named(weights, name)
}

/// The tensors that hold the VAE's `weights`.
pub fn original_vae_tensors(weights: &WeightSet) -> Result<Vec<OriginalTensor>> {
    let levels = numbers(weights, "decoder.up_blocks.").len();
    let mut tensors = named(weights, |key| Some(format!("{VAE}{}", vae_name(key, levels)?)))?;
    for tensor in &mut tensors {
        if tensor.keys[0].contains(".attentions.") && weights.shape(&tensor.keys[0]).is_some_and(|s| s.len() == 2) {
            tensor.form = Form::Convolution;
        }
    }
    Ok(tensors)
}

/// The tensors that hold the `weights` of the only or first text encoder of a `generation`.
pub fn original_text_tensors(weights: &WeightSet, generation: OriginalGeneration) -> Result<Vec<OriginalTensor>> {
    let start = match generation {
        OriginalGeneration::V2 => return open_clip_tensors(weights, OPEN_CLIP),
        OriginalGeneration::V1 => CLIP,
        OriginalGeneration::Xl => XL_CLIP,
    };
    named(weights, |key| Some(format!("{start}text_model.{key}")))
}

/// Those of Stable Diffusion XL's second.
pub fn original_second_text_tensors(weights: &WeightSet) -> Result<Vec<OriginalTensor>> {
    open_clip_tensors(weights, XL_OPEN_CLIP)
}

fn named(weights: &WeightSet, name: impl Fn(&str) -> Option<String>) -> Result<Vec<OriginalTensor>> {
    let tensor =
        |key: &str| name(key).map(|name| OriginalTensor::whole(name, key)).ok_or_else(|| unknown(weights, key));
    weights.keys().map(tensor).collect()
}

fn unknown(weights: &WeightSet, key: &str) -> Error {
    Error::file(
        weights.origin(),
        format!("the original code has no name for its `{key}`, so no single file can be written; give ⟨output_dir⟩ a folder"),
    )
}

fn vae_name(key: &str, levels: usize) -> Option<String> {
    const OUTSIDE: [(&str, &str); 6] = [
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
        ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_norm_out.", "norm_out."),
    ];
    let Some((side @ ("encoder" | "decoder"), rest)) = key.split_once('.') else {
        return (key.starts_with("quant_conv.") || key.starts_with("post_quant_conv.")).then(|| key.to_owned());
    };
    let level = |rest: &str| -> Option<(usize, String)> {
        let (level, rest) = rest.split_once('.')?;
        const INSIDE: [(&str, &str); 3] =
            [("resnets.", "block."), ("downsamplers.0.", "downsample."), ("upsamplers.0.", "upsample.")];
        Some((level.parse().ok()?, renamed(rest, &INSIDE)?))
    };
    let rest = match (rest.strip_prefix("down_blocks."), rest.strip_prefix("up_blocks.")) {
        (Some(rest), _) => level(rest).map(|(level, rest)| format!("down.{level}.{rest}"))?,
        // Counted from the image there.
        (_, Some(rest)) => {
            level(rest).and_then(|(level, rest)| Some(format!("up.{}.{rest}", (levels - 1).checked_sub(level)?)))?
        }
        _ => renamed(rest, &OUTSIDE).unwrap_or_else(|| rest.to_owned()),
    };
    Some(format!("{side}.{}", rest.replace("conv_shortcut", "nin_shortcut")))
}

/// OpenCLIP's text tower behind `start`, its projections of queries, keys and values in one.
fn open_clip_tensors(weights: &WeightSet, start: &str) -> Result<Vec<OriginalTensor>> {
    const ENDS: [(&str, &str); 3] = [
        ("embeddings.token_embedding.", "token_embedding."),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("final_layer_norm.", "ln_final."),
    ];
    const LAYER: [(&str, &str); 5] = [
        ("layer_norm1.", "ln_1."),
        ("layer_norm2.", "ln_2."),
        ("self_attn.out_proj.", "attn.out_proj."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
    ];
    let layers = numbers(weights, "encoder.layers.").len();
    let mut tensors = Vec::new();
    for key in weights.keys() {
        let inside = key.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.'));
        let tensor = match (renamed(key, &ENDS), inside) {
            (Some(name), _) => OriginalTensor::whole(format!("{start}{name}"), key),
            (None, None) if key == "text_projection.weight" => OriginalTensor {
                form: Form::Transposed,
                ..OriginalTensor::whole(format!("{start}text_projection"), key)
            },
            (None, Some((layer, rest))) => {
                let place = format!("{start}transformer.resblocks.{layer}");
                match rest.strip_prefix("self_attn.q_proj.") {
                    Some(leaf) => OriginalTensor {
                        name: format!("{place}.attn.in_proj_{leaf}"),
                        keys: ["q", "k", "v"].map(|which| key.replace(".q_proj.", &format!(".{which}_proj."))).into(),
                        form: Form::Stacked,
                    },
                    None if ["self_attn.k_proj.", "self_attn.v_proj."].iter().any(|name| rest.starts_with(name)) => {
                        continue
                    }
                    None => {
                        let name = renamed(rest, &LAYER).ok_or_else(|| unknown(weights, key))?;
                        OriginalTensor::whole(format!("{place}.{name}"), key)
                    }
                }
            }
            (None, None) => return Err(unknown(weights, key)),
        };
        tensors.push(tensor);
    }
    if layers + 1 == OPEN_CLIP_LAYERS && start == OPEN_CLIP {
        // The layer that is not used but asked for: a copy of the one before it.
        let (from, to) = (format!(".resblocks.{}.", layers - 1), format!(".resblocks.{layers}."));
        let last = tensors.iter().filter(|tensor| tensor.name.contains(&from));
        let copies: Vec<OriginalTensor> =
            last.map(|tensor| OriginalTensor { name: tensor.name.replace(&from, &to), ..tensor.clone() }).collect();
        tensors.extend(copies);
    }
    Ok(tensors)
}
