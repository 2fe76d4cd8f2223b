//! The names of pipelines that are not Stable Diffusion 1.x, 2.x or XL, told by what diffusers writes into their folders.

use crate::regular_file::{self, FileKind};
use serde_json::Value;
use std::path::Path;

/// What every refusal of another model ends with.
pub(crate) const SUPPORTED: &str = "this version supports Stable Diffusion 1.x, 2.x and XL";

/// How the names of diffusers' classes begin, and what people call the models; the first that fits.
const FAMILIES: &[(&str, &str)] = &[
    ("StableDiffusionXLInpaint", "Stable Diffusion XL for inpainting"),
    ("StableDiffusionXLInstructPix2Pix", "Stable Diffusion XL for edits by instruction"),
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

/// What people call the second stage of Stable Diffusion XL.
const REFINER: &str = "the refiner of Stable Diffusion XL, which only finishes pictures of the base model";

/// What the pipeline of a model_index.json is, in words; none where it is Stable Diffusion 1.x, 2.x or XL.
pub(crate) fn of_index(index: &Value) -> Option<String> {
    let class = index.get("_class_name").and_then(Value::as_str);
    if let Some(name) = class.and_then(family) {
        return Some(name.to_owned());
    }
    let has = |part: &str| index.get(part).and_then(|value| value.get(0)).is_some_and(Value::is_string);
    if has("unet") && has("text_encoder_2") && !has("text_encoder") {
        return Some(REFINER.to_owned());
    }
    let is_other = !has("unet") || has("transformer");
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
    let is_refiner = root.join("text_encoder_2").is_dir() && !root.join("text_encoder").is_dir();
    is_refiner.then(|| REFINER.to_owned())
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
            ("StableDiffusionXLInpaintPipeline", "Stable Diffusion XL for inpainting"),
            ("StableDiffusionXLInstructPix2PixPipeline", "Stable Diffusion XL for edits by instruction"),
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
        let refiner = json!({ "_class_name": "StableDiffusionXLImg2ImgPipeline", "unet": ["diffusers", "U"],
            "text_encoder": [null, null], "text_encoder_2": ["transformers", "C"] });
        assert!(of_index(&refiner).unwrap().starts_with("the refiner of Stable Diffusion XL"));
        let found = folder(&[("text_encoder_2/config.json", json!({}))]).unwrap();
        assert!(found.starts_with("the refiner of Stable Diffusion XL"), "{found}");
    }

    #[test]
    fn stable_diffusion_itself_is_none_of_them() {
        let unet = ("unet/config.json", json!({ "_class_name": "UNet2DConditionModel" }));
        for class in [
            "StableDiffusionXLPipeline",
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "LatentConsistencyModelPipeline",
        ] {
            let index =
                json!({ "_class_name": class, "unet": ["diffusers", "U"], "text_encoder": ["transformers", "C"] });
            assert_eq!(of_index(&index), None);
            assert_eq!(folder(&[("model_index.json", index), unet.clone()]), None, "{class}");
        }
        assert_eq!(folder(&[unet]), None);
    }
}
