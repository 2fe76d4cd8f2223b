//! Stable Diffusion XL: its networks, its training and its pictures equal those of diffusers, transformers and peft.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

mod files;
mod pictures;
mod quantised;
mod refusals;
mod sizes;
mod training;

use super::models::vae_equals;
use crate::support::{made, model, read, read_json, relative_error};
use lorabooth::adapters::Part;
use lorabooth::models::stable_diffusion::{Conditioning, PipelineFiles};
use lorabooth::weights::Placement;
use serde_json::{json, Value};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const FLOAT32: Placement = Placement { device: Device::Cpu, kind: Kind::Float };

/// Outputs and gradients of every network against the reference's, which reads `folder`.
fn check_networks(files: &PipelineFiles, folder: &Path, file_variant: Option<&str>) {
    let request = json!({ "model": folder, "height": 64, "width": 96, "file_variant": file_variant });
    let expected = read(made("forward.py", "forward.safetensors", &request));
    let assert_equal = |name: &str, actual: &Tensor| {
        let error = relative_error(actual, &expected[name]);
        println!("{name}: {error:.1e}");
        let bound = if name.ends_with("gradient") { 5e-4 } else { 1e-5 };
        assert!(error < bound, "{name} differs by {error:e}");
    };
    let row = |ids: &Tensor, text: i64| Vec::<i64>::try_from(ids.get(text)).unwrap();
    let [first, second] = ["text_encoder.input_ids", "text_encoder.ids_2"].map(|name| &expected[name]);
    let rows: Vec<Vec<Vec<i64>>> = (0..2).map(|text| vec![row(first, text), row(second, text)]).collect();
    for checkpointing in [false, true] {
        let encoders = files.load_text_encoders(FLOAT32).unwrap();
        let on = tch::no_grad(|| encoders.forward(&rows, checkpointing));
        assert_equal("text_encoder.output", &on.context);
        assert_equal("text_encoder.pooled", on.pooled.as_ref().unwrap());
    }
    vae_equals(files, &expected, &assert_equal);
    let unet = files.load_unet(FLOAT32).unwrap().model;
    for checkpointing in [false, true] {
        let leaf = |name: &str| expected[name].copy().set_requires_grad(true);
        let (latents, context, pooled) = (leaf("unet.latents"), leaf("unet.context"), leaf("unet.pooled"));
        let on = Conditioning {
            context: context.shallow_clone(),
            pooled: Some(pooled.shallow_clone()),
            time_ids: Some(expected["unet.time_ids"].shallow_clone()),
        };
        let output = unet.forward(&latents, &expected["unet.timesteps"], &on, checkpointing);
        assert_equal("unet.output", &output.detach());
        output.mse_loss(&expected["unet.target"], tch::Reduction::Mean).backward();
        assert_equal("unet.context_gradient", &context.grad());
        assert_equal("unet.pooled_gradient", &pooled.grad());
        assert_equal("unet.latents_gradient", &latents.grad());
    }
}

#[test]
fn the_networks_equal_the_reference_in_a_folder_a_variant_and_a_single_file() {
    let folder = model("tiny-xl");
    check_networks(&PipelineFiles::open(&folder, None).unwrap(), &folder, None);
    let file = made("single_file.py", "xl.safetensors", &json!({ "model": folder }));
    for configs in [None, Some(folder.as_path())] {
        let files = PipelineFiles::open_single(&file, configs).unwrap();
        assert!(files.is_xl());
        check_networks(&files, &folder, None);
    }
    let options = json!({ "variant": "tiny-xl", "dtype": "float16", "file_variant": "fp16" });
    let half = made("models.py", "tiny-xl", &options);
    check_networks(&PipelineFiles::open(&half, Some("fp16")).unwrap(), &half, Some("fp16"));
}

#[test]
fn the_published_shapes_have_their_published_sizes() {
    let folder = made("hollow_models.py", "sdxl", &json!({ "variant": "sdxl" }));
    let files = PipelineFiles::open(&folder, None).unwrap();
    files.check_parts().unwrap();
    let base = |part: Part| {
        let weights = files.part_weights(part).unwrap();
        weights.keys().map(|key| weights.shape(key).unwrap().iter().product::<i64>()).sum::<i64>()
    };
    assert_eq!(base(Part::UNet), 2_567_463_684);
    assert_eq!(base(Part::TextEncoder), 123_060_480);
    assert_eq!(base(Part::TextEncoder2), 694_659_840);
    assert_eq!(files.native_resolution().unwrap(), 1024);
}

#[test]
fn a_single_file_says_what_it_predicts() {
    let folder = model("tiny-xl");
    let said = |options: Value| {
        let file = made("single_file.py", "xl.safetensors", &options);
        let files = PipelineFiles::open_single(&file, None).unwrap();
        (files.scheduler_config_json().unwrap(), files.warnings())
    };
    let (plain, warnings) = said(json!({ "model": folder }));
    assert_eq!(
        (&plain["prediction_type"], &plain["_class_name"]),
        (&json!("epsilon"), &json!("EulerDiscreteScheduler"))
    );
    assert_eq!((&plain["timestep_spacing"], &plain["rescale_betas_zero_snr"]), (&json!("leading"), &Value::Null));
    assert!(warnings[0].contains("the text encoders of Stable Diffusion XL"), "{warnings:?}");
    let (marked, warnings) = said(json!({ "model": folder, "marks": true }));
    assert_eq!((&marked["prediction_type"], &marked["timestep_spacing"]), (&json!("v_prediction"), &json!("trailing")));
    assert_eq!((&marked["rescale_betas_zero_snr"], warnings.len()), (&json!(true), 0));
}

#[test]
fn another_vae_stands_in_for_the_models_own() {
    let (folder, other) = (model("tiny-xl"), made("models.py", "tiny-xl", &json!({ "variant": "tiny-xl", "seed": 7 })));
    let single = made("single_file.py", "xl.safetensors", &json!({ "model": other }));
    let own = PipelineFiles::open(&other, None).unwrap().vae_weights().unwrap();
    let key = "decoder.conv_in.weight";
    let shape = own.shape(key).unwrap();
    let wanted = own.load(key, &shape, FLOAT32).unwrap();
    for vae in [other.join("vae"), other.clone(), other.join("vae/diffusion_pytorch_model.safetensors"), single] {
        let options = lorabooth::models::stable_diffusion::ModelOptions {
            vae: Some(vae.to_str().unwrap().to_owned()),
            ..Default::default()
        };
        let files = PipelineFiles::resolve(folder.to_str().unwrap(), &options, &mut ()).unwrap();
        let found = files.vae_weights().unwrap().load(key, &shape, FLOAT32).unwrap();
        assert!(found.equal(&wanted), "{}", vae.display());
        let config = files.vae_config().unwrap();
        assert_eq!((config.scaling_factor, config.sample_size), (0.13025, 128), "{}", vae.display());
        files.load_vae(FLOAT32).unwrap();
    }
    // A checkpoint without a VAE needs another one.
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("bare.safetensors");
    let whole = read(made("single_file.py", "xl.safetensors", &json!({ "model": folder })));
    let bare: Vec<(String, Tensor)> =
        whole.into_iter().filter(|(key, _)| !key.starts_with("first_stage_model.")).collect();
    Tensor::write_safetensors(&bare, &path).unwrap();
    let open = |vae: Option<&Path>| {
        let vae = vae.map(|vae| vae.to_str().unwrap().to_owned());
        let options = lorabooth::models::stable_diffusion::ModelOptions { vae, ..Default::default() };
        PipelineFiles::resolve(path.to_str().unwrap(), &options, &mut ())
    };
    let message = open(None).unwrap_err().to_string();
    assert!(message.contains("no VAE (first_stage_model.*)") && message.contains("give one with ⟨vae⟩"), "{message}");
    let files = open(Some(&other.join("vae"))).unwrap();
    files.check_parts().unwrap();
    assert_eq!(files.native_resolution().unwrap(), 1024);
    assert!(files.vae_weights().unwrap().load(key, &shape, FLOAT32).unwrap().equal(&wanted));
}

#[test]
fn an_inferred_configuration_is_that_of_the_folder() {
    let folder = model("tiny-xl");
    let file = made("single_file.py", "xl.safetensors", &json!({ "model": folder }));
    let files = PipelineFiles::open_single(&file, None).unwrap();
    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let (ours, theirs) = (files.config_json(part).unwrap(), read_json(folder.join(part).join("config.json")));
        for (name, value) in ours.as_object().unwrap() {
            // The side that a model was made for is not in its shapes.
            if name == "sample_size" || name == "transformer_layers_per_block" {
                continue;
            }
            let same = value == &theirs[name] || (value.is_number() && value.as_f64() == theirs[name].as_f64());
            assert!(same, "{part}: {name} is {value} and not {}", theirs[name]);
        }
    }
}
