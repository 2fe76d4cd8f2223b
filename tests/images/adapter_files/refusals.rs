//! Adapters that no command can use: made for another model, broken, or pickles.

use super::spellings::{base, file_with, pair, randn, refusal, AT};
use super::*;
use crate::support::complaints::Complaints;
use crate::support::words;
use lorabooth::adapters::Family;
use lorabooth::weights::tensor_file;

/// A file with one pair at each of `modules`: its name, and width of A and of B.
fn file_of(folder: &Path, modules: &[(&str, i64, i64)]) -> PathBuf {
    let path = folder.join("other.safetensors");
    let pairs = modules.iter().flat_map(|(at, input, output)| {
        [
            (format!("{at}.lora_down.weight"), randn(&[2, *input])),
            (format!("{at}.lora_up.weight"), randn(&[*output, 2])),
        ]
    });
    tensor_file::save(&path, &pairs.collect(), &BTreeMap::new()).unwrap();
    path
}

#[test]
fn an_adapter_for_another_generation_is_named_by_its_signs() {
    let dir = tempfile::tempdir().unwrap();
    let to_k = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    let deep = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_1_attn1_to_q";
    let original = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let xl = "Stable Diffusion XL";
    for (modules, word) in [
        (&[("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120)][..], xl),
        (&[("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", 1280, 5120)], xl),
        (&[(to_k, 2048, 32)], xl),
        (&[(original, 2048, 640)], xl),
        (&[(deep, 32, 32)], xl),
        (&[("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640, 640)], xl),
        (&[(to_k, 1024, 32)], "Stable Diffusion 2.x"),
        (&[("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024)], "Stable Diffusion 2.x"),
        (&[("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072)], "Flux"),
        (&[("transformer.transformer_blocks.0.attn.to_q", 1536, 1536)], "diffusion transformer"),
    ] {
        let text = refusal(&file_of(dir.path(), modules));
        assert!(text.contains("other.safetensors is a LoRA for") && text.contains(word), "{text}");
        assert!(text.contains("but the model is Stable Diffusion 1.x"), "{text}");
    }
    // As small as the model's generation has none: the sizes are named.
    let text = refusal(&file_of(dir.path(), &[(to_k, 768, 32)]));
    assert!(text.contains("768") && text.contains("the model's 32"), "{text}");
    let path = file_with(dir.path(), "lora.safetensors", &[]);
    let metadata = BTreeMap::from([("ss_base_model_version".to_owned(), "sdxl_base_v1-0".to_owned())]);
    tensor_file::save(&path, &pair(), &metadata).unwrap();
    assert!(refusal(&path).contains(xl), "{}", refusal(&path));
    // PEFT's folders have the same signs.
    for (part, name, width) in [
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 2048),
        ("text_encoder_2", "encoder.layers.0.mlp.fc1", 1280),
    ] {
        let folder = dir.path().join("peft").join(part);
        std::fs::create_dir_all(&folder).unwrap();
        let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [name] });
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let at = format!("base_model.model.{name}");
        let tensors = BTreeMap::from([
            (format!("{at}.lora_A.weight"), randn(&[2, width])),
            (format!("{at}.lora_B.weight"), randn(&[32, 2])),
        ]);
        tensor_file::save(&folder.join("adapter_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        let text = refusal(&dir.path().join("peft"));
        assert!(text.contains(xl) && text.contains("but the model is Stable Diffusion 1.x"), "{text}");
    }
    // A model of 2.x says so of itself.
    let second = PipelineFiles::open(&model("tiny-v"), None).unwrap().base_model().unwrap();
    assert_eq!((base().family(), second.family()), (Family::V1, Family::V2));
}

/// `NAME.safetensors` with one number that is none, and the folder of a language model's adapter with the same.
fn broken(folder: &Path) -> (PathBuf, PathBuf) {
    let up = randn(&[64, 2]);
    _ = up.get(3).fill_(f64::NAN);
    let file = file_with(folder, "broken.safetensors", &[(format!("{AT}.lora_up.weight").as_str(), up)]);
    let language = folder.join("language");
    std::fs::create_dir(&language).unwrap();
    let config =
        json!({ "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"] });
    std::fs::write(language.join("adapter_config.json"), config.to_string()).unwrap();
    let at = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors = BTreeMap::from([
        (format!("{at}.lora_A.weight"), randn(&[2, 8]) / 0.0),
        (format!("{at}.lora_B.weight"), randn(&[8, 2])),
    ]);
    tensor_file::save(&language.join("adapter_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    (file, language)
}

#[test]
fn an_adapter_with_nan_is_refused_by_every_command_with_its_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let (file, language) = broken(dir.path());
    let [file, language, out] = [&file, &language, &dir.path().join("out")].map(|path| path.display().to_string());
    let (tiny, photos) = (model("tiny").display().to_string(), photos(3, 0).display().to_string());
    let key = format!("{AT}.lora_up.weight");
    let mut complaints = Complaints::default();
    for line in [
        format!("adapter inspect {file}"),
        format!("adapter merge --model {tiny} --lora {file} --output-dir {out}"),
        format!("adapter convert {file} --to peft --output {out}"),
        format!("generate --model {tiny} --lora {file} --prompt dog --output {out}.png"),
        format!("train dreambooth --model {tiny} --instance-data-dir {photos} --instance-prompt dog --resolution 32 --init-adapter {file} --output-dir {out}"),
    ] {
        complaints.refused(&line, &words(&line), 1, &["broken.safetensors", &key, "NaN"]);
    }
    let key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    for line in [
        format!("adapter inspect {language}"),
        format!("adapter convert {language} --to peft --output {out}"),
        format!("adapter merge --model {tiny} --lora {language} --output-dir {out}"),
    ] {
        complaints.refused(&line, &words(&line), 1, &["adapter_model.safetensors", key, "NaN"]);
    }
    complaints.check("something was written", !dir.path().join("out").exists());
}

#[test]
fn every_command_names_both_models_and_pickles_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = file_of(dir.path(), &[("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072)]).display().to_string();
    let [out, pickles] = ["out", "pickles"].map(|name| dir.path().join(name).display().to_string());
    let (tiny, photos) = (model("tiny").display().to_string(), photos(3, 0).display().to_string());
    let mut complaints = Complaints::default();
    let commands = |adapter: &str| {
        [
            format!("adapter merge --model {tiny} --lora {adapter} --output-dir {out}"),
            format!("generate --model {tiny} --lora {adapter} --prompt dog --output {out}.png"),
            format!("train dreambooth --model {tiny} --instance-data-dir {photos} --instance-prompt dog --resolution 32 --init-adapter {adapter} --output-dir {out}"),
        ]
    };
    let without_model = |adapter: &str| {
        [format!("adapter inspect {adapter}"), format!("adapter convert {adapter} --to peft --output {out}")]
    };
    for line in commands(&file).into_iter().chain(without_model(&file)) {
        let expected = ["is a LoRA for Flux", "Stable Diffusion 1.x"];
        complaints.refused(&line, &words(&line), 1, &expected);
    }
    std::fs::create_dir(&pickles).unwrap();
    for (name, cure) in [("pytorch_lora_weights.bin", "save_lora_weights"), ("adapter_model.bin", "save_pretrained")] {
        let path = Path::new(&pickles).join(name);
        std::fs::write(&path, b"\x80\x02}.").unwrap();
        for line in commands(&pickles).into_iter().chain(without_model(&pickles)) {
            complaints.refused(&line, &words(&line), 1, &[name, "pickle", cure]);
        }
        std::fs::remove_file(path).unwrap();
    }
}
