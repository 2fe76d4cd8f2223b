//! Adapter files against peft and diffusers: theirs compute the same here, ours there.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod refusals;
mod spellings;

use crate::support::{lorabooth_ok, made, model, photos, python, read, read_json, relative_error};
use lorabooth::adapters::{
    attach, formats, inspect, inspect::Inspected, peft_folder, read_any, write_diffusers, write_kohya, write_peft,
    AdapterSet, Format, Init, LoraConfig, Merge, Part, PartAdapter, Sites, TargetModules, TextEncoderSpelling,
};
use lorabooth::models::stable_diffusion::PipelineFiles;
use lorabooth::weights::{MappedFile, Placement};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const CLOSE: f64 = 1e-5;

/// An adapter that peft made: alpha is not the rank, some modules have their own, some are convolutions.
fn theirs(extra: Value, formats: &[&str]) -> PathBuf {
    let mut unet = json!({ "r": 4, "lora_alpha": 7, "target_modules": ["to_q", "to_v", "to_out.0", "conv1", "ff.net.2"],
        "rank_pattern": { "to_v": 3 }, "alpha_pattern": { "mid_block.*to_q": 5 } });
    let mut text_encoder = json!({ "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "out_proj"] });
    for fields in [&mut unet, &mut text_encoder] {
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    }
    let options = json!({ "model": model("tiny"), "unet": unet, "text_encoder": text_encoder, "formats": formats });
    made("adapters.py", "adapters", &options)
}

fn all_formats() -> PathBuf {
    theirs(json!({}), &["peft", "peft-transformers4", "diffusers", "diffusers-old", "kohya"])
}

fn put(sites: &Sites, adapter: &PartAdapter) {
    attach(sites, "a", adapter.config.clone(), Init::Tensors(&adapter.tensors)).unwrap();
}

/// What our networks compute with the adapter, by part.
fn ours(set: &AdapterSet, inputs: &Path) -> BTreeMap<&'static str, Tensor> {
    let _no_grad = tch::no_grad_guard();
    let files = PipelineFiles::open(&model("tiny"), None).unwrap();
    let placement = Placement { device: Device::Cpu, kind: Kind::Float };
    let given = read(inputs);
    let (unet, text) =
        (files.load_unet(placement).unwrap(), files.load_text_encoder(Part::TextEncoder, placement).unwrap());
    put(&unet.sites, set.part(Part::UNet).unwrap());
    put(&text.sites, set.part(Part::TextEncoder).unwrap());
    let noise = unet.model.forward(
        &given["unet.latents"],
        &given["unet.timesteps"],
        &given["unet.context"].shallow_clone().into(),
        false,
    );
    BTreeMap::from([("unet", noise), ("text_encoder", text.model.forward(&given["text_encoder.input_ids"], false))])
}

fn assert_same_outputs(computed: &BTreeMap<&'static str, Tensor>, outputs: &Path, which: &str, what: &str) {
    let expected = read(outputs);
    for (part, tensor) in computed {
        let error = relative_error(tensor, &expected[&format!("{part}.{which}")]);
        assert!(error < CLOSE, "{what}: the {part} differs by {error:e}");
        let change = relative_error(&expected[&format!("{part}.base")], &expected[&format!("{part}.{which}")]);
        assert!(change > 1e-2, "the adapter of the {part} hardly changes anything");
    }
}

/// What Python computes with our files.
fn in_python(made: &Path, out: &Path, files: (&str, &Path)) -> BTreeMap<&'static str, Tensor> {
    let mut options = json!({ "model": model("tiny"), "inputs": made.join("outputs.safetensors") });
    options[files.0] = json!(files.1);
    python("adapter_files.py", &[out.to_str().unwrap(), &options.to_string()]);
    let mut computed = read(out);
    BTreeMap::from(["unet", "text_encoder"].map(|part| (part, computed.remove(part).unwrap())))
}

#[test]
fn files_of_peft_and_diffusers_in_every_spelling_compute_the_same_here() {
    let made = all_formats();
    for (path, format) in [
        ("peft", Format::Peft),
        ("peft-transformers4", Format::Peft),
        ("diffusers", Format::Diffusers),
        ("diffusers-old", Format::Diffusers),
        ("kohya/lora.safetensors", Format::Kohya),
    ] {
        let (set, found) = formats::read_with_format(&made.join(path), None).unwrap();
        assert_eq!(found, format);
        let outputs = made.join("outputs.safetensors");
        assert_same_outputs(&ours(&set, &outputs), &outputs, "adapter", path);
    }
}

#[test]
fn our_files_compute_the_same_in_peft_and_diffusers() {
    let made = all_formats();
    let outputs = made.join("outputs.safetensors");
    let set = read_any(&made.join("peft"), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    write_peft(dir.path(), &set, TextEncoderSpelling::Today).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("peft", dir.path())), &outputs, "adapter", "peft");
    let file = write_diffusers(dir.path(), &set).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("lora", &file)), &outputs, "adapter", "diffusers");
    let file = dir.path().join("kohya.safetensors");
    write_kohya(&file, &set, Kind::Float, &BTreeMap::new()).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("lora", &file)), &outputs, "adapter", "kohya");
}

#[test]
fn an_rslora_keeps_its_scale_in_every_format() {
    let made = theirs(json!({ "use_rslora": true }), &["peft", "diffusers"]);
    let outputs = made.join("outputs.safetensors");
    let set = read_any(&made.join("diffusers"), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    write_peft(dir.path(), &set, TextEncoderSpelling::Today).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("peft", dir.path())), &outputs, "adapter", "peft");
    let file = dir.path().join("kohya.safetensors");
    write_kohya(&file, &set, Kind::Float, &BTreeMap::new()).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("lora", &file)), &outputs, "adapter", "kohya");
}

#[test]
fn a_kohya_text_encoder_of_two_projections_loads_in_diffusers_and_again_here() {
    let options = json!({ "model": model("tiny"), "formats": ["peft"],
        "unet": { "r": 4, "lora_alpha": 7, "target_modules": ["to_q", "to_v"] },
        "text_encoder": { "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"] } });
    let made = made("adapters.py", "adapters", &options);
    let outputs = made.join("outputs.safetensors");
    let set = read_any(&made.join("peft"), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (out, file) = (dir.path().join("out.safetensors"), dir.path().join("kohya.safetensors"));
    write_kohya(&file, &set, Kind::Float, &BTreeMap::new()).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("lora", &file)), &outputs, "adapter", "kohya");
    let again = read_any(&file, None).unwrap();
    assert_eq!(again.part(Part::TextEncoder).unwrap().modules(), set.part(Part::TextEncoder).unwrap().modules());
}

#[test]
fn dora_biases_and_saved_modules_go_through_peft_folders() {
    for extra in [
        json!({ "use_dora": true, "bias": "lora_only" }),
        json!({ "bias": "all" }),
        json!({ "modules_to_save": ["conv_norm_out", "fc2"] }),
    ] {
        let made = theirs(extra.clone(), &["peft"]);
        let outputs = made.join("outputs.safetensors");
        let set = read_any(&made.join("peft"), None).unwrap();
        assert_same_outputs(&ours(&set, &outputs), &outputs, "adapter", &extra.to_string());
        let dir = tempfile::tempdir().unwrap();
        write_peft(dir.path(), &set, TextEncoderSpelling::Today).unwrap();
        let out = dir.path().join("out.safetensors");
        assert_same_outputs(&in_python(&made, &out, ("peft", dir.path())), &outputs, "adapter", &extra.to_string());
        for part in ["unet", "text_encoder"] {
            let file = |root: &Path| std::fs::read(root.join(part).join("adapter_model.safetensors")).unwrap();
            assert!(file(dir.path()) == file(&made.join("peft")), "{extra}: the {part}'s file has other bytes");
        }
    }
}

#[test]
fn a_dora_goes_through_diffusers_files() {
    let made = theirs(json!({ "use_dora": true }), &["peft", "diffusers"]);
    let outputs = made.join("outputs.safetensors");
    let set = read_any(&made.join("diffusers"), None).unwrap();
    assert_same_outputs(&ours(&set, &outputs), &outputs, "adapter", "diffusers here");
    let dir = tempfile::tempdir().unwrap();
    let file = write_diffusers(dir.path(), &set).unwrap();
    let out = dir.path().join("out.safetensors");
    assert_same_outputs(&in_python(&made, &out, ("lora", &file)), &outputs, "adapter", "diffusers there");
}

#[test]
fn the_configuration_is_written_as_peft_writes_it_byte_by_byte() {
    let made = all_formats();
    let names = |list: &[&str]| Some(TargetModules::Names(list.iter().map(|name| (*name).to_owned()).collect()));
    let unet = LoraConfig {
        r: 4,
        lora_alpha: 7.0,
        target_modules: names(&["to_q", "to_v", "to_out.0", "conv1", "ff.net.2"]),
        rank_pattern: [("to_v".to_owned(), 3)].into_iter().collect(),
        alpha_pattern: [("mid_block.*to_q".to_owned(), 5.0)].into_iter().collect(),
        ..Default::default()
    };
    let text_encoder =
        LoraConfig { r: 3, lora_alpha: 5.0, target_modules: names(&["q_proj", "out_proj"]), ..Default::default() };
    for (part, mut config) in [(Part::UNet, unet), (Part::TextEncoder, text_encoder)] {
        let folder = made.join("peft").join(part.name());
        // PEFT writes the names of a Python set in an order that changes from run to run.
        let mut value = read_json(folder.join("adapter_config.json"));
        value["target_modules"].as_array_mut().unwrap().sort_by_key(|name| name.to_string());
        let expected = serde_json::to_string_pretty(&value).unwrap();
        let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(|line| line.trim_end_matches(',').to_owned()).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&expected), sorted(&text), "the lines are not PEFT's");
        config.base_model_name_or_path =
            read_json(folder.join("adapter_config.json"))["base_model_name_or_path"].as_str().map(str::to_owned);
        assert_eq!(peft_folder::config_json(&config, Some(part)).unwrap(), expected);
        // Read and written again it stays the same.
        let adapter = peft_folder::read(&folder).unwrap();
        assert_eq!(peft_folder::config_json(&adapter.config, Some(part)).unwrap(), expected);
    }
}

#[test]
fn a_merged_pipeline_computes_the_same_in_diffusers() {
    for extra in [json!({}), json!({ "use_dora": true, "bias": "all" })] {
        let made = theirs(extra, &["peft"]);
        let set = read_any(&made.join("peft"), None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let merged = dir.path().join("merged");
        Merge { model: &model("tiny"), variant: None, adapters: &[(set, 1.0)], kind: None }.write(&merged).unwrap();
        let out = dir.path().join("out.safetensors");
        let outputs = made.join("outputs.safetensors");
        assert_same_outputs(&in_python(&made, &out, ("merged", &merged)), &outputs, "merged", "merged");
    }
}

#[test]
fn kohya_files_carry_their_hashes_and_are_read_with_a_model_and_without() {
    let set = read_any(&all_formats().join("peft"), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    write_kohya(&path, &set, Kind::Half, &BTreeMap::from([("ss_v2".into(), "False".into())])).unwrap();
    let file = MappedFile::open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let sha: String = Sha256::digest(&bytes[data..]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(file.metadata()["sshs_model_hash"], sha);
    let files = PipelineFiles::open(&model("tiny"), None).unwrap();
    let (for_model, alone) =
        (read_any(&path, Some(&files.base_model().unwrap())).unwrap(), read_any(&path, None).unwrap());
    for (part, adapter) in for_model.parts() {
        assert_eq!(adapter.modules(), alone.part(part).unwrap().modules());
        assert_eq!(adapter.modules(), set.part(part).unwrap().modules());
    }
    let again = dir.path().join("again.safetensors");
    write_kohya(&again, &set, Kind::Half, &BTreeMap::from([("ss_v2".into(), "False".into())])).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), bytes);
}

#[test]
fn an_adapter_of_another_model_is_refused_with_the_key_at_fault() {
    let mut set = read_any(&all_formats().join("peft"), None).unwrap();
    let unet = set.part_mut(Part::UNet).unwrap();
    let odd = "down_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q";
    for which in ["lora_A.weight", "lora_B.weight"] {
        unet.tensors.insert(format!("{odd}.{which}"), Tensor::zeros([4, 4], (Kind::Float, Device::Cpu)));
    }
    let files = PipelineFiles::open(&model("tiny"), None).unwrap();
    let loaded = files.load_unet(Placement { device: Device::Cpu, kind: Kind::Float }).unwrap();
    let unet = set.part(Part::UNet).unwrap();
    let error = attach(&loaded.sites, "a", unet.config.clone(), Init::Tensors(&unet.tensors)).err().unwrap();
    assert!(error.to_string().contains(odd), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("merged");
    let error =
        Merge { model: &model("tiny"), variant: None, adapters: &[(set, 1.0)], kind: None }.write(&out).unwrap_err();
    assert!(error.to_string().contains(odd), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something half-written was left");
}

#[test]
fn an_inspection_tells_ranks_alphas_and_the_size_of_the_change() {
    let made = all_formats();
    let Inspected::Adapters(summary) = inspect::inspect(&made.join("peft")).unwrap() else { panic!("no adapter") };
    let unet = &summary.parts["unet"];
    assert_eq!((unet.ranks.clone(), unet.alphas.clone()), (vec![3, 4], vec![5.0, 7.0]));
    let set = read_any(&made.join("peft"), None).unwrap();
    let adapter = set.part(Part::UNet).unwrap();
    let mut expected = 0.0;
    for module in adapter.modules().iter().filter(|module| module.starts_with("mid_block")) {
        let matrix = |name: &str| adapter.tensors[&format!("{module}.{name}.weight")].flatten(1, -1);
        let product = matrix("lora_B").matmul(&matrix("lora_A")) * adapter.config.scaling_of(module);
        expected += product.square().sum(Kind::Double).double_value(&[]);
    }
    assert!((unet.change_norms["mid_block"] / expected.sqrt() - 1.0).abs() < 1e-4);
}

/// The adapter that a run of no steps starts from, with `flags`.
fn initial(folder: &Path, flags: &[&str]) -> PathBuf {
    let out = folder.join("run");
    let (model, photos) = (model("tiny"), photos(3, 0));
    let usual = "train dreambooth --instance-prompt sks --resolution 32 --max-train-steps 0 --mixed-precision no --device \
        cpu --threads 1 --train-text-encoder --lora-r 4 --lora-alpha 7 --lora-text-encoder-r 3 --lora-text-encoder-alpha 5";
    let mut args: Vec<&str> = usual.split_whitespace().collect();
    args.extend(["--model", model.to_str().unwrap(), "--instance-data-dir", photos.to_str().unwrap()]);
    args.extend(["--output-dir", out.to_str().unwrap()]);
    lorabooth_ok(&[&args[..], flags].concat());
    out
}

#[test]
fn every_field_of_lora_config_that_has_a_flag_means_the_same_in_peft() {
    let fields = json!({
        "rank_pattern": { "to_v": 3, "mid_block.*to_q": 6 }, "alpha_pattern": { "to_q": 9.5 },
        "exclude_modules": ".*attn2.*", "modules_to_save": ["conv_in", "time_embedding"], "init_lora_weights": "gaussian",
    });
    let mut unet = json!({ "r": 4, "lora_alpha": 7, "target_modules": ["to_q", "to_v"] });
    unet.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let text_encoder = json!({
        "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "rank_pattern": { "layers.1.self_attn.q_proj": 2 },
        "alpha_pattern": { "q_proj": 4 }, "exclude_modules": ["layers.0.self_attn.v_proj"],
        "modules_to_save": ["final_layer_norm"], "init_lora_weights": "gaussian",
    });
    let made = made(
        "adapters.py",
        "adapters",
        &json!({ "model": model("tiny"), "unet": unet, "text_encoder": text_encoder, "formats": ["peft"] }),
    );
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "--lora-rank-pattern=to_v=3,mid_block.*to_q=6",
        "--lora-alpha-pattern={\"to_q\": 9.5}",
        "--lora-exclude-modules=.*attn2.*",
        "--lora-modules-to-save=conv_in,time_embedding",
        "--lora-text-encoder-rank-pattern=layers.1.self_attn.q_proj=2",
        "--lora-text-encoder-alpha-pattern=q_proj=4",
        "--lora-text-encoder-exclude-modules=layers.0.self_attn.v_proj",
        "--lora-text-encoder-modules-to-save=final_layer_norm",
        "--lora-init=gaussian",
    ];
    let run = initial(dir.path(), &flags);
    let options = &read_json(run.join("run.json"))["options"];
    assert_eq!(options["lora_rank_pattern"], fields["rank_pattern"]);
    assert_eq!((&options["lora_init"], &options["lora_exclude_modules"]), (&json!("gaussian"), &json!(".*attn2.*")));
    let mut mixed = AdapterSet::default();
    for part in [Part::UNet, Part::TextEncoder] {
        let [ours, theirs] = [&run, &made.join("peft")].map(|root| root.join(part.name()));
        let shapes = |root: &Path| -> Vec<(String, Vec<i64>)> {
            let tensors = read(root.join("adapter_model.safetensors"));
            tensors.into_iter().map(|(name, tensor)| (name, tensor.size())).collect()
        };
        assert_eq!(shapes(&ours), shapes(&theirs), "the {part:?} trains other numbers");
        let [config, expected] = [&ours, &theirs].map(|root| {
            let mut config = read_json(root.join("adapter_config.json"));
            for name in ["target_modules", "modules_to_save", "exclude_modules"] {
                // PEFT writes the names of a Python set in any order.
                if let Some(names) = config[name].as_array_mut() {
                    names.sort_by_key(|name| name.to_string());
                }
            }
            config.as_object_mut().unwrap().remove("base_model_name_or_path");
            config
        });
        assert_eq!(config, expected, "the {part:?}");
        // Our configuration with their numbers.
        let (ours, theirs) = (peft_folder::read(&ours).unwrap(), peft_folder::read(&theirs).unwrap());
        mixed.set(part, PartAdapter { config: ours.config, tensors: theirs.tensors });
    }
    let outputs = made.join("outputs.safetensors");
    assert_same_outputs(&self::ours(&mixed, &outputs), &outputs, "adapter", "flags");
    let (folder, out) = (dir.path().join("written"), dir.path().join("out.safetensors"));
    write_peft(&folder, &mixed, TextEncoderSpelling::Today).unwrap();
    assert_same_outputs(&in_python(&made, &out, ("peft", &folder)), &outputs, "adapter", "flags in Python");
    // A start as PEFT's: B zero, A normal with deviation 1/r.
    let unet = read(run.join("unet/adapter_model.safetensors"));
    for (name, tensor) in unet.iter().filter(|(name, _)| name.contains(".lora_B.")) {
        assert_eq!(tensor.abs().max().double_value(&[]), 0.0, "{name}");
    }
    let (a, ranks): (Vec<Tensor>, Vec<f64>) = unet
        .iter()
        .filter(|(name, _)| name.contains(".lora_A."))
        .map(|(_, tensor)| (tensor.flatten(0, -1), tensor.size()[0] as f64))
        .unzip();
    let scaled: Vec<Tensor> = a.iter().zip(ranks).map(|(a, rank)| a * rank).collect();
    let deviation = Tensor::cat(&scaled, 0).std(true).double_value(&[]);
    assert!((deviation - 1.0).abs() < 0.03, "A's deviation is {deviation}/r");
}
