//! A model with adapters folded in, as a whole pipeline folder in the diffusers layout: of a folder, or of a single-file
//! checkpoint, whose configurations and key names become diffusers'.

use crate::adapters::merge::{self, Folding, Merge, Shapes};
use crate::adapters::model_folder::{into_folder, Existing};
use crate::adapters::{AdapterSet, Part};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::models::config_file;
use crate::models::stable_diffusion::PipelineFiles;
use crate::options::model::ModelArgs;
use crate::recipes::training::observer::{Event, Observer};
use crate::weights::WeightSet;
use crate::whole_file::write_json;
use serde_json::json;
use std::path::Path;
use tch::Kind;

/// Writes `files`, opened as `model` says, with `adapters`, each at its strength, folded in to the folder `out`; `existing`
/// says what becomes of a model that is there. Dtypes are those of the files where no `kind` is given.
pub fn write(
    files: &PipelineFiles,
    model: &ModelArgs,
    adapters: &[(AdapterSet, f64)],
    kind: Option<Kind>,
    (out, existing): (&Path, Existing),
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<()> {
    let single = files.is_single_file();
    // What can be refused is refused before gigabytes are written.
    let tokenizer = match single || model.tokenizer_name.is_some() {
        true => Some(files.tokenizer_folder()?),
        false => None,
    };
    let mut progress = |done, total| observer.merging(done, total, interrupt);
    let written = into_folder(out, existing, |partial| {
        match single {
            true => write_single_file(files, adapters, kind, partial, &mut progress)?,
            false => Merge { model: files.root(), variant: model.variant.as_deref(), adapters, kind }
                .write_parts(partial, &mut progress)?,
        }
        if single || model.prediction_type.is_some() {
            write_json(&partial.join("scheduler/scheduler_config.json"), &files.scheduler_config_json()?)?;
        }
        tokenizer.iter().try_for_each(|folder| merge::copy_files(folder, &partial.join("tokenizer"), |_| true))?;
        let second = files.second_tokenizer_folder().filter(|_| single && files.is_xl());
        match (second, &tokenizer) {
            (Some(folder), _) => merge::copy_files(&folder, &partial.join("tokenizer_2"), |_| true),
            (None, Some(first)) if single && files.is_xl() => {
                write_second_tokenizer(first, &partial.join("tokenizer_2"))
            }
            (None, _) => Ok(()),
        }
    });
    observer.on(Event::End);
    written
}

fn write_single_file(
    files: &PipelineFiles,
    adapters: &[(AdapterSet, f64)],
    kind: Option<Kind>,
    out: &Path,
    progress: merge::Progress,
) -> Result<()> {
    let layers = files.text_encoder_config(Part::TextEncoder)?.num_hidden_layers;
    // Stable Diffusion 2 is conditioned on a layer before the last ones of its file.
    let is_used = |key: &str| {
        let layer = key.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next());
        layer.and_then(|layer| layer.parse().ok()).is_none_or(|layer: i64| layer < layers)
    };
    let text_encoder =
        files.text_encoder_weights(Part::TextEncoder)?.respelled(|key| is_used(key).then(|| key.to_owned()));
    let mut parts: Vec<(&str, Option<Part>, &str, WeightSet)> = vec![
        ("unet", Some(Part::UNet), "diffusion_pytorch_model", files.unet_weights()?),
        ("vae", None, "diffusion_pytorch_model", files.vae_weights()?),
        ("text_encoder", Some(Part::TextEncoder), "model", text_encoder),
    ];
    if files.is_xl() {
        let second = Part::TextEncoder2;
        // As transformers 5 calls them, which has left `text_model.` in models with a projection.
        let spelled = |key: &str| match key.starts_with("text_projection.") {
            true => key.to_owned(),
            false => format!("text_model.{key}"),
        };
        let weights = files.text_encoder_weights(second)?.respelled(|key| Some(spelled(key)));
        parts.push((second.name(), Some(second), "model", weights));
    }
    for (name, part, stem, weights) in parts {
        let folder = out.join(name);
        write_json(&folder.join("config.json"), &files.config_json(name)?)?;
        let shapes = if name == "vae" { Shapes::LinearAttention } else { Shapes::AsTheyAre };
        let folding = Folding { shapes, kind, ..Folding::of_part(&weights, part, adapters) };
        folding.write(&folder.join(format!("{stem}.safetensors")), progress)?;
    }
    let scheduler = files.scheduler_config_json()?;
    let class = scheduler.get("_class_name").and_then(|name| name.as_str());
    let class = class.ok_or_else(|| Error::file(files.root(), "its scheduler's configuration has no `_class_name`"))?;
    let mut index = json!({
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [null, null],
        "scheduler": ["diffusers", class],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    let more = match files.is_xl() {
        true => json!({
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": true,
            "image_encoder": [null, null],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }),
        false => json!({ "requires_safety_checker": false, "safety_checker": [null, null] }),
    };
    more.as_object().into_iter().flatten().for_each(|(name, value)| index[name] = value.clone());
    write_json(&out.join("model_index.json"), &index)
}

/// Writes Stable Diffusion XL's second tokenizer to the folder `to`: the first one, in the folder `from`, with other padding.
fn write_second_tokenizer(from: &Path, to: &Path) -> Result<()> {
    let files = |path: &Path| path.file_name().is_none_or(|name| name != "tokenizer.json");
    let has_vocabulary = from.join("vocab.json").is_file() && from.join("merges.txt").is_file();
    merge::copy_files(from, to, |path| !has_vocabulary || files(path))?;
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = to.join(name);
        let mut config = match path.is_file() {
            true => config_file::read_json(&path)?,
            false if name == "tokenizer_config.json" => json!({ "tokenizer_class": "CLIPTokenizer" }),
            false => continue,
        };
        config["pad_token"] = json!("!");
        write_json(&path, &config)?;
    }
    Ok(())
}
