//! Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL: the key names of the original code, as ours.
//! Reference: github.com/CompVis/stable-diffusion `openaimodel.py` and `model.py`, github.com/mlfoundations/open_clip,
//! github.com/Stability-AI/generative-models `encoders/modules.py`.

use super::original_unet::UNetBlocks;
use super::other_pipelines::SUPPORTED;
use super::weight_set::Part;
use super::{spelling, MappedFile, Placement, WeightSet};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind};

pub(super) const UNET: &str = "model.diffusion_model.";
pub(super) const VAE: &str = "first_stage_model.";
const TEXT_ENCODER: &str = "cond_stage_model.";
pub(super) const CLIP: &str = "cond_stage_model.transformer.";
pub(super) const OPEN_CLIP: &str = "cond_stage_model.model.";
/// Stable Diffusion XL's text encoders.
const CONDITIONER: &str = "conditioner.embedders.";
pub(super) const XL_CLIP: &str = "conditioner.embedders.0.transformer.";
pub(super) const XL_OPEN_CLIP: &str = "conditioner.embedders.1.model.";
/// The second by transformers' names, which some programs write.
const XL_CLIP_2: &str = "conditioner.embedders.1.transformer.";
/// The refiner has the second alone, in the first's place.
const REFINER: &str = "conditioner.embedders.0.model.";

/// The generation of a checkpoint's model, which its text encoders tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalGeneration {
    /// Stable Diffusion 1.x: OpenAI's CLIP, as transformers names it.
    V1,
    /// Stable Diffusion 2.x: OpenCLIP with fused projections.
    V2,
    /// Stable Diffusion XL: both.
    Xl,
}

/// A single-file checkpoint that holds all networks of a pipeline.
pub struct OriginalCheckpoint {
    weights: WeightSet,
}

impl std::fmt::Debug for OriginalCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OriginalCheckpoint").field(&self.path()).finish()
    }
}

impl OriginalCheckpoint {
    /// Opens the checkpoint at `path` and checks that all networks are in it, but for a VAE where another one takes its place.
    pub fn open(path: &Path, needs_vae: bool) -> Result<Self> {
        let weights = WeightSet::open_file(path)?;
        if let Some(refusal) = refusal(&weights) {
            return Err(Error::file(path, refusal));
        }
        let has = |prefix: &str| has_prefix(&weights, prefix);
        let mut networks = vec![("UNet", UNET, has(&format!("{UNET}input_blocks.0.0.weight")))];
        networks.push(("VAE", VAE, !needs_vae || has(&format!("{VAE}decoder."))));
        match is_xl(&weights) {
            true => networks.extend([
                ("first text encoder", XL_CLIP, has(XL_CLIP)),
                ("second text encoder", XL_OPEN_CLIP, has(XL_OPEN_CLIP) || has(XL_CLIP_2)),
            ]),
            false => networks.push(("text encoder", TEXT_ENCODER, has(TEXT_ENCODER))),
        }
        let all = networks.len();
        let missing: Vec<String> = networks
            .into_iter()
            .filter(|(.., is_there)| !is_there)
            .map(|(part, prefix, _)| format!("no {part} ({prefix}*)"))
            .collect();
        if !missing.is_empty() {
            let (kind, all) = match all {
                4 => ("Stable Diffusion XL", "four"),
                _ => ("Stable Diffusion", "three"),
            };
            let cure = match &missing[..] {
                [only] if only.starts_with("no VAE") => "; give one with ⟨vae⟩",
                _ => "",
            };
            let message = format!("has {}; a {kind} checkpoint holds all {all} networks{cure}", missing.join(" and "));
            return Err(Error::file(path, message));
        }
        Ok(Self { weights })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.weights.origin()
    }

    /// The generation of the model.
    pub fn generation(&self) -> OriginalGeneration {
        match has_prefix(&self.weights, OPEN_CLIP) {
            _ if is_xl(&self.weights) => OriginalGeneration::Xl,
            true => OriginalGeneration::V2,
            false => OriginalGeneration::V1,
        }
    }

    /// Everything that the file holds, under its own keys.
    pub fn weights(&self) -> &WeightSet {
        &self.weights
    }

    /// The UNet's weights under our keys. EMA weights (`model_ema.*`) are left out.
    pub fn unet(&self) -> WeightSet {
        let blocks = UNetBlocks::of(&self.weights);
        self.weights.taken_apart(|key| whole(blocks.key(key)))
    }

    /// The VAE's weights under our keys.
    pub fn vae(&self) -> WeightSet {
        original_vae(&self.weights)
    }

    /// The text encoder's weights under our keys, of Stable Diffusion XL the first's; OpenCLIP's fused projections are taken apart.
    pub fn text_encoder(&self) -> WeightSet {
        match self.generation() {
            OriginalGeneration::V1 => self.weights.taken_apart(|key| whole(clip_key(key, CLIP))),
            OriginalGeneration::V2 => self.weights.taken_apart(|key| open_clip_keys(key, OPEN_CLIP, false)),
            OriginalGeneration::Xl => self.weights.taken_apart(|key| whole(clip_key(key, XL_CLIP))),
        }
    }

    /// The same of Stable Diffusion XL's second text encoder, with its projection of whole texts.
    pub fn text_encoder_2(&self) -> WeightSet {
        match has_prefix(&self.weights, XL_OPEN_CLIP) {
            true => self.weights.taken_apart(|key| open_clip_keys(key, XL_OPEN_CLIP, true)),
            false => self
                .weights
                .taken_apart(|key| whole(key.strip_prefix(XL_CLIP_2).and_then(spelling::clip_text_with_projection))),
        }
    }

    /// The header's free text, by name.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        Ok(MappedFile::open(self.path())?.metadata())
    }

    /// Whether the file has a tensor called `name`, of any shape.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    /// How many steps the model was trained for, where the file says so.
    pub fn global_step(&self) -> Option<i64> {
        let placement = Placement { device: Device::Cpu, kind: Kind::Int64 };
        let step = self.weights.load("global_step", &self.weights.shape("global_step")?, placement).ok()?;
        (step.numel() == 1).then(|| step.view([1]).int64_value(&[0]))
    }
}

fn whole(key: Option<String>) -> Vec<(String, Part)> {
    key.map(|key| (key, Part::Whole)).into_iter().collect()
}

fn has_prefix(weights: &WeightSet, prefix: &str) -> bool {
    weights.keys().any(|key| key.starts_with(prefix))
}

/// Whether a checkpoint is of Stable Diffusion XL: by its text encoders, or by a UNet that is conditioned on sizes where it has none.
fn is_xl(weights: &WeightSet) -> bool {
    let inputs = || weights.shape(&format!("{UNET}label_emb.0.0.weight")).and_then(|shape| shape.get(1).copied());
    has_prefix(weights, CONDITIONER) || inputs() == Some(XL_ADDITION_WIDTH)
}

/// Width of all that Stable Diffusion XL's UNet is told beside the text: an embedding of 1280, and six numbers of 256.
const XL_ADDITION_WIDTH: i64 = 2816;

/// The VAE's weights in a file of the original key names, a checkpoint or a VAE alone, under our keys.
pub(crate) fn original_vae(weights: &WeightSet) -> WeightSet {
    let starts = [VAE, ""].into_iter().find(|start| has_prefix(weights, &format!("{start}decoder."))).unwrap_or(VAE);
    let levels = 1 + numbers(weights, &format!("{starts}decoder.up.")).last().copied().unwrap_or(0);
    weights.taken_apart(|key| whole(key.strip_prefix(starts).and_then(|key| vae_key(key, levels))))
}

/// The numbers that follow `prefix` in the keys, sorted.
pub(super) fn numbers(weights: &WeightSet, prefix: &str) -> BTreeSet<usize> {
    weights.keys().filter_map(|key| key.strip_prefix(prefix)?.split('.').next()?.parse().ok()).collect()
}

/// Why a file that is another kind of model cannot be used, told from its keys.
fn refusal(weights: &WeightSet) -> Option<String> {
    let any = |test: &dyn Fn(&str) -> bool| weights.keys().any(test);
    const ADAPTER: [&str; 7] = ["lora_down", "lora_up", "lora_A", "lora_B", "lora.down", "hada_w1", "lokr_w1"];
    if any(&|key| ADAPTER.iter().any(|mark| key.contains(mark))) {
        return Some(
            "this is a LoRA adapter, not a model; give the model it was trained on, and the adapter with `⟨lora⟩`"
                .into(),
        );
    }
    let foreign = [
        (REFINER, "the refiner of Stable Diffusion XL, which only finishes pictures of the base model"),
        ("control_model.", "a ControlNet"),
        ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint"),
        ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
        ("model.diffusion_model.double_blocks.", "a Flux checkpoint"),
        ("double_blocks.", "a Flux checkpoint"),
        ("single_transformer_blocks.", "the transformer of Flux"),
        ("add_embedding.linear_1.", "the UNet of Stable Diffusion XL"),
        ("text_model.", "a text encoder alone"),
    ];
    let is_of_classes = has_prefix(weights, "model.diffusion_model.label_emb.") && !is_xl(weights);
    if is_of_classes {
        return Some(format!("is a checkpoint with class conditioning (unCLIP or an upscaler); {SUPPORTED}"));
    }
    if let Some((_, what)) = foreign.iter().find(|(prefix, _)| has_prefix(weights, prefix)) {
        return Some(format!("is {what}; {SUPPORTED}"));
    }
    if any(&|key| key.starts_with("down_blocks.") || key.starts_with("encoder.down_blocks.")) {
        return Some("this is one part of a pipeline in the diffusers layout; give the folder of the pipeline".into());
    }
    if any(&|key| key.starts_with("emb_params") || key.starts_with("string_to_param")) {
        return Some("this is a textual inversion embedding, not a model".into());
    }
    if any(&|key| key.starts_with(VAE) && key.contains(".attn.")) {
        return Some("its VAE has attention in its levels, which Stable Diffusion's has not".into());
    }
    None
}

/// `key` with the first prefix of `names` that it has replaced.
pub(super) fn renamed(key: &str, names: &[(&str, &str)]) -> Option<String> {
    names.iter().find_map(|(old, new)| key.strip_prefix(old).map(|rest| format!("{new}{rest}")))
}

/// `decoder.up.3.block.1.conv1.weight` → `decoder.up_blocks.0.resnets.1.conv1.weight`: the decoder's levels are counted
/// from the image in the original, from the latent here.
fn vae_key(key: &str, levels: usize) -> Option<String> {
    const MIDDLE: [(&str, &str); 7] = [
        ("mid.block_1.", "mid_block.resnets.0."),
        ("mid.block_2.", "mid_block.resnets.1."),
        ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
        ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
        // Written so by converters from newer diffusers.
        ("mid.attn_1.to_", "mid_block.attentions.0.to_"),
        ("mid.attn_1.", "mid_block.attentions.0.to_"),
        ("norm_out.", "conv_norm_out."),
    ];
    let Some((side @ ("encoder" | "decoder"), rest)) = key.split_once('.') else {
        return (key.starts_with("quant_conv.") || key.starts_with("post_quant_conv.")).then(|| key.to_owned());
    };
    if let Some(middle) = renamed(rest, &MIDDLE) {
        return Some(format!("{side}.{middle}").replace("nin_shortcut", "conv_shortcut"));
    }
    let level = |rest: &str| -> Option<(usize, String)> {
        let (level, rest) = rest.split_once('.')?;
        let rest = renamed(
            rest,
            &[("block.", "resnets."), ("downsample.", "downsamplers.0."), ("upsample.", "upsamplers.0.")],
        )?;
        Some((level.parse().ok()?, rest.replace("nin_shortcut", "conv_shortcut")))
    };
    if let Some(rest) = rest.strip_prefix("down.") {
        return level(rest).map(|(i, rest)| format!("{side}.down_blocks.{i}.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("up.") {
        return level(rest)
            .and_then(|(i, rest)| Some(format!("{side}.up_blocks.{}.{rest}", (levels - 1).checked_sub(i)?)));
    }
    Some(key.to_owned())
}

fn clip_key(key: &str, start: &str) -> Option<String> {
    spelling::clip_text(key.strip_prefix(start)?)
}

/// OpenCLIP's text tower, whose keys begin with `start`. Its projection is kept as the matrix that a text is multiplied with from the
/// left, the transpose of a linear layer's weight, and left out where it is not used, as its temperature always is.
fn open_clip_keys(key: &str, start: &str, with_projection: bool) -> Vec<(String, Part)> {
    const ENDS: [(&str, &str); 3] = [
        ("token_embedding.", "embeddings.token_embedding."),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("ln_final.", "final_layer_norm."),
    ];
    const LAYER: [(&str, &str); 5] = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let Some(key) = key.strip_prefix(start) else {
        return Vec::new();
    };
    match key {
        "text_projection" if with_projection => return vec![("text_projection.weight".to_owned(), Part::Transposed)],
        "text_projection.weight" if with_projection => return whole(Some(key.to_owned())),
        _ => {}
    }
    if let Some(renamed) = renamed(key, &ENDS) {
        return whole(Some(renamed));
    }
    let Some((layer, rest)) = key.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split_once('.')) else {
        return Vec::new();
    };
    if let Some(leaf) = rest.strip_prefix("attn.in_proj_") {
        return ["q", "k", "v"]
            .iter()
            .zip(0..)
            .map(|(which, index)| {
                (format!("encoder.layers.{layer}.self_attn.{which}_proj.{leaf}"), Part::Band { index, of: 3 })
            })
            .collect();
    }
    whole(renamed(rest, &LAYER).map(|rest| format!("encoder.layers.{layer}.{rest}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    fn file_with(keys: &[&str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors: Vec<(&str, Tensor)> =
            keys.iter().map(|key| (*key, Tensor::zeros([3, 1], (Kind::Float, Device::Cpu)))).collect();
        Tensor::write_safetensors(&tensors, &path).unwrap();
        (folder, path)
    }

    fn refused(keys: &[&str]) -> String {
        let (_folder, path) = file_with(keys);
        OriginalCheckpoint::open(&path, true).err().unwrap().to_string()
    }

    #[test]
    fn the_decoders_levels_are_counted_from_the_latent() {
        for (original, ours) in [
            ("decoder.up.3.block.1.conv1.weight", "decoder.up_blocks.0.resnets.1.conv1.weight"),
            ("decoder.up.0.block.0.nin_shortcut.bias", "decoder.up_blocks.3.resnets.0.conv_shortcut.bias"),
            ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
            ("encoder.down.1.downsample.conv.weight", "encoder.down_blocks.1.downsamplers.0.conv.weight"),
            ("encoder.mid.attn_1.q.weight", "encoder.mid_block.attentions.0.to_q.weight"),
            ("encoder.mid.attn_1.to_q.weight", "encoder.mid_block.attentions.0.to_q.weight"),
            ("decoder.mid.attn_1.proj_out.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
            ("decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(vae_key(original, 4).as_deref(), Some(ours));
        }
        assert_eq!(vae_key("loss.logvar", 4), None);
    }

    #[test]
    fn a_fused_projection_is_three_weights() {
        let keys = open_clip_keys("cond_stage_model.model.transformer.resblocks.7.attn.in_proj_bias", OPEN_CLIP, false);
        assert_eq!(keys[1], ("encoder.layers.7.self_attn.k_proj.bias".to_owned(), Part::Band { index: 1, of: 3 }));
        assert_eq!(keys.len(), 3);
        assert!(open_clip_keys("cond_stage_model.model.text_projection", OPEN_CLIP, false).is_empty());
        let projection = open_clip_keys("conditioner.embedders.1.model.text_projection", XL_OPEN_CLIP, true);
        assert_eq!(projection, [("text_projection.weight".to_owned(), Part::Transposed)]);
    }

    #[test]
    fn other_kinds_of_files_are_named() {
        let xl = ["conditioner.embedders.0.transformer.x", "model.diffusion_model.input_blocks.0.0.weight"];
        let message = refused(&xl);
        assert!(message.contains("no VAE (first_stage_model.*) and no second text encoder"), "{message}");
        assert!(message.contains("a Stable Diffusion XL checkpoint holds all four networks"), "{message}");
        assert!(
            refused(&["conditioner.embedders.0.model.ln_final.weight"]).contains("the refiner of Stable Diffusion XL")
        );
        assert!(refused(&["lora_unet_mid_block.lora_down.weight"]).contains("LoRA adapter"));
        assert!(refused(&["base_model.model.to_q.lora_A.weight"]).contains("LoRA adapter"));
        assert!(refused(&["down_blocks.0.resnets.0.conv1.weight"]).contains("diffusers layout"));
        let message = refused(&["model.diffusion_model.input_blocks.0.0.weight"]);
        assert!(message.contains("no VAE (first_stage_model.*) and no text encoder"), "{message}");
    }
}
