//! Files of adapters for Stable Diffusion XL: their names, their metadata, and every spelling read.

use crate::support::{lorabooth_ok, made, model, read};
use lorabooth::adapters::{read_any, write_kohya, AdapterSet, Family, Part};
use lorabooth::weights::{tensor_file, MappedFile};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

fn adapter(text_targets: &[&str]) -> PathBuf {
    let text = |r: i64| json!({ "r": r, "lora_alpha": 5, "target_modules": text_targets });
    made(
        "adapters.py",
        "adapter",
        &json!({
            "model": model("tiny-xl"), "formats": ["peft", "diffusers", "kohya"],
            "unet": { "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_out.0", "conv1", "time_emb_proj", "add_embedding.linear_1"] },
            "text_encoder": text(3), "text_encoder_2": text(2),
        }),
    )
}

fn assert_same(found: &AdapterSet, wanted: &AdapterSet, what: &str) {
    for (part, adapter) in wanted.parts() {
        let other = found.part(part).unwrap_or_else(|| panic!("{what}: no {}", part.name()));
        assert_eq!(other.modules(), adapter.modules(), "{what}");
        for module in adapter.modules() {
            let change = |of: &lorabooth::adapters::PartAdapter| {
                let matrix = |end: &str| of.tensors[&format!("{module}{end}")].flatten(1, -1).to_kind(Kind::Double);
                matrix(".lora_B.weight").matmul(&matrix(".lora_A.weight")) * of.config.scaling_of(&module)
            };
            let error = (change(other) - change(adapter)).norm() / change(adapter).norm();
            assert!(error.double_value(&[]) < 1e-6, "{what}: {module}");
        }
    }
    assert_eq!(found.family, Some(Family::Xl), "{what}");
}

#[test]
fn a_kohya_file_has_the_original_names_and_the_metadata_that_programs_read() {
    let made = adapter(&["q_proj", "k_proj", "v_proj", "out_proj"]);
    let set = read_any(&made.join("peft"), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subject.safetensors");
    write_kohya(&path, &set, Kind::Float, &BTreeMap::new()).unwrap();
    // The same names and numbers as in the reference's file; diffusers loses alphas that differ, so ours are one.
    let (ours, theirs) = (read(&path), read(made.join("kohya/lora.safetensors")));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for name in [
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.alpha",
        "lora_unet_label_emb_0_0.lora_up.weight",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te2_text_model_encoder_layers_2_self_attn_out_proj.lora_down.weight",
        "lora_unet_output_blocks_1_0_emb_layers_1.alpha",
    ] {
        assert!(ours.contains_key(name), "{name}");
    }
    let metadata = MappedFile::open(&path).unwrap().metadata();
    for (name, value) in [
        ("ss_base_model_version", "sdxl_base_v1-0"),
        ("ss_v2", "False"),
        ("ss_network_module", "networks.lora"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
        ("modelspec.title", "subject"),
    ] {
        assert_eq!(metadata[name], value, "{name}");
    }
    let bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let sha: String = Sha256::digest(&bytes[data..]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(metadata["sshs_model_hash"], sha);
    assert_same(&read_any(&path, None).unwrap(), &set, "read back");
    let told = lorabooth_ok(&["adapter", "inspect", path.to_str().unwrap()]);
    assert!(told.contains("Stable Diffusion XL") && told.contains("text encoder 2"), "{told}");
}

/// Writes the tensors of `from` under other names.
fn respelled(from: &Path, to: &Path, spell: impl Fn(&str) -> String) {
    let tensors: BTreeMap<String, Tensor> =
        read(from).into_iter().map(|(name, tensor)| (spell(&name), tensor)).collect();
    tensor_file::save(to, &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn every_spelling_is_read() {
    let made = adapter(&["q_proj", "k_proj", "v_proj", "out_proj"]);
    let set = read_any(&made.join("peft"), None).unwrap();
    let files = PipelineBase::of(&model("tiny-xl"));
    let folder = tempfile::tempdir().unwrap();
    let (diffusers, kohya) =
        (made.join("diffusers/pytorch_lora_weights.safetensors"), made.join("kohya/lora.safetensors"));
    assert_same(&read_any(&kohya, Some(&files.0)).unwrap(), &set, "kohya");
    let with_metadata = read_any(&diffusers, Some(&files.0)).unwrap();
    assert_same(&with_metadata, &set, "diffusers");
    // ComfyUI's: alphas that its files lack are the ranks, as in diffusers' file without metadata.
    let plain = folder.path().join("plain.safetensors");
    respelled(&diffusers, &plain, str::to_owned);
    let unscaled = read_any(&plain, None).unwrap();
    let comfy = folder.path().join("comfy.safetensors");
    respelled(&diffusers, &comfy, |name| {
        let name = name.replace("text_encoder_2.", "text_encoders.clip_g.transformer.");
        name.replace("text_encoder.", "text_encoders.clip_l.transformer.").replace("unet.", "diffusion_model.")
    });
    assert_same(&read_any(&comfy, None).unwrap(), &unscaled, "ComfyUI");
    // OneTrainer's: kohya's names with diffusers' blocks, the dots kept behind the network's.
    let trainer = folder.path().join("onetrainer.safetensors");
    respelled(&kohya, &trainer, |name| {
        let (start, end) = name.split_once('.').unwrap();
        match start.strip_prefix("lora_unet_") {
            Some(flat) => {
                let modules = set.part(Part::UNet).unwrap().modules();
                let path = modules.into_iter().find(|path| original(path) == flat).unwrap();
                format!("unet.{path}.{end}")
            }
            None => name.to_owned(),
        }
    });
    let [fp8, rounded] = ["fp8.safetensors", "rounded.safetensors"].map(|name| folder.path().join(name));
    let options = json!({ "file": kohya, "half": rounded, "start": "lora_" });
    crate::support::python("fp8_file.py", &[fp8.to_str().unwrap(), &options.to_string()]);
    assert_same(&read_any(&fp8, None).unwrap(), &read_any(&rounded, None).unwrap(), "fp8");
    let old = folder.path().join("old.safetensors");
    respelled(&diffusers, &old, |name| {
        let name = name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.");
        name.replace("text_encoder_2.text_model.", "text_encoder_2.")
    });
    assert_same(&read_any(&old, None).unwrap(), &unscaled, "diffusers' older names");
    // kohya's with diffusers' names of blocks, as other trainers write them.
    let blocks = folder.path().join("blocks.safetensors");
    respelled(&kohya, &blocks, |name| {
        let (start, end) = name.split_once('.').unwrap();
        let path = match start.strip_prefix("lora_unet_") {
            Some(flat) => {
                set.part(Part::UNet).unwrap().modules().into_iter().find(|path| original(path) == flat).unwrap()
            }
            None => return name.to_owned(),
        };
        format!("lora_unet_{}.{end}", path.replace('.', "_"))
    });
    assert_same(&read_any(&blocks, None).unwrap(), &set, "diffusers' names of blocks");
}

fn original(path: &str) -> String {
    lorabooth::weights::original_unet_module(path, 2).unwrap().replace('.', "_")
}

struct PipelineBase(lorabooth::adapters::BaseModel);

impl PipelineBase {
    fn of(folder: &Path) -> Self {
        let files = lorabooth::models::stable_diffusion::PipelineFiles::open(folder, None).unwrap();
        Self(files.base_model().unwrap())
    }
}

/// diffusers does not know encoders of two projections by themselves.
#[test]
fn a_kohya_file_of_two_projections_loads_in_diffusers() {
    let made = adapter(&["q_proj", "v_proj"]);
    let set = read_any(&made.join("peft"), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("kohya.safetensors"), folder.path().join("out.safetensors"));
    write_kohya(&path, &set, Kind::Float, &BTreeMap::new()).unwrap();
    let inputs = made.join("outputs.safetensors");
    let options = json!({ "model": model("tiny-xl"), "inputs": inputs, "lora": path });
    crate::support::python("adapter_files.py", &[out.to_str().unwrap(), &options.to_string()]);
    let (computed, expected) = (read(&out), read(&inputs));
    for part in ["unet", "text_encoder", "text_encoder_2"] {
        let error = crate::support::relative_error(&computed[part], &expected[&format!("{part}.adapter")]);
        assert!(error < 1e-5, "the {part} differs by {error:e}");
    }
    assert_same(&read_any(&path, None).unwrap(), &set, "read back");
}
