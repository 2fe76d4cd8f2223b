//! A model with adapters folded in, as a whole pipeline folder in the diffusers layout: of a folder, or of a single-file
//! checkpoint, whose configurations and key names become diffusers'.

use crate::adapters::merge::{self, Folding, Merge, Shapes};
use crate::adapters::model_folder::{into_folder, Existing};
use crate::adapters::{AdapterSet, Part};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
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
        tokenizer.iter().try_for_each(|folder| merge::copy_files(folder, &partial.join("tokenizer"), |_| true))
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
    let layers = files.text_encoder_config()?.num_hidden_layers;
    // Stable Diffusion 2 is conditioned on a layer before the last ones of its file.
    let is_used = |key: &str| {
        let layer = key.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next());
        layer.and_then(|layer| layer.parse().ok()).is_none_or(|layer: i64| layer < layers)
    };
    let text_encoder = files.text_encoder_weights()?.respelled(|key| is_used(key).then(|| key.to_owned()));
    let parts: [(&str, Option<Part>, &str, WeightSet); 3] = [
        ("unet", Some(Part::UNet), "diffusion_pytorch_model", files.unet_weights()?),
        ("vae", None, "diffusion_pytorch_model", files.vae_weights()?),
        ("text_encoder", Some(Part::TextEncoder), "model", text_encoder),
    ];
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
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", class],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    write_json(&out.join("model_index.json"), &index)
}
