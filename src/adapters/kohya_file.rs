//! kohya's and AUTOMATIC1111's files: `lora_unet_….lora_down.weight`, `.lora_up.weight`, `.alpha`, `.dora_scale`.
//!
//! The change is scaled by alpha/rank there, so rsLoRA's scale is written as another alpha. All modules of a part are
//! written with one alpha, the difference multiplied into `lora_up`: diffusers 0.42 loses the alphas of projections that
//! differ from the most common one. Modules of Stable Diffusion XL's UNet have the original code's names, as sd-scripts writes them.
//! Reference: sd-scripts `networks/lora.py` (keys), `library/train_util.py` (metadata and hashes).

use super::adapter_set::{most_common, AdapterSet, Part, PartAdapter};
use super::base_model::{context_width, Family};
use super::lora_file;
use super::peft_folder::{check_written, CLIP, PROJECTION};
use crate::error::{Error, Result};
use crate::plain_text::hex;
use crate::weights::{
    is_finite, model_specification, original_unet_module, tensor_file, MappedFile, OriginalGeneration, STABILITY_CODE,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// How modules are named.
struct Names {
    of_xl: bool,
    /// The UNet's by the original code.
    original: bool,
}

impl Names {
    fn of(set: &AdapterSet) -> Self {
        let of_xl = set.family.or_else(|| Family::of_set(set)) == Some(Family::Xl);
        let modules = set.part(Part::UNet).map(PartAdapter::modules).unwrap_or_default();
        let has_original = |path: &String| original_unet_module(path, XL_LAYERS).is_some();
        Self { of_xl, original: of_xl && modules.iter().all(has_original) }
    }

    /// The name of the module at `path` of `part`.
    fn module(&self, part: Part, path: &str) -> String {
        let original = || original_unet_module(path, XL_LAYERS).filter(|_| self.original);
        let (prefix, path) = match part {
            Part::UNet => ("lora_unet_", original().unwrap_or_else(|| path.to_owned())),
            Part::TextEncoder if self.of_xl => ("lora_te1_", format!("{CLIP}{path}")),
            Part::TextEncoder => ("lora_te_", format!("{CLIP}{path}")),
            Part::TextEncoder2 if path == PROJECTION.trim_end_matches('.') => ("lora_te2_", path.to_owned()),
            Part::TextEncoder2 => ("lora_te2_", format!("{CLIP}{path}")),
        };
        format!("{prefix}{}", path.replace('.', "_"))
    }
}

/// Blocks of a level in Stable Diffusion XL.
const XL_LAYERS: usize = 2;

/// Writes `set` to the file `path` in `kind` and reads it back. `metadata` is added to the `ss_` keys that follow from
/// the adapter and wins over them. Tensors that are no low-rank pairs ([`AdapterSet::whole_tensors`]) are left out.
pub fn write(path: &Path, set: &AdapterSet, kind: Kind, metadata: &BTreeMap<String, String>) -> Result<()> {
    let (mut tensors, names) = (BTreeMap::new(), Names::of(set));
    for (part, adapter) in set.parts() {
        let alpha = common_alpha(adapter);
        for module in adapter.modules() {
            let name = names.module(part, &module);
            let of = |end: &str| adapter.tensors.get(&format!("{module}.{end}"));
            let (Some(a), Some(b)) = (of("lora_A.weight"), of("lora_B.weight")) else {
                return Err(Error::invalid(format!("the adapter has no pair for `{module}`")));
            };
            let gain = alpha_of(adapter, &module) / alpha;
            let b = if gain == 1.0 { b.shallow_clone() } else { b.to_kind(Kind::Float) * gain };
            tensors.insert(format!("{name}.lora_down.weight"), a.to_kind(kind));
            tensors.insert(format!("{name}.lora_up.weight"), b.to_kind(kind));
            tensors.insert(format!("{name}.alpha"), Tensor::from(alpha as f32).to_kind(kind));
            if let Some(magnitude) = of("lora_magnitude_vector") {
                let mut shape = vec![1; b.dim()];
                shape[0] = -1;
                tensors.insert(format!("{name}.dora_scale"), magnitude.reshape(shape.as_slice()).to_kind(kind));
            } else if let Some(magnitude) = of("lora_column_magnitude") {
                tensors.insert(format!("{name}.dora_scale"), magnitude.to_kind(kind));
            }
        }
    }
    for (part, text_encoder) in set.parts().filter(|(part, _)| part.is_text_encoder()) {
        tensors.extend(marker(&names, part, text_encoder, kind));
    }
    if tensors.is_empty() {
        return Err(Error::invalid("the adapter has no LoRA pairs, which a kohya file is made of"));
    }
    for (name, tensor) in &tensors {
        if !is_finite(tensor)? {
            let message = format!("`{name}` is too large for {kind:?}; leave ⟨half⟩ out");
            return Err(Error::invalid(message));
        }
    }
    let mut whole = training_metadata(set, metadata.get(PREDICTION).map(String::as_str));
    if whole.contains_key("modelspec.architecture") {
        let title = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        whole.insert("modelspec.title".into(), title.unwrap_or_default());
    }
    whole.extend(metadata.iter().map(|(name, value)| (name.clone(), value.clone())));
    let hashes = hashes(&tensors, &whole)?;
    whole.extend(hashes);
    tensor_file::save(path, &tensors, &whole)?;
    check_written(path, &tensors)?;
    lora_file::read(&MappedFile::open(path)?, None).map(|_| ())
}

/// A pair of zeros for the first `out_proj` of a text encoder that has attention's other projections alone: diffusers 0.42
/// knows a kohya text encoder by an `out_proj`, and fails without. Readers leave it out again.
fn marker(names: &Names, part: Part, adapter: &PartAdapter, kind: Kind) -> BTreeMap<String, Tensor> {
    let modules = adapter.modules();
    let first = modules.iter().find_map(|module| Some((module, module.rsplit_once(".self_attn.")?.0)));
    let Some((module, layer)) = first.filter(|_| !modules.iter().any(|module| module.ends_with(".out_proj"))) else {
        return BTreeMap::new();
    };
    let name = names.module(part, &format!("{layer}.self_attn.out_proj"));
    let a = adapter.tensors[&format!("{module}.lora_A.weight")].zeros_like().to_kind(kind);
    let alpha = Tensor::from(common_alpha(adapter) as f32).to_kind(kind);
    BTreeMap::from([
        (format!("{name}.lora_up.weight"), a.tr().contiguous()),
        (format!("{name}.lora_down.weight"), a),
        (format!("{name}.alpha"), alpha),
    ])
}

/// The alpha for which alpha/rank is the module's scale.
fn alpha_of(adapter: &PartAdapter, module: &str) -> f64 {
    adapter.config.scaling_of(module) * adapter.config.rank_of(module) as f64
}

/// The most common alpha of the modules; 1 where that is 0.
fn common_alpha(adapter: &PartAdapter) -> f64 {
    let alphas = adapter.modules().into_iter().map(|module| alpha_of(adapter, &module).to_bits());
    match f64::from_bits(most_common(alphas)) {
        0.0 => 1.0,
        alpha => alpha,
    }
}

/// What a file says that its model predicts, in Stability's model specification.
const PREDICTION: &str = "modelspec.prediction_type";

/// sd-scripts' smallest set of metadata, of an adapter for a model that predicts `prediction`.
fn training_metadata(set: &AdapterSet, prediction: Option<&str>) -> BTreeMap<String, String> {
    let (mut dims, mut alphas, mut conv) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for (_, adapter) in set.parts() {
        let alpha = common_alpha(adapter);
        for module in adapter.modules() {
            let a = &adapter.tensors[&format!("{module}.lora_A.weight")];
            let rank = a.size()[0];
            if a.size().last().is_some_and(|&kernel| a.dim() == 4 && kernel > 1) {
                conv.insert("conv_dim", rank.to_string());
                conv.insert("conv_alpha", alpha.to_string());
            } else {
                dims.insert(rank.to_string());
                alphas.insert(format!("{alpha:?}"));
            }
        }
    }
    let one = |found: BTreeSet<String>| match found.len() {
        1 => found.into_iter().next().unwrap_or_default(),
        _ => "Dynamic".to_owned(),
    };
    let mut metadata = BTreeMap::from([
        ("ss_network_module".to_owned(), "networks.lora".to_owned()),
        ("ss_network_dim".to_owned(), one(dims)),
        ("ss_network_alpha".to_owned(), one(alphas)),
    ]);
    if !conv.is_empty() {
        metadata.insert("ss_network_args".into(), json!(conv).to_string());
    }
    // The width of the text embeddings tells the generations of Stable Diffusion apart.
    let family = set.family.or_else(|| Family::of_set(set));
    // What is known of a model's kind by its text encoder alone is not said: Stable Diffusion XL has 1.x's too.
    let family = family.filter(|family| *family == Family::Xl || context_width(set.part(Part::UNet)).is_some());
    let predicts_v = prediction == Some("v");
    if let Some((generation, v2, version, implementation, side)) = match family {
        Some(Family::V1) => Some((OriginalGeneration::V1, "False", "sd_v1", "diffusers", 512)),
        Some(Family::V2) if predicts_v => Some((OriginalGeneration::V2, "True", "sd_v2_v", "diffusers", 768)),
        Some(Family::V2) => Some((OriginalGeneration::V2, "True", "sd_v2", "diffusers", 512)),
        Some(Family::Xl) => Some((OriginalGeneration::Xl, "False", "sdxl_base_v1-0", STABILITY_CODE, 1024)),
        _ => None,
    } {
        metadata.insert("ss_v2".into(), v2.into());
        metadata.insert("ss_base_model_version".into(), version.into());
        metadata.extend(model_specification([
            ("architecture", format!("{}/lora", generation.architecture(predicts_v))),
            ("implementation", implementation.to_owned()),
            ("resolution", format!("{side}x{side}")),
        ]));
    }
    metadata
}

/// `sshs_model_hash`, the SHA-256 of all bytes after the header, and `sshs_legacy_hash`, eight digits of that of the
/// 64 KiB from the first MiB on, both of the file with the `ss_` metadata alone.
fn hashes(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<[(String, String); 2]> {
    let kept = metadata.iter().filter(|(name, _)| name.starts_with("ss_"));
    let kept = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    let bytes = tensor_file::serialize(tensors, &kept)?;
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    let legacy = bytes.get(0x10_0000..).unwrap_or_default();
    let legacy = sha256(&legacy[..legacy.len().min(0x1_0000)]);
    Ok([
        ("sshs_model_hash".into(), sha256(bytes.get(8 + header..).unwrap_or_default())),
        ("sshs_legacy_hash".into(), legacy[..8].to_owned()),
    ])
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
