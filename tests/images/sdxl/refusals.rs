//! What is refused, and by which name.

use crate::support::{lorabooth, made, model, photos, read};
use lorabooth::models::stable_diffusion::PipelineFiles;
use serde_json::{json, Value};
use std::path::Path;
use tch::Tensor;

fn adapter(variant: &str, targets: &str) -> String {
    let options = json!({ "model": model(variant), "outputs": false,
        "unet": { "r": 4, "lora_alpha": 6, "target_modules": [targets] } });
    made("adapters.py", "adapter", &options).join("peft").to_str().unwrap().to_owned()
}

fn refused(args: &[&str]) -> String {
    let output = lorabooth(args);
    assert!(!output.status.success(), "{args:?} was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_adapter_of_another_generation_is_named_with_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.png");
    let draw = |model: &Path, lora: &str| {
        let given = ["--model", model.to_str().unwrap(), "--lora", lora, "--output", out.to_str().unwrap()];
        refused(&[&["generate", "--device", "cpu", "--prompt", "a dog"][..], &given].concat())
    };
    let message = draw(&model("tiny"), &adapter("tiny-xl", "to_q"));
    let is = "is a LoRA for Stable Diffusion XL, but the model is Stable Diffusion 1.x";
    assert!(message.contains(is), "{message}");
    let message = draw(&model("tiny-xl"), &adapter("tiny", "to_k"));
    assert!(
        message.contains("does not fit this model") || message.contains("the model is Stable Diffusion XL"),
        "{message}"
    );
    assert!(message.contains("text embeddings have width 32, the model's 192"), "{message}");
}

/// A copy of the folder of a model, whose files can be changed.
pub fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copied(&entry, &target),
            false => _ = std::fs::copy(&entry, &target).unwrap(),
        }
    }
}

pub fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn refiners_inpainting_models_and_models_without_an_encoder_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let xl = model("tiny-xl");
    let error =
        |path: &Path| PipelineFiles::open(path, None).and_then(|files| files.check_parts()).unwrap_err().to_string();
    let with = |name: &str, change: &dyn Fn(&Path)| {
        let path = folder.path().join(name);
        copied(&xl, &path);
        change(&path);
        error(&path)
    };
    let message = with("refiner", &|path| std::fs::remove_dir_all(path.join("text_encoder")).unwrap());
    assert!(message.contains("the refiner of Stable Diffusion XL"), "{message}");
    let message = with("one", &|path| std::fs::remove_dir_all(path.join("text_encoder_2")).unwrap());
    assert!(message.contains("has no folder `text_encoder_2`; a Stable Diffusion XL model"), "{message}");
    let channels = |count: i64| {
        move |path: &Path| change_json(&path.join("unet/config.json"), |config| config["in_channels"] = json!(count))
    };
    assert!(with("inpainting", &channels(9)).contains("inpainting model"));
    assert!(with("edits", &channels(8)).contains("edits by instruction"));
    let message = with("width", &|path| {
        change_json(&path.join("text_encoder_2/config.json"), |config| config["projection_dim"] = json!(64));
    });
    assert!(message.contains("64 numbers for a whole text and the UNet takes 128"), "{message}");

    let file = made("single_file.py", "xl.safetensors", &json!({ "model": xl }));
    let without = |name: &str, start: &str| {
        let path = folder.path().join(name);
        let kept: Vec<(String, Tensor)> = read(&file).into_iter().filter(|(key, _)| !key.starts_with(start)).collect();
        Tensor::write_safetensors(&kept, &path).unwrap();
        PipelineFiles::open_single(&path, None).unwrap_err().to_string()
    };
    let message = without("second.safetensors", "conditioner.embedders.1.");
    assert!(message.contains("no second text encoder") && message.contains("four networks"), "{message}");
    let message = without("first.safetensors", "conditioner.embedders.0.");
    assert!(message.contains("no first text encoder"), "{message}");
}

#[test]
fn numbers_that_are_none_in_a_fine_tunes_weights_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    copied(&model("tiny-xl"), &path);
    let file = path.join("unet/diffusion_pytorch_model.safetensors");
    let mut weights = read(&file);
    let broken = "mid_block.attentions.0.transformer_blocks.2.ff.net.2.weight";
    weights.insert(broken.to_owned(), weights[broken].zeros_like() * f64::NAN);
    Tensor::write_safetensors(&weights.into_iter().collect::<Vec<_>>(), &file).unwrap();
    let (photos, out) = (photos(2, 0), folder.path().join("out"));
    let train =
        "train dreambooth --device cpu --mixed-precision no --resolution 128 --max-train-steps 2 --instance-prompt sks";
    let mut args: Vec<&str> = train.split_whitespace().collect();
    args.extend(["--model", path.to_str().unwrap(), "--instance-data-dir", photos.to_str().unwrap()]);
    args.extend(["--output-dir", out.to_str().unwrap()]);
    let message = refused(&args);
    assert!(message.contains("unet.mid_block.attentions.0.transformer_blocks.2.ff.net.2"), "{message}");
    let draw = ["generate", "--device", "cpu", "--dtype", "fp32", "--prompt", "sks", "--steps", "1", "--model"];
    let picture = folder.path().join("a.png");
    let draw = [&draw[..], &[path.to_str().unwrap(), "--output", picture.to_str().unwrap()]].concat();
    let message = refused(&draw);
    assert!(message.contains(&format!("`unet.{broken}` holds NaN")) && !picture.exists(), "{message}");

    let other = folder.path().join("vae");
    copied(&model("tiny-xl"), &other);
    let file = other.join("vae/diffusion_pytorch_model.safetensors");
    let mut weights = read(&file);
    let broken = "encoder.conv_in.weight";
    weights.insert(broken.to_owned(), weights[broken].zeros_like() * f64::NAN);
    Tensor::write_safetensors(&weights.into_iter().collect::<Vec<_>>(), &file).unwrap();
    let args: Vec<&str> =
        args.iter().map(|arg| if *arg == path.to_str().unwrap() { other.to_str().unwrap() } else { arg }).collect();
    let message = refused(&[&args[..], &["--overwrite"]].concat());
    assert!(message.contains(&format!("`vae.{broken}` holds NaN")), "{message}");
}

#[test]
fn options_of_two_encoders_are_refused_for_a_model_of_one() {
    let tiny = model("tiny");
    let args = ["generate", "--device", "cpu", "--prompt", "a dog", "--model", tiny.to_str().unwrap()];
    for (flag, value) in [("--prompt-2", "a cat"), ("--original-size", "64x64")] {
        let message = refused(&[&args[..], &[flag, value]].concat());
        assert!(message.contains(flag) && message.contains("for Stable Diffusion XL"), "{message}");
    }
    let xl = model("tiny-xl");
    let args = ["generate", "--device", "cpu", "--prompt", "a dog", "--model", xl.to_str().unwrap()];
    for (flag, value, say) in
        [("--original-size", "64", "1024x768"), ("--crop", "-1,2", "0,256"), ("--guidance-rescale", "2", "0 to 1")]
    {
        let message = refused(&[&args[..], &[&format!("{flag}={value}")]].concat());
        assert!(message.contains(flag) && message.contains(say), "{message}");
    }
}
