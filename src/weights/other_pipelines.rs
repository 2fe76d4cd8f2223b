//! The names of pipelines that are not Stable Diffusion 1.x or 2.x, told by what diffusers writes into their folders.

use crate::regular_file::{self, FileKind};
use serde_json::Value;
use std::path::Path;

/// What every refusal of another model ends with.
pub(crate) const SUPPORTED: &str = "this version supports Stable Diffusion 1.x and 2.x";

/// How the names of diffusers' classes begin, and what people call the models; the first that fits.
const FAMILIES: &[(&str, &str)] = &[
    ("StableDiffusionXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("SD3", "Stable Diffusion 3"),
    ("StableCascade", "Stable Cascade"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
    ("StableAudio", "Stable Audio"),
    ("Flux2", "Flux 2"),
    ("Flux", "Flux"),
    ("Chroma", "Chroma"),
    ("PixArt", "PixArt"),
    ("AuraFlow", "AuraFlow"),
    ("Sana", "Sana"),
    ("Kandinsky", "Kandinsky"),
    ("Kolors", "Kolors"),
    ("HunyuanDiT", "Hunyuan-DiT"),
    ("HunyuanVideo", "HunyuanVideo"),
    ("Lumina", "Lumina"),
    ("CogView", "CogView"),
    ("CogVideo", "CogVideoX"),
    ("QwenImage", "Qwen-Image"),
    ("Wan", "Wan"),
    ("LTX", "LTX-Video"),
    ("IF", "DeepFloyd IF"),
    ("Wuerstchen", "Würstchen"),
    ("AltDiffusion", "AltDiffusion"),
    ("ZImage", "Z-Image"),
];

fn family(class: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|(start, _)| class.starts_with(start)).map(|(_, name)| *name)
}

/// What the pipeline of a model_index.json is, in words; none where it is Stable Diffusion 1.x or 2.x.
pub(crate) fn of_index(index: &Value) -> Option<String> {
    let class = index.get("_class_name").and_then(Value::as_str);
    if let Some(name) = class.and_then(family) {
        return Some(name.to_owned());
    }
    let has = |part: &str| index.get(part).and_then(|value| value.get(0)).is_some_and(Value::is_string);
    let is_other = !has("unet") || has("text_encoder_2") || has("transformer");
    is_other.then(|| class.map_or("a pipeline of an unknown kind".to_owned(), |class| format!("a {class}")))
}

/// The same of a folder in the diffusers layout: by its model_index.json, or by the configurations of its networks where it has none.
pub(crate) fn of_folder(root: &Path) -> Option<String> {
    let json = |name: &str| {
        let text = regular_file::read(&root.join(name), FileKind::CONFIG).ok()?;
        serde_json::from_slice::<Value>(&text).ok()
    };
    let class = |config: Option<Value>| config.and_then(|config| config["_class_name"].as_str().map(str::to_owned));
    if let Some(name) = class(json("model_index.json")).as_deref().and_then(family) {
        return Some(name.to_owned());
    }
    if let Some(class) = class(json("transformer/config.json")) {
        return Some(family(&class).map_or_else(|| format!("a {class}"), str::to_owned));
    }
    // The UNet of Stable Diffusion XL is conditioned on sizes too.
    let is_xl = root.join("text_encoder_2").is_dir()
        || json("unet/config.json").is_some_and(|config| config["addition_embed_type"] == "text_time");
    is_xl.then(|| "Stable Diffusion XL".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn folder(files: &[(&str, Value)]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        }
        of_folder(folder.path())
    }

    #[test]
    fn other_models_are_called_by_name() {
        for (class, name) in [
            ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
            ("StableDiffusionXLImg2ImgPipeline", "Stable Diffusion XL"),
            ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
            ("FluxPipeline", "Flux"),
            ("PixArtSigmaPipeline", "PixArt"),
        ] {
            let index = json!({ "_class_name": class, "unet": ["diffusers", "U"] });
            assert_eq!(of_index(&index).as_deref(), Some(name));
            assert_eq!(folder(&[("model_index.json", index)]).as_deref(), Some(name));
        }
        let transformer = json!({ "_class_name": "SD3Transformer2DModel" });
        assert_eq!(folder(&[("transformer/config.json", transformer)]).as_deref(), Some("Stable Diffusion 3"));
        let unet = json!({ "_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time" });
        assert_eq!(folder(&[("unet/config.json", unet)]).as_deref(), Some("Stable Diffusion XL"));
    }

    #[test]
    fn stable_diffusion_itself_is_none_of_them() {
        let unet = ("unet/config.json", json!({ "_class_name": "UNet2DConditionModel" }));
        for class in ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline"] {
            let index =
                json!({ "_class_name": class, "unet": ["diffusers", "U"], "text_encoder": ["transformers", "C"] });
            assert_eq!(of_index(&index), None);
            assert_eq!(folder(&[("model_index.json", index), unet.clone()]), None, "{class}");
        }
        assert_eq!(folder(&[unet]), None);
    }
}
