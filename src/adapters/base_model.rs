//! The model that an adapter is put on, and the kind of model that an adapter was made for, told by its signs.

use super::adapter_set::{AdapterSet, Part, PartAdapter};
use super::lora::{fits_up_to_ones, A, B, COLUMN_MAGNITUDE, MAGNITUDE};
use crate::error::{Error, Result};
use crate::plain_text;
use std::collections::BTreeMap;
use std::path::Path;

/// A generation of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Stable Diffusion 1.x: text embeddings of width 768.
    V1,
    /// Stable Diffusion 2.x: 1024.
    V2,
    /// Stable Diffusion XL: 2048, of two text encoders.
    Xl,
    /// A transformer in a UNet's place that is none of the next two.
    Transformer,
    /// Stable Diffusion 3.
    V3,
    /// Flux.
    Flux,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::V1 => "Stable Diffusion 1.x",
            Self::V2 => "Stable Diffusion 2.x",
            Self::Xl => "Stable Diffusion XL",
            Self::Transformer => "a diffusion transformer (such as Stable Diffusion 3, Flux or a video model)",
            Self::V3 => "Stable Diffusion 3",
            Self::Flux => "Flux",
        })
    }
}

impl Family {
    /// The generation whose UNet takes text embeddings of `width`.
    fn of_width(width: i64) -> Option<Self> {
        match width {
            768 => Some(Self::V1),
            1024 => Some(Self::V2),
            2048 => Some(Self::Xl),
            _ => None,
        }
    }

    /// Whether its models can be used here.
    pub fn is_supported(self) -> bool {
        matches!(self, Self::V1 | Self::V2)
    }

    /// The generation that only one kind of adapters has such a key of.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        let starts = |starts: &[&str]| starts.iter().any(|start| key.starts_with(start));
        let has = |marks: &[&str]| marks.iter().any(|mark| key.contains(mark));
        if has(&["double_blocks", "single_blocks", "single_transformer_blocks"]) {
            Some(Self::Flux)
        } else if has(&["joint_blocks"]) || starts(&["lora_te3_", "text_encoder_3."]) {
            Some(Self::V3)
        } else if starts(&[
            "transformer.",
            "lora_transformer_",
            "diffusion_model.blocks.",
            "diffusion_model.layers.",
            "diffusion_model.transformer_blocks.",
            "lora_unet_blocks_",
            "lora_unet_layers_",
            "lora_unet_transformer_blocks_",
        ]) {
            Some(Self::Transformer)
        } else if starts(&[
            "lora_te2_",
            "lora_te2.",
            "text_encoder_2.",
            "text_encoders.clip_g.",
            "clip_g.",
            "conditioner.",
        ]) || has(&["label_emb", "add_embedding"])
        {
            Some(Self::Xl)
        } else {
            None
        }
    }

    /// The generation that a file's metadata names (sd-scripts' fields, and the specification of models').
    pub(super) fn of_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let names = ["modelspec.architecture", "ss_base_model_version"];
        names.iter().filter_map(|name| metadata.get(*name)).find_map(|value| {
            let has = |marks: &[&str]| marks.iter().any(|mark| value.contains(mark));
            match () {
                () if has(&["stable-diffusion-xl", "sdxl"]) => Some(Self::Xl),
                () if has(&["stable-diffusion-3", "stable-diffusion-v3", "sd3"]) => Some(Self::V3),
                () if has(&["flux"]) => Some(Self::Flux),
                () if has(&["stable-diffusion-v2", "sd_v2"]) => Some(Self::V2),
                () if has(&["stable-diffusion-v1", "sd_v1"]) => Some(Self::V1),
                () => None,
            }
        })
    }

    /// The generation that the shapes and paths of `set` are of, where they say it.
    pub(super) fn of_set(set: &AdapterSet) -> Option<Self> {
        let by_width = context_width(set.unet.as_ref()).and_then(Self::of_width);
        let paths = || set.unet.iter().flat_map(|adapter| adapter.modules());
        by_width.or_else(|| paths().any(|path| is_deep(&path)).then_some(Self::Xl)).or_else(|| {
            let encoder = set.text_encoder.as_ref()?;
            let is_projection =
                |path: &&String| ["q_proj", "k_proj", "v_proj", "fc1"].iter().any(|end| path.ends_with(end));
            let modules = encoder.modules();
            let module = modules.iter().find(is_projection)?;
            match encoder.tensors.get(&format!("{module}{A}"))?.size().get(1)? {
                // SDXL's first text encoder is Stable Diffusion 1.x's.
                768 => Some(Self::V1),
                1024 => Some(Self::V2),
                1280 => Some(Self::Xl),
                _ => None,
            }
        })
    }
}

/// Width of the text embeddings that a UNet's adapter takes.
fn context_width(unet: Option<&PartAdapter>) -> Option<i64> {
    let ends = [".attn2.to_k", ".attn2.to_v"].map(|module| format!("{module}{A}"));
    let mut tensors = unet?.tensors.iter();
    let (_, a) = tensors.find(|(name, _)| ends.iter().any(|end| name.ends_with(end)))?;
    a.size().get(1).copied()
}

/// Whether `path` is in a transformer behind the first of its level, which Stable Diffusion 1.x and 2.x have not.
fn is_deep(path: &str) -> bool {
    let behind = path.split_once(".transformer_blocks.").map(|(_, rest)| rest.split('.').next());
    behind.flatten().and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number > 0)
}

/// A Stable Diffusion model, as far as the headers of its files tell: the shapes of its weights by our keys.
#[derive(Debug, Clone)]
pub struct BaseModel {
    unet: BTreeMap<String, Vec<i64>>,
    text_encoder: BTreeMap<String, Vec<i64>>,
}

impl BaseModel {
    /// The model with these weights.
    pub fn new(unet: BTreeMap<String, Vec<i64>>, text_encoder: BTreeMap<String, Vec<i64>>) -> Self {
        Self { unet, text_encoder }
    }

    /// Blocks of a level of its UNet.
    pub(super) fn layers_per_block(&self) -> usize {
        (0..).take_while(|i| self.unet.contains_key(&format!("down_blocks.0.resnets.{i}.conv1.weight"))).count()
    }

    /// Width of the text embeddings that its UNet takes.
    fn context_width(&self) -> Option<i64> {
        let (_, shape) = self.unet.iter().find(|(key, _)| key.ends_with(".attn2.to_k.weight"))?;
        shape.get(1).copied()
    }

    /// Its generation; of a width that none has, by how it projects: 2.x has linear layers where 1.x has convolutions.
    pub fn family(&self) -> Family {
        let linear = || {
            let projection = self.unet.iter().find(|(key, _)| key.ends_with(".proj_in.weight"));
            projection.is_some_and(|(_, shape)| shape.len() == 2)
        };
        let by_width = self.context_width().and_then(Family::of_width);
        by_width.unwrap_or_else(|| if linear() { Family::V2 } else { Family::V1 })
    }

    /// Refuses the adapter `set` of the file or folder `path` where it was made for a model of another kind or size.
    pub fn check(&self, set: &AdapterSet, path: &Path) -> Result<()> {
        let Some(misfit) = set.parts().find_map(|(part, adapter)| self.misfit(part, adapter)) else {
            return Ok(());
        };
        let (width, own) = (context_width(set.unet.as_ref()), self.context_width());
        let widths = match (width, own) {
            (Some(width), Some(own)) if width != own => {
                format!(": its text embeddings have width {width}, the model's {own}")
            }
            _ => format!(": {misfit}"),
        };
        let named = set.parts().find_map(|(_, adapter)| adapter.config.base_model_name_or_path.as_deref());
        let wanted = match (named, width.and_then(Family::of_width)) {
            (Some(name), _) => format!("; it was made for {}", plain_text::value(name)),
            (None, Some(family)) => format!("; it was made for {family}"),
            (None, None) => String::new(),
        };
        Err(match set.family.filter(|family| *family != self.family()) {
            Some(family) => of_other_family(path, family, Some(self), &format!("{widths}{wanted}")),
            None => Error::file(path, format!("the adapter does not fit this model{widths}{wanted}")),
        })
    }

    /// The first module that has no place here, or another shape.
    fn misfit(&self, part: Part, adapter: &PartAdapter) -> Option<String> {
        let (network, weights) = match part {
            Part::UNet => ("UNet", &self.unet),
            Part::TextEncoder => ("text encoder", &self.text_encoder),
        };
        adapter.modules().into_iter().find_map(|module| {
            let Some(shape) = weights.get(&format!("{module}.weight")).filter(|shape| shape.len() > 1) else {
                return Some(format!("the model's {network} has no `{module}`"));
            };
            let [a, b] = [A, B].map(|end| adapter.tensors[&format!("{module}{end}")].size());
            let (mut a_shape, mut b_shape) = (shape.clone(), vec![1; shape.len()]);
            let rank = adapter.config.rank_of(&module);
            (a_shape[0], b_shape[0]) = (rank, shape[0]);
            b_shape[1] = rank;
            let fits = fits_up_to_ones(&a, &a_shape) && fits_up_to_ones(&b, &b_shape);
            if !fits {
                return Some(format!("its pair for `{module}` has the shapes {a:?} and {b:?}, the weight {shape:?}"));
            }
            let magnitude = |end: &str| adapter.tensors.get(&format!("{module}{end}")).map(|tensor| tensor.size());
            let (rows, columns) = (magnitude(MAGNITUDE), magnitude(COLUMN_MAGNITUDE));
            let misfit = (rows
                .filter(|found| !fits_up_to_ones(found, &shape[..1]) && found[..] != [1, shape[0], 1, 1]))
            .or(columns.filter(|found| !fits_up_to_ones(found, &[1, shape[1]])))?;
            Some(format!("its DoRA magnitude for `{module}` has the shape {misfit:?}, the weight {shape:?}"))
        })
    }
}

/// The error for the adapter at `path`, of a generation that is not the model's; `why` stands behind it.
pub(super) fn of_other_family(path: &Path, family: Family, base: Option<&BaseModel>, why: &str) -> Error {
    Error::file(
        path,
        match base {
            Some(base) => format!("is a LoRA for {family}, but the model is {}{why}", base.family()),
            None => format!("is a LoRA for {family}, which is not supported; Stable Diffusion 1.x and 2.x are"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_generations_are_known() {
        for (key, family) in [
            ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", Some(Family::Xl)),
            ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", Some(Family::Xl)),
            ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", Some(Family::Xl)),
            ("lora_unet_label_emb_0_0.lora_down.weight", Some(Family::Xl)),
            ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", Some(Family::Flux)),
            ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", Some(Family::Flux)),
            ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", Some(Family::V3)),
            ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", Some(Family::Transformer)),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", None),
            ("lora_unet_mid_block_attentions_0_proj_in.alpha", None),
        ] {
            assert_eq!(Family::of_key(key), family, "{key}");
        }
    }

    #[test]
    fn metadata_names_a_generation() {
        for (name, value, family) in [
            ("ss_base_model_version", "sdxl_base_v1-0", Some(Family::Xl)),
            ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", Some(Family::Xl)),
            ("modelspec.architecture", "stable-diffusion-v2-768-v/lora", Some(Family::V2)),
            ("ss_base_model_version", "sd_v1", Some(Family::V1)),
            ("ss_base_model_version", "None", None),
        ] {
            let metadata = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(Family::of_metadata(&metadata), family, "{value}");
        }
    }
}
