//! Models whose files have their weights in few bits.

use super::{check_networks, FLOAT32};
use crate::support::{lorabooth, lorabooth_ok, made, model, photos, python, read, read_json, relative_error};
use lorabooth::adapters::Part;
use lorabooth::models::stable_diffusion::PipelineFiles;
use lorabooth::weights::{Quantize, Storage};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

fn in_four_bits(parts: &[&str]) -> PathBuf {
    made("four_bit_pipeline.py", "xl", &json!({ "model": model("tiny-xl"), "parts": parts }))
}

#[test]
fn a_unet_in_4_bits_computes_as_in_diffusers() {
    let folder = in_four_bits(&["unet"]);
    assert!(read(folder.join("unet/diffusion_pytorch_model.safetensors")).keys().any(|key| key.contains("nf4")));
    check_networks(&PipelineFiles::open(&folder, None).unwrap(), &folder, None);
}

/// What bitsandbytes makes of the text encoders, but for their projection, are the bytes that are made here.
#[test]
fn text_encoders_in_4_bits_are_those_that_are_quantised_here() {
    let context = |folder: &Path, storage: Storage| {
        let mut files = PipelineFiles::open(folder, None).unwrap();
        files.store_in(storage);
        let ids = vec![vec![49406, 320, 1929, 49407].into_iter().chain([49407; 73]).collect::<Vec<i64>>(); 2];
        let encoders = files.load_text_encoders(FLOAT32).unwrap();
        tch::no_grad(|| encoders.forward(&[ids], false)).context
    };
    let packed = context(&in_four_bits(&["text_encoder", "text_encoder_2"]), Storage::default());
    let here = context(&model("tiny-xl"), Storage { quantize: Quantize::Nf4, ..Storage::default() });
    assert!(relative_error(&packed, &here) == 0.0);
    assert!(relative_error(&packed, &context(&model("tiny-xl"), Storage::default())) > 1e-2);
}

#[test]
fn a_model_in_4_bits_learns_and_is_merged_to_one_of_whole_numbers() {
    let (packed, folder) = (in_four_bits(&["unet"]), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let train = |model: &Path, out: &str, more: &[&str]| {
        let text = "train dreambooth --quiet --device cpu --threads 1 --mixed-precision no --resolution 128 --max-train-steps 2 \
            --center-crop --instance-prompt sks --learning-rate 1e-2";
        let photos = photos(2, 0);
        let given =
            ["--instance-data-dir", photos.to_str().unwrap(), "--model", model.to_str().unwrap(), "--output-dir", out];
        lorabooth_ok(&[&text.split_whitespace().collect::<Vec<_>>()[..], &given, more].concat());
        read(Path::new(out).join("unet/adapter_model.safetensors"))
    };
    let learned = train(&packed, &at("run"), &[]);
    let offloaded = train(&packed, &at("offloaded"), &["--offload", "cpu"]);
    assert!(learned.iter().all(|(name, tensor)| tensor.equal(&offloaded[name])));
    lorabooth_ok(&[
        "adapter",
        "merge",
        "--model",
        packed.to_str().unwrap(),
        "--lora",
        &at("run"),
        "--output-dir",
        &at("merged"),
    ]);
    assert!(read_json(folder.path().join("merged/unet/config.json")).get("quantization_config").is_none());
    // diffusers computes with it what is computed here.
    let merged = folder.path().join("merged");
    let out = folder.path().join("forward.safetensors");
    python(
        "forward.py",
        &[out.to_str().unwrap(), &json!({ "model": merged, "height": 64, "width": 64, "parts": ["unet"] }).to_string()],
    );
    let expected = read(&out);
    let on = lorabooth::models::stable_diffusion::Conditioning {
        context: expected["unet.context"].shallow_clone(),
        pooled: Some(expected["unet.pooled"].shallow_clone()),
        time_ids: Some(expected["unet.time_ids"].shallow_clone()),
    };
    let unet = PipelineFiles::open(&merged, None).unwrap().load_unet(FLOAT32).unwrap().model;
    let output = tch::no_grad(|| unet.forward(&expected["unet.latents"], &expected["unet.timesteps"], &on, false));
    assert!(relative_error(&output, &expected["unet.output"]) < 1e-5);
}

/// A single file whose UNet is in fp8, as people share them.
#[test]
fn a_checkpoint_in_fp8_is_the_one_that_its_codes_stand_for() {
    let whole = made("single_file.py", "xl.safetensors", &json!({ "model": model("tiny-xl"), "dtype": "float16" }));
    let folder = tempfile::tempdir().unwrap();
    let (fp8, half) = (folder.path().join("fp8.safetensors"), folder.path().join("half.safetensors"));
    let options = json!({ "file": whole, "half": half });
    python("fp8_file.py", &[fp8.to_str().unwrap(), &options.to_string()]);
    let weights = |path: &Path| PipelineFiles::open_single(path, None).unwrap().part_weights(Part::UNet).unwrap();
    let (ours, wanted) = (weights(&fp8), weights(&half));
    for key in wanted.keys() {
        let shape = wanted.shape(key).unwrap();
        assert!(ours.load(key, &shape, FLOAT32).unwrap().equal(&wanted.load(key, &shape, FLOAT32).unwrap()), "{key}");
        assert_eq!(ours.kind(key).unwrap(), Kind::Half);
    }
}

#[test]
fn kinds_that_are_not_read_are_named_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let said = |path: &Path| {
        let output = lorabooth(&["generate", "--device", "cpu", "--prompt", "x", "--model", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        said
    };
    let fp4 = made(
        "four_bit_pipeline.py",
        "xl",
        &json!({ "model": model("tiny-xl"), "parts": ["unet"], "quant_type": "fp4" }),
    );
    let message = said(&fp4);
    assert!(message.contains("bitsandbytes with fp4") && message.contains("NF4"), "{message}");
    let methods: [(Value, &str); 4] = [
        (json!({ "quant_method": "torchao" }), "torchao"),
        (json!({ "quant_method": "gptq" }), "gptq"),
        (json!({ "quant_method": "quanto" }), "quanto"),
        (json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }), "bitsandbytes with 8 bits"),
    ];
    for (i, (how, name)) in methods.into_iter().enumerate() {
        let path = folder.path().join(i.to_string());
        super::refusals::copied(&model("tiny-xl"), &path);
        super::refusals::change_json(&path.join("unet/config.json"), |config| config["quantization_config"] = how);
        let message = said(&path);
        assert!(message.contains(name) && message.contains("those of bitsandbytes' NF4"), "{message}");
    }
    for (keys, name) in [
        (["a.qweight", "a.wscales"], "Nunchaku"),
        (["a.qweight", "a.qzeros"], "GPTQ or AWQ"),
        (["model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.scale_weight"], "fp8 with scales"),
    ] {
        let path = folder.path().join("model.safetensors");
        let tensors = keys.map(|key| (key, Tensor::zeros([2], (Kind::Float, Device::Cpu))));
        Tensor::write_safetensors(&tensors, &path).unwrap();
        let message = said(&path);
        assert!(message.contains(name) && message.contains("those of bitsandbytes' NF4"), "{message}");
    }
    let gguf = folder.path().join("unet-Q4_K_M.gguf");
    std::fs::write(&gguf, b"GGUF\x03\0\0\0").unwrap();
    let message = said(&gguf);
    assert!(message.contains("GGUF") && message.contains("safetensors"), "{message}");
}
