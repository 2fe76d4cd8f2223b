//! Numbers that float16 cannot hold: the layer that made them is named and computes in float32, and the run goes on.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{close, lines, t5};
use crate::support::{self, copy, lorabooth, lorabooth_ok, model, photos, read, read_json, stand_in, words};
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// A copy of the model at `from` in `to`, the tensors of its file `file` multiplied as `factors` say.
fn scaled(from: &Path, to: PathBuf, file: &str, factors: &[(&str, f64)]) -> PathBuf {
    copy(from, &to);
    let path = to.join(file);
    let mut tensors = read(&path);
    for (name, factor) in factors {
        let tensor = tensors.get_mut(*name).unwrap_or_else(|| panic!("no {name}"));
        *tensor = &*tensor * *factor;
    }
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    Tensor::write_safetensors(&tensors, &path).unwrap();
    to
}

/// A convolution of the UNet whose output passes 65,504, and a norm behind it that has it small again.
fn loud(resnet: &str) -> Vec<(String, f64)> {
    ["weight", "bias"].iter().map(|part| (format!("{resnet}.conv1.{part}"), 1e5)).collect()
}

fn dreambooth(model: &Path, out: &Path, more: &str) -> Vec<String> {
    words(&format!(
        "train dreambooth --device cpu --threads 1 --quiet --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 \
         --learning-rate 1e-3 --max-train-steps 4 --mixed-precision fp16 --output-dir {} {more}",
        model.display(),
        photos(5, 0).display(),
        out.display()
    ))
}

fn losses(out: &Path) -> Vec<f64> {
    lines(&out.join("metrics.jsonl")).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

/// A run that repairs itself ends as one that had `layers` in float32 from the start, and its losses are near those of float32.
fn mends(args: &dyn Fn(&Path, &str) -> Vec<String>, layers: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [mended, asked, exact] = ["mended", "asked", "exact"].map(|name| folder.path().join(name));
    let output = lorabooth(&args(&mended, ""));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    for layer in layers {
        let told = said.lines().any(|line| line.contains("numbers were lost") && line.contains(layer));
        assert!(told, "{layer}: {said}");
    }
    let measures = read_json(mended.join("run.json"))["measures"].clone();
    let taken: Vec<&Value> =
        measures.as_array().unwrap().iter().map(|taken| &taken["options"]["fp32_layers"]).collect();
    assert_eq!(json!(taken), json!(layers), "{measures}");
    lorabooth_ok(&args(&asked, &format!("--fp32-layers {}", layers.join(","))));
    assert_eq!(losses(&mended), losses(&asked));
    lorabooth_ok(&args(&exact, "--mixed-precision no"));
    for (actual, expected) in losses(&mended).into_iter().zip(losses(&exact)) {
        close(actual, expected, 2e-2, "a loss");
    }
}

#[test]
fn a_block_of_the_unet_that_overflows_goes_on_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let factors = [loud("mid_block.resnets.0"), loud("up_blocks.0.resnets.1")].concat();
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    for more in ["", "--gradient-checkpointing --train-text-encoder --lora-targets to_q,to_v,conv1"] {
        let args = |out: &Path, again: &str| dreambooth(&model, out, &format!("{more} {again}"));
        mends(&args, &["unet.mid_block.resnets.0.conv1", "unet.up_blocks.0.resnets.1.conv1"]);
    }
}

/// One of them has lost the number, or both: they repair it in the same step.
#[test]
fn two_processes_go_on_in_float32_together() {
    let folder = tempfile::tempdir().unwrap();
    let factors = loud("mid_block.resnets.0");
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    let args = |out: &Path, again: &str| dreambooth(&model, out, &format!("--processes 2 --timeout 60 {again}"));
    mends(&args, &["unet.mid_block.resnets.0.conv1"]);
}

#[test]
fn a_projection_that_a_card_computes_with_others_is_found_too() {
    let folder = tempfile::tempdir().unwrap();
    let attention = "mid_block.attentions.0.transformer_blocks.0.attn1";
    let (to_v, to_out) = (format!("{attention}.to_v.weight"), format!("{attention}.to_out.0.weight"));
    let factors = [(&*to_v, 2f64.powi(20)), (&*to_out, 2f64.powi(-20))];
    let file = "unet/diffusion_pytorch_model.safetensors";
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    let args = |out: &Path, again: &str| dreambooth(&model, out, again);
    mends(&args, &[&format!("unet.{attention}.to_v")]);
    let on_card = folder.path().join("card");
    let args = dreambooth(&model, &on_card, "");
    let args: Vec<&str> = args.iter().map(|arg| if arg == "cpu" { "cuda" } else { arg }).collect();
    stand_in::on_card_ok(&args, &[]);
    let measures = &read_json(on_card.join("run.json"))["measures"];
    assert_eq!(measures[0]["options"]["fp32_layers"], format!("unet.{attention}.to_v"), "{measures}");
    assert_eq!(measures.as_array().unwrap().len(), 1, "{measures}");
}

#[test]
fn a_vae_that_overflows_goes_on_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let factors = loud("encoder.mid_block.resnets.0");
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "vae/diffusion_pytorch_model.safetensors";
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    for more in ["--cache-latents true", "--cache-latents false"] {
        mends(&|out: &Path, again: &str| dreambooth(&model, out, &format!("{more} {again}")), &["vae"]);
    }
}

#[test]
fn a_picture_is_decoded_in_float32_where_float16_loses_it() {
    let folder = tempfile::tempdir().unwrap();
    let factors = loud("decoder.mid_block.resnets.0");
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "vae/diffusion_pytorch_model.safetensors";
    let loud = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    let draw = |model: &Path, dtype: &str, out: &Path| {
        let text = format!(
            "generate --device cpu --threads 1 --quiet --model {} --prompt sks --steps 3 --dtype {dtype} --output {}",
            model.display(),
            out.display()
        );
        lorabooth_ok(&words(&text));
    };
    let [actual, expected] = ["fp16.png", "fp32.png"].map(|name| folder.path().join(name));
    draw(&loud, "fp16", &actual);
    draw(&loud, "fp32", &expected);
    let psnr = support::psnr(&actual, &expected);
    assert!(psnr > 30.0, "{psnr} dB");
}

/// Of Stable Diffusion XL only a VAE that says it fits float16 computes in it.
#[test]
fn a_vae_of_sdxl_that_overflows_learns_and_draws_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let factors = [loud("encoder.mid_block.resnets.0"), loud("decoder.mid_block.resnets.0")].concat();
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "vae/diffusion_pytorch_model.safetensors";
    let loud = scaled(&model("tiny-xl"), folder.path().join("model"), file, &factors);
    let train = |out: &Path, more: &str| {
        let args = dreambooth(&loud, out, more);
        args.iter().map(|arg| if arg == "32" { "128".to_owned() } else { arg.clone() }).collect::<Vec<_>>()
    };
    let said = |args: &[String]| {
        let output = lorabooth(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let exact = said(&train(&folder.path().join("exact"), ""));
    assert!(!exact.contains("numbers were lost"), "{exact}");
    let draw = |dtype: &str, out: &Path| {
        said(&words(&format!(
            "generate --device cpu --threads 1 --quiet --model {} --prompt sks --steps 3 --dtype {dtype} --output {}",
            loud.display(),
            out.display()
        )))
    };
    let [half, full] = ["fp16.png", "fp32.png"].map(|name| folder.path().join(name));
    draw("fp32", &full);
    let config = loud.join("vae/config.json");
    let mut fields = read_json(&config);
    fields["force_upcast"] = json!(false);
    fs::write(&config, fields.to_string()).unwrap();
    mends(&train, &["vae"]);
    draw("fp16", &half);
    let psnr = support::psnr(&half, &full);
    assert!(psnr > 30.0, "{psnr} dB");
}

#[test]
fn a_feed_forward_of_t5_that_overflows_goes_on_in_float32() {
    let (folder, job) = (tempfile::tempdir().unwrap(), t5());
    let (wi, wo) =
        ("encoder.block.1.layer.1.DenseReluDense.wi.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight");
    let factors = [(wi, 2f64.powi(17)), (wo, 2f64.powi(-17))];
    let model = scaled(&job.folder.join("model"), folder.path().join("model"), "model.safetensors", &factors);
    let args = |out: &Path, again: &str| {
        let text = format!("--model {} --mixed-precision fp16 --max-train-steps 4 {again}", model.display());
        job.train(out, &text.split_whitespace().collect::<Vec<_>>())
    };
    mends(&args, &["encoder.block.1.layer.1.DenseReluDense.wi"]);
}

#[test]
fn bf16_on_a_card_without_units_for_it_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let warned = |dtype: &str, capability: &str| {
        let out = folder.path().join(format!("{dtype}-{capability}"));
        let more = format!("--device cuda --max-train-steps 1 --mixed-precision {dtype}");
        let args = dreambooth(&model("tiny"), &out, &more);
        stand_in::on_card_ok(&args, &[("FAKE_CUDA_CAPABILITY", capability)]).contains("has no units for bf16")
    };
    assert!(warned("bf16", "7.5") && !warned("bf16", "8.0") && !warned("fp16", "7.5"));
}

#[test]
fn a_layer_that_the_model_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for layer in ["unet.mid_block.resnet.0", "mid_block.resnets.0", "vaes"] {
        let output =
            lorabooth(&dreambooth(&model("tiny"), &folder.path().join("out"), &format!("--fp32-layers {layer}")));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(&format!("--fp32-layers {layer}: ")), "{said}");
    }
    let job = t5();
    let output = lorabooth(&job.train(&folder.path().join("out"), &["--fp32-layers", "encoder.block.9"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("--fp32-layers encoder.block.9: "), "{said}");
}

#[test]
fn a_repaired_run_is_resumed_with_its_repair() {
    let folder = tempfile::tempdir().unwrap();
    let factors = loud("mid_block.resnets.0");
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    let [whole, resumed] = ["whole", "resumed"].map(|name| folder.path().join(name));
    lorabooth_ok(&dreambooth(&model, &whole, ""));
    lorabooth_ok(&dreambooth(&model, &resumed, "--max-train-steps 2 --checkpointing-steps 2"));
    lorabooth_ok(&dreambooth(&model, &resumed, "--checkpointing-steps 2 --resume"));
    assert_eq!(losses(&whole), losses(&resumed));
    assert_eq!(read_json(whole.join("run.json"))["measures"], read_json(resumed.join("run.json"))["measures"]);
}

#[test]
fn more_than_three_repairs_are_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let resnets =
        ["down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "mid_block.resnets.0", "up_blocks.0.resnets.0"];
    let factors: Vec<(String, f64)> = resnets.iter().flat_map(|resnet| loud(resnet)).collect();
    let factors: Vec<(&str, f64)> = factors.iter().map(|(name, factor)| (name.as_str(), *factor)).collect();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &factors);
    let out = folder.path().join("out");
    let output = lorabooth(&dreambooth(&model, &out, ""));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let error = said.lines().last().unwrap();
    for word in ["not a number at step 1", "up_blocks.0.resnets.0.conv1", "3 layers", "--mixed-precision bf16 or no"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(read_json(out.join("run.json"))["status"], "failed");
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let layer = "mid_block.resnets.0.conv2";
    let file = "unet/diffusion_pytorch_model.safetensors";
    let damaged = format!("{layer}.weight");
    let model = scaled(&model("tiny"), folder.path().join("model"), file, &[(&damaged, f64::NAN)]);
    for dtype in ["no", "bf16", "fp16"] {
        let out = folder.path().join(dtype);
        let output = lorabooth(&dreambooth(&model, &out, &format!("--mixed-precision {dtype}")));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.lines().last().unwrap().contains(&format!("first in the output of `unet.{layer}`")), "{said}");
    }
}
