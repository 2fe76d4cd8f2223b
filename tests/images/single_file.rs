//! Single-file checkpoints with the original Stable Diffusion key names: the same networks as in the diffusers layout.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{self, made, read_json};
use lorabooth::adapters::Part;
use lorabooth::models::stable_diffusion::{ModelOptions, PipelineFiles};
use lorabooth::schedulers::{NoiseSchedule, SchedulerConfig, TimestepSpacing};
use lorabooth::weights::{Placement, WeightSet};
use serde_json::{json, Map, Value};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const CPU: Placement = Placement { device: Device::Cpu, kind: Kind::Float };

/// A safetensors file of these shapes in float16, all zeros and not on the disk; `global_step` is an int64.
fn hollow(path: &Path, shapes: &Map<String, Value>, global_step: Option<i64>) {
    let mut header = Map::new();
    let mut end = 0;
    let mut put = |key: &str, dtype: &str, shape: &Value, bytes: i64| {
        header.insert(key.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] }));
        end += bytes;
    };
    if global_step.is_some() {
        put("global_step", "I64", &json!([]), 8);
    }
    for (key, shape) in shapes {
        let elements: i64 = shape.as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).product();
        put(key, "F16", shape, elements * 2);
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(7 - (text.len() + 7) % 8));
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.write_all(&global_step.unwrap_or(0).to_le_bytes()).unwrap();
    file.seek(SeekFrom::Start(8 + text.len() as u64)).unwrap();
    file.set_len(8 + text.len() as u64 + end as u64).unwrap();
}

fn failure(path: &Path) -> String {
    PipelineFiles::open_single(path, None).err().unwrap().to_string()
}

/// Equal bits of every weight, in the dtype of the files.
fn assert_same_weights(ours: &WeightSet, folders: &WeightSet, kind: Kind) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), folders.keys().collect::<Vec<_>>());
    for key in folders.keys() {
        let shape = folders.shape(key).unwrap();
        let load = |weights: &WeightSet| weights.load(key, &shape, Placement { device: Device::Cpu, kind }).unwrap();
        assert!(load(ours).equal(&load(folders)), "{key}");
    }
}

/// Equal bits where weights were converted; where they lie over the mapped files, matrix products round by how the
/// memory is aligned (with MKL_CBWR=COMPATIBLE they don't).
fn assert_same_output(ours: &Tensor, folders: &Tensor, kind: Kind, what: &str) {
    assert!(folders.abs().max().double_value(&[]) > 0.0);
    let error = support::relative_error(ours, folders);
    assert!(error <= if kind == Kind::Half { 0.0 } else { 1e-5 }, "{what} differs by {error}");
}

#[test]
fn a_single_file_holds_the_same_bits_as_its_folder_and_computes_the_same() {
    tch::set_num_threads(1);
    let _no_gradient = tch::no_grad_guard();
    for (variant, dtype) in [("tiny4", "float32"), ("tiny4", "float16"), ("tiny-v", "float32"), ("tiny-v", "float16")] {
        let folder = made("models.py", variant, &json!({ "variant": variant, "dtype": dtype }));
        let file = made("single_file.py", "model.safetensors", &json!({ "model": folder, "dtype": dtype }));
        let parts = PipelineFiles::open(&folder, None).unwrap();
        let single = PipelineFiles::open_single(&file, Some(&folder)).unwrap();

        let kind = if dtype == "float32" { Kind::Float } else { Kind::Half };
        assert_same_weights(&single.unet_weights().unwrap(), &parts.unet_weights().unwrap(), kind);
        assert_same_weights(&single.vae_weights().unwrap(), &parts.vae_weights().unwrap(), kind);
        assert_same_weights(
            &single.text_encoder_weights(Part::TextEncoder).unwrap(),
            &parts.text_encoder_weights(Part::TextEncoder).unwrap(),
            kind,
        );

        let ids = Tensor::randint(49408, [2, 77], (Kind::Int64, Device::Cpu));
        let text =
            |files: &PipelineFiles| files.load_text_encoder(Part::TextEncoder, CPU).unwrap().model.forward(&ids, false);
        let embeds = text(&parts);
        assert_same_output(&text(&single), &embeds, kind, "the text encoder");

        let images = Tensor::rand([2, 3, 64, 48], (Kind::Float, Device::Cpu)) * 2 - 1;
        let encode = |files: &PipelineFiles| {
            let vae = files.load_vae(CPU).unwrap().model;
            let mean = vae.encode(&images).mean;
            let decoded = vae.decode(&mean);
            (mean, decoded)
        };
        let ((mean, decoded), expected) = (encode(&single), encode(&parts));
        assert_same_output(&mean, &expected.0, kind, "the encoder");
        assert_same_output(&decoded, &expected.1, kind, "the decoder");

        let timesteps = Tensor::from_slice(&[17i64, 801]);
        let unet = |files: &PipelineFiles| {
            files.load_unet(CPU).unwrap().model.forward(&mean, &timesteps, &embeds.shallow_clone().into(), false)
        };
        assert_same_output(&unet(&single), &unet(&parts), kind, "the UNet");
        assert_eq!(single.scheduler_config_json().unwrap(), parts.scheduler_config_json().unwrap());
        assert_eq!(single.tokenizer_folder().unwrap(), parts.tokenizer_folder().unwrap());
    }
}

#[test]
fn keys_and_configurations_of_the_real_models_follow_from_the_shapes() {
    for variant in ["sd15", "sd21"] {
        let reference = made("single_file_shapes.py", variant, &json!({ "variant": variant }));
        let shapes = read_json(reference.join("shapes.json"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        hollow(&path, shapes["original"].as_object().unwrap(), None);
        let single = PipelineFiles::open_single(&path, None).unwrap();
        let described = PipelineFiles::open_single(&path, Some(&reference)).unwrap();

        assert_eq!(format!("{:?}", single.unet_config().unwrap()), format!("{:?}", described.unet_config().unwrap()));
        assert_eq!(format!("{:?}", single.vae_config().unwrap()), format!("{:?}", described.vae_config().unwrap()));
        let text = |files: &PipelineFiles| format!("{:?}", files.text_encoder_config(Part::TextEncoder).unwrap());
        assert_eq!(text(&single), text(&described));
        assert_eq!(
            single.scheduler_config_json().unwrap()["_class_name"],
            described.scheduler_config_json().unwrap()["_class_name"]
        );

        let same_keys = |part: &str, weights: WeightSet, extra: usize| {
            let expected = shapes[part].as_object().unwrap();
            for (key, shape) in expected {
                let mut found = weights.shape(key).unwrap_or_else(|| panic!("{part} has no {key}"));
                if part == "vae" && key.contains(".attentions.") && found.len() == 4 {
                    found.truncate(2);
                }
                assert_eq!(json!(found), *shape, "{key}");
            }
            assert_eq!(weights.keys().count(), expected.len() + extra, "{part}");
        };
        same_keys("unet", single.unet_weights().unwrap(), 0);
        same_keys("vae", single.vae_weights().unwrap(), 0);
        // OpenCLIP's last layer: two norms, four projections and the fused one, each with a bias.
        same_keys(
            "text_encoder",
            single.text_encoder_weights(Part::TextEncoder).unwrap(),
            if variant == "sd21" { 16 } else { 0 },
        );
    }
}

#[test]
fn the_schedulers_prediction_follows_from_the_step_and_can_be_overridden() {
    let reference = made("single_file_shapes.py", "tiny-v", &json!({ "variant": "tiny-v" }));
    let shapes = read_json(reference.join("shapes.json"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let name = path.to_str().unwrap();
    let expected = read_json(reference.join("scheduler/scheduler_config.json"));
    for (step, prediction) in [(None, "v_prediction"), (Some(110_000), "v_prediction"), (Some(875_000), "epsilon")] {
        hollow(&path, shapes["original"].as_object().unwrap(), step);
        let mut config = PipelineFiles::open_single(&path, None).unwrap().scheduler_config_json().unwrap();
        assert_eq!(config["prediction_type"], prediction, "{step:?}");
        config["prediction_type"] = json!("v_prediction");
        assert_eq!(config, expected);
    }
    let options = ModelOptions { prediction_type: Some("sample".into()), ..ModelOptions::default() };
    let files = PipelineFiles::resolve(name, &options, &mut ()).unwrap();
    assert_eq!(files.scheduler_config_json().unwrap()["prediction_type"], "sample");

    let message = files.tokenizer_folder().err().unwrap().to_string();
    assert!(message.contains("⟨tokenizer_name⟩"), "{message}");
    let message = files.unet_config().err().unwrap().to_string();
    assert!(message.contains("⟨config_folder⟩"), "{message}");
    let tokenizer = support::model("tiny-v");
    let options = ModelOptions { tokenizer: Some(tokenizer.to_str().unwrap().into()), ..ModelOptions::default() };
    let files = PipelineFiles::resolve(name, &options, &mut ()).unwrap();
    assert_eq!(files.tokenizer_folder().unwrap(), tokenizer.join("tokenizer"));
}

/// `hollow`'s file with metadata and empty tensors in its header.
fn hollow_saying(path: &Path, shapes: &Map<String, Value>, metadata: &Value, empty: &[&str]) {
    hollow(path, shapes, None);
    let bytes = std::fs::read(path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..end]).unwrap();
    header.insert("__metadata__".into(), metadata.clone());
    for name in empty {
        header.insert((*name).into(), json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] }));
    }
    let text = Value::Object(header).to_string();
    let written = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[end..]].concat();
    std::fs::write(path, written).unwrap();
}

#[test]
fn a_file_says_what_it_predicts_or_a_warning_says_that_it_was_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.model.safetensors");
    let yaml = folder.path().join("my.model.yaml");
    let shapes = |variant: &str| {
        let reference = made("single_file_shapes.py", variant, &json!({ "variant": variant }));
        read_json(reference.join("shapes.json"))["original"].as_object().unwrap().clone()
    };
    let (first, second) = (shapes("tiny4"), shapes("tiny-v"));
    let header = |fields: &[(&str, &str)]| -> Value {
        fields.iter().map(|(name, value)| (format!("modelspec.{name}"), json!(value))).collect::<Map<_, _>>().into()
    };
    let v_yaml = "model:\n  params:\n    parameterization: \"v\"\n    image_size: 96\n";
    let eps_yaml = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    image_size: 64\n";
    let (v1, v2) = (("architecture", "stable-diffusion-v1"), ("architecture", "stable-diffusion-v2-512"));
    let large = ("architecture", "stable-diffusion-v2-768-v");
    let (says_v, says_noise) = (("prediction_type", "v"), ("prediction_type", "epsilon"));
    let none: &[(&str, &str)] = &[];
    for (shapes, fields, empty, beside, prediction, size, warns) in [
        (&first, none, &[][..], None, "epsilon", 64, true),
        (&first, &[v1], &[], None, "epsilon", 64, true),
        (&first, &[v1, says_noise], &[], None, "epsilon", 64, false),
        (&first, &[v1, says_v], &[], None, "v_prediction", 64, false),
        (&first, &[says_v, ("resolution", "768x768")], &[], None, "v_prediction", 96, false),
        (&first, none, &["v_pred"], None, "v_prediction", 64, false),
        (&first, none, &[], Some(v_yaml), "v_prediction", 96, false),
        (&first, none, &[], Some(eps_yaml), "epsilon", 64, false),
        (&second, none, &[], None, "v_prediction", 96, true),
        (&second, &[v2], &[], None, "epsilon", 64, false),
        (&second, &[large], &[], None, "v_prediction", 96, false),
        (&second, &[v2, says_noise], &[], None, "epsilon", 64, false),
        (&second, none, &[], Some(eps_yaml), "epsilon", 64, false),
        // What counts first wins, with a word about the other.
        (&first, &[says_noise], &["v_pred"], None, "epsilon", 64, true),
        (&first, &[says_noise], &[], Some(v_yaml), "epsilon", 96, true),
        (&first, &[("prediction_type", "flow")], &["v_pred"], None, "v_prediction", 64, true),
    ] {
        hollow_saying(&path, shapes, &header(fields), empty);
        _ = std::fs::remove_file(&yaml);
        beside.iter().for_each(|text| std::fs::write(&yaml, text).unwrap());
        let case = format!("{fields:?} {empty:?} {beside:?}");
        let files = PipelineFiles::open_single(&path, None).unwrap();
        assert_eq!(files.scheduler_config_json().unwrap()["prediction_type"], prediction, "{case}");
        assert_eq!(!files.warnings().is_empty(), warns, "{case}: {:?}", files.warnings());
        assert!(files.warnings().iter().all(|text| text.contains("⟨prediction_type⟩")), "{:?}", files.warnings());
        // These heads have no width that shapes tell: the VAE has the size too.
        assert_eq!(files.vae_config().unwrap().sample_size, size * 8, "{case}");
        let options = ModelOptions { prediction_type: Some("epsilon".into()), ..ModelOptions::default() };
        let given = PipelineFiles::resolve(path.to_str().unwrap(), &options, &mut ()).unwrap();
        assert_eq!(
            (given.warnings(), given.scheduler_config_json().unwrap()["prediction_type"].clone()),
            (vec![], json!("epsilon"))
        );
    }
}

#[test]
fn zero_terminal_snr_is_kept_for_models_of_v_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let reference = made("single_file_shapes.py", "tiny4", &json!({ "variant": "tiny4" }));
    let shapes = read_json(reference.join("shapes.json"))["original"].as_object().unwrap().clone();
    hollow_saying(&path, &shapes, &json!({}), &["v_pred", "ztsnr"]);
    let config = PipelineFiles::open_single(&path, None).unwrap().scheduler_config_json().unwrap();
    let parsed = SchedulerConfig::from_json(&config.to_string()).unwrap();
    assert_eq!((parsed.rescale_betas_zero_snr, parsed.timestep_spacing), (Some(true), Some(TimestepSpacing::Trailing)));
    // Nothing of an image is left at the last timestep.
    let schedule = NoiseSchedule::new(&parsed).unwrap();
    let (zeros, ones) = (
        Tensor::zeros([1, 1, 1, 1], (Kind::Float, Device::Cpu)),
        Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu)),
    );
    let last = schedule.add_noise(&ones, &zeros, &Tensor::from_slice(&[999_i64]));
    assert!(last.abs().max().double_value(&[]) < 1e-6);
    hollow_saying(&path, &shapes, &json!({}), &["ztsnr"]);
    let files = PipelineFiles::open_single(&path, None).unwrap();
    assert!(files.scheduler_config_json().unwrap().get("rescale_betas_zero_snr").is_none());
    assert!(files.warnings().iter().any(|text| text.contains("ztsnr")), "{:?}", files.warnings());
}

#[test]
fn a_model_says_the_size_of_its_images() {
    for (variant, size) in [("tiny", 64), ("tiny4", 64), ("tiny-v", 64)] {
        assert_eq!(PipelineFiles::open(&support::model(variant), None).unwrap().native_resolution().unwrap(), size);
    }
}

#[test]
fn files_that_are_no_model_are_refused_with_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let zero = || Tensor::zeros([4, 4], (Kind::Float, Device::Cpu));
    let refused = |keys: &[&str]| {
        let tensors: Vec<(&str, Tensor)> = keys.iter().map(|key| (*key, zero())).collect();
        Tensor::write_safetensors(&tensors, &path).unwrap();
        failure(&path)
    };
    let sdxl = ["conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight"];
    assert!(refused(&sdxl).contains("a Stable Diffusion XL checkpoint holds all four networks"));
    assert!(refused(&["unet.mid_block.attentions.0.to_q.lora_A.weight"]).contains("a LoRA adapter, not a model"));
    assert!(refused(&["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"]).contains("LoRA adapter"));
    assert!(refused(&["x.weight"]).contains("no UNet"));

    let whole: PathBuf = made("single_file.py", "model.safetensors", &json!({ "model": support::model("tiny4") }));
    let bytes = std::fs::read(&whole).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 100, 7, 0] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let message = failure(&path);
        assert!(message.contains("model.safetensors") && !message.contains('\n'), "{message}");
    }
    let message = PipelineFiles::resolve("no/such/model", &ModelOptions::default(), &mut ()).err().unwrap();
    assert!(message.to_string().contains("no model `no/such/model`"), "{message}");
}

/// A folder written as one file has the names and the numbers that the reference's conversion has.
#[test]
fn a_folder_becomes_the_single_file_of_the_original_code() {
    let folder = tempfile::tempdir().unwrap();
    for variant in ["tiny4", "tiny-v", "tiny-xl", "tiny-xl-v"] {
        let model = support::model(variant);
        let marks = variant == "tiny-xl-v";
        let reference = made("single_file.py", "model.safetensors", &json!({ "model": model, "marks": marks }));
        let adapter = made(
            "adapters.py",
            "adapter",
            &json!({ "model": model, "formats": ["peft"], "outputs": false,
                "unet": { "r": 4, "lora_alpha": 7, "target_modules": ["to_q", "conv1", "proj_in"] },
                "text_encoder": { "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "fc1"] } }),
        );
        let adapter = adapter.join("peft").display().to_string();
        let merged = |from: &Path, scale: &str, to: &str| {
            let out = folder.path().join(format!("{variant}-{to}.safetensors"));
            let args = ["adapter", "merge", "--model", from.to_str().unwrap(), "--lora", &format!("{adapter}={scale}")];
            let described = ["--config-folder", model.to_str().unwrap()];
            let described = if from.is_file() { &described[..] } else { &[] };
            support::lorabooth_ok(&[&args[..], &["--output-dir", out.to_str().unwrap()], described].concat());
            out
        };
        let left_out =
            |name: &str| ["position_ids", "alphas_cumprod", "logit_scale"].iter().any(|end| name.ends_with(end));
        let wanted = |path: &Path| {
            let mut tensors = support::read(path);
            tensors.retain(|name, _| !left_out(name));
            tensors
        };
        let same = |ours: &Path, theirs: &Path, bound: f64| {
            let (ours, theirs) = (wanted(ours), wanted(theirs));
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{variant}");
            for (name, tensor) in &theirs {
                assert_eq!(ours[name].size(), tensor.size(), "{variant} {name}");
                let error = if tensor.numel() == 0 { 0.0 } else { support::relative_error(&ours[name], tensor) };
                assert!(error <= bound, "{variant} {name} differs by {error:e}");
            }
        };
        let plain = merged(&model, "0", "plain");
        same(&plain, &reference, 0.0);
        let changed = merged(&model, "1", "changed");
        same(&changed, &merged(&reference, "1", "file"), 1e-6);
        assert_ne!(std::fs::read(&plain).unwrap(), std::fs::read(&changed).unwrap());
        let (files, own) =
            (PipelineFiles::open_single(&plain, None).unwrap(), PipelineFiles::open(&model, None).unwrap());
        let prediction = |files: &PipelineFiles| files.scheduler_config_json().unwrap()["prediction_type"].clone();
        let own = own.scheduler_config_json().unwrap();
        assert_eq!(prediction(&files), own.get("prediction_type").cloned().unwrap_or(json!("epsilon")), "{variant}");
        assert_eq!(files.warnings(), Vec::<String>::new(), "{variant}");
        let metadata = lorabooth::weights::MappedFile::open(&plain).unwrap().metadata();
        assert_eq!(metadata["modelspec.title"], format!("{variant}-plain"));
    }
    // A language model has no such file.
    let out = folder.path().join("x.safetensors").display().to_string();
    let adapter = folder.path().join("language");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(
        adapter.join("adapter_config.json"),
        json!({ "peft_type": "LORA", "task_type": "CAUSAL_LM" }).to_string(),
    )
    .unwrap();
    let zeros = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
    let pair = ["A", "B"].map(|which| (format!("base_model.model.q_proj.lora_{which}.weight"), zeros.shallow_clone()));
    Tensor::write_safetensors(&pair, adapter.join("adapter_model.safetensors")).unwrap();
    let args = ["adapter", "merge", "--model", "x", "--lora", adapter.to_str().unwrap(), "--output-dir", &out];
    let output = support::lorabooth(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("a language model is written as a folder"), "{said}");
}
