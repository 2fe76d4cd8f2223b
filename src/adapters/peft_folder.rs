//! PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`, as peft 0.21 writes them.

use super::adapter_set::{Part, PartAdapter};
use super::config::{LoraConfig, TargetModules};
use super::finite;
use super::lora_file::left_out_warning;
use super::lora_keys::without_adapter_name;
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::{json_fields, tensor_file, MappedFile};
use crate::whole_file::write_whole;
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

/// Name of the configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors' file.
pub const MODEL_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
pub(super) const CLIP: &str = "text_model.";
/// The projection of whole texts, which is beside CLIP's text model and not in it.
pub(super) const PROJECTION: &str = "text_projection.";

/// How the text encoder's modules are called. PEFT under the other transformers ignores a folder's keys without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextEncoderSpelling {
    /// transformers 5: `encoder.layers.0…`.
    #[default]
    Today,
    /// transformers 4: `text_model.encoder.layers.0…`.
    BeforeTransformers5,
}

/// Writes the adapter of `part` to `folder` and reads it back. `part` is none for a language model's.
pub fn write(folder: &Path, part: Option<Part>, adapter: &PartAdapter, spelling: TextEncoderSpelling) -> Result<()> {
    check_magnitudes(adapter, "PEFT's folder")?;
    let below = match (part, spelling) {
        (Some(Part::TextEncoder), TextEncoderSpelling::BeforeTransformers5) => CLIP,
        // transformers 5 has left it here.
        (Some(Part::TextEncoder2), _) => CLIP,
        _ => "",
    };
    let below = |name: &str| if name.starts_with(PROJECTION) { "" } else { below };
    let tensors: BTreeMap<String, Tensor> = adapter
        .tensors
        .iter()
        .map(|(name, tensor)| (format!("{PREFIX}{}{name}", below(name)), tensor.shallow_clone()))
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join(MODEL_FILE);
    tensor_file::save(&path, &tensors, &metadata)?;
    write_whole(&folder.join(CONFIG_FILE), config_json(&adapter.config, part)?.as_bytes())?;
    check_written(&path, &tensors)?;
    read_config(&folder.join(CONFIG_FILE)).map(|_| ())
}

/// Refuses a DoRA that `format` has no place for.
pub(super) fn check_magnitudes(adapter: &PartAdapter, format: &str) -> Result<()> {
    match adapter.has_column_magnitudes() {
        false => Ok(()),
        true => Err(Error::invalid(format!(
            "the adapter's DoRA magnitudes are by input column, and {format} has magnitudes by output row alone; a kohya \
             file has both"
        ))),
    }
}

/// Reads the file again and compares.
pub(super) fn check_written(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let file = MappedFile::open(path)?;
    let same = |(name, tensor): (&String, &Tensor)| {
        file.tensor(name).is_ok_and(|read| read == tensor.to_device(tch::Device::Cpu))
    };
    match file.names().len() == tensors.len() && tensors.iter().all(same) {
        true => Ok(()),
        false => Err(Error::file(path, "was not written right; is the disk sound?")),
    }
}

/// Reads `folder`: the configuration, and the tensors without PEFT's prefix and CLIP's `text_model.`.
pub fn read(folder: &Path) -> Result<PartAdapter> {
    let mut config = read_config(&folder.join(CONFIG_FILE))?;
    let (path, file) = (folder.join(MODEL_FILE), open(folder)?);
    let (mut tensors, names) = (BTreeMap::new(), file.names());
    let foreign: BTreeSet<&String> = foreign(&names).into_iter().collect();
    for name in names.iter().filter(|name| !foreign.contains(name)) {
        let plain = without_prefixes(name);
        // PEFT before 0.12 saved DoRA's magnitudes as a module's weight.
        let plain = plain.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector");
        let plain = without_adapter_name(&plain);
        check_used(&config, &plain).map_err(|message| Error::file(&path, format!("`{name}` {message}")))?;
        tensors.insert(plain, finite::tensor(&file, name)?);
    }
    respell_config(&mut config);
    PartAdapter { config, tensors }.checked().map_err(|error| Error::file(folder, error.to_string()))
}

/// The file of the tensors in `folder`.
fn open(folder: &Path) -> Result<MappedFile> {
    let [path, pickle] = [MODEL_FILE, "adapter_model.bin"].map(|name| folder.join(name));
    MappedFile::open(if !path.exists() && pickle.exists() { &pickle } else { &path })
}

/// A tensor's name without PEFT's prefix and CLIP's `text_model.`.
fn without_prefixes(name: &str) -> &str {
    let plain = name.strip_prefix(PREFIX).unwrap_or(name);
    plain.strip_prefix(CLIP).unwrap_or(plain)
}

/// Of the `names` in an adapter's file those that no PEFT wrote: without its prefix where others have it, and of no low-rank pair.
fn foreign(names: &[String]) -> Vec<&String> {
    let has_prefix = |name: &&String| name.starts_with(PREFIX);
    match names.iter().any(|name| has_prefix(&name)) {
        true => names.iter().filter(|name| !has_prefix(name) && !name.contains(".lora_")).collect(),
        false => Vec::new(),
    }
}

/// What [`read`] leaves out of the adapter in `folder`, in a sentence.
pub fn left_out(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(MODEL_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let names = MappedFile::open(&path)?.names();
    Ok(left_out_warning(&path, &foreign(&names), names.len(), "not part of the LoRA"))
}

/// Refuses a tensor of the adapter that its configuration does not use: without it the adapter would be another one.
fn check_used(config: &LoraConfig, name: &str) -> std::result::Result<(), &'static str> {
    let has_bias = config.other.get("lora_bias").and_then(Value::as_bool).unwrap_or(false);
    if name.ends_with(".lora_magnitude_vector") && !config.use_dora {
        return Err(
            "is a DoRA magnitude, but use_dora is false in adapter_config.json; set it to true, or remove the tensor",
        );
    }
    if name.ends_with(".lora_B.bias") && !has_bias {
        return Err(
            "is a bias of the LoRA, but lora_bias is false in adapter_config.json; set it, or remove the tensor",
        );
    }
    Ok(())
}

/// The part of Stable Diffusion that a folder's adapter is for; none: it is a language model's.
pub fn part_of(adapter: &PartAdapter) -> Option<Part> {
    part(&adapter.config, adapter.tensors.keys().map(String::as_str))
}

/// The same of the adapter in `folder`, of which no tensor is read.
pub fn part_at(folder: &Path) -> Result<Option<Part>> {
    let (config, names) = (read_config(&folder.join(CONFIG_FILE))?, open(folder)?.names());
    Ok(part(&config, names.iter().map(|name| without_prefixes(name))))
}

fn part<'a>(config: &LoraConfig, names: impl Iterator<Item = &'a str> + Clone) -> Option<Part> {
    let class = config.auto_mapping.as_ref().and_then(|mapping| mapping.get("base_model_class"));
    let has = |starts: &[&str]| names.clone().any(|name| starts.iter().any(|start| name.starts_with(start)));
    match class.and_then(Value::as_str) {
        Some("UNet2DConditionModel") => Some(Part::UNet),
        Some("CLIPTextModel") => Some(Part::TextEncoder),
        Some("CLIPTextModelWithProjection") => Some(Part::TextEncoder2),
        _ if config.task_type.is_some() => None,
        _ if has(UNET_MODULES) => Some(Part::UNet),
        _ if has(CLIP_MODULES) => Some(Part::TextEncoder),
        _ => None,
    }
}

/// What paths of modules in a UNet start with.
const UNET_MODULES: &[&str] =
    &["down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "class_embedding.", "add_embedding."];
/// What those of CLIP's text encoder start with.
const CLIP_MODULES: &[&str] =
    &["encoder.layers.", "embeddings.token_embedding.", "embeddings.position_embedding.", "final_layer_norm."];

fn read_config(path: &Path) -> Result<LoraConfig> {
    config_from(read_json(path)?).map_err(|error| Error::file(path, error.to_string()))
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = regular_file::read_text(path, FileKind::CONFIG)?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not valid JSON: {e}")))
}

/// The `peft_type` of the adapter in `folder`; a file without one is a LoRA's.
pub fn peft_type(folder: &Path) -> Result<String> {
    let config = read_json(&folder.join(CONFIG_FILE))?;
    Ok(config.get("peft_type").and_then(Value::as_str).unwrap_or("LORA").to_owned())
}

/// A configuration from JSON. A null is a field that is not given: PEFT's first files have them for alpha and dropout.
pub(super) fn config_from(mut value: Value) -> Result<LoraConfig> {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
        if let Some(Value::String(one)) = fields.get("modules_to_save").cloned() {
            fields.insert("modules_to_save".into(), json!([one]));
        }
    }
    let config: LoraConfig =
        json_fields::parse(&value).map_err(|e| Error::invalid(format!("not a LoRA configuration: {e}")))?;
    config.checked()
}

/// Takes CLIP's `text_model.` from all names of modules.
pub(super) fn respell_config(config: &mut LoraConfig) {
    let plain = |name: &String| {
        let anchored = name.strip_prefix('^').unwrap_or(name);
        let short = anchored.strip_prefix(CLIP).map_or_else(|| name.clone(), str::to_owned);
        // In a regular expression, where it need not be the start.
        short.replace(r"text_model\.", r"(?:text_model\.)?")
    };
    for targets in [&mut config.target_modules, &mut config.exclude_modules].into_iter().flatten() {
        if let TargetModules::Names(names) = targets {
            names.iter_mut().for_each(|name| *name = plain(name));
        }
    }
    config.modules_to_save.iter_mut().flatten().for_each(|name| *name = plain(name));
    config.rank_pattern = config.rank_pattern.iter().map(|(name, &rank)| (plain(name), rank)).collect();
    config.alpha_pattern = config.alpha_pattern.iter().map(|(name, &alpha)| (plain(name), alpha)).collect();
}

/// `adapter_config.json` byte by byte as peft 0.21.2 writes it: every field, sorted, indented by 2, ASCII.
pub fn config_json(config: &LoraConfig, part: Option<Part>) -> Result<String> {
    let mut fields = peft_defaults();
    for (name, value) in config_fields(config)? {
        fields.insert(name, value);
    }
    if config.task_type.is_none() && config.auto_mapping.is_none() {
        let (class, library) = match part {
            Some(Part::UNet) => ("UNet2DConditionModel", "diffusers.models.unets.unet_2d_condition"),
            Some(Part::TextEncoder) => ("CLIPTextModel", "transformers.models.clip.modeling_clip"),
            Some(Part::TextEncoder2) => ("CLIPTextModelWithProjection", "transformers.models.clip.modeling_clip"),
            None => ("", ""),
        };
        if part.is_some() {
            let mapping = json!({ "base_model_class": class, "parent_library": library });
            fields.insert("auto_mapping".into(), mapping);
        }
    }
    fields.insert("inference_mode".into(), json!(true));
    config_text(fields)
}

/// Fields of a configuration, and PEFT's version, as PEFT writes them.
pub(super) fn config_text(mut fields: BTreeMap<String, Value>) -> Result<String> {
    fields.insert("peft_version".into(), json!("0.21.2"));
    let sorted: Map<String, Value> = fields.into_iter().collect();
    let text = serde_json::to_string_pretty(&Value::Object(sorted))
        .map_err(|e| Error::invalid(format!("the configuration cannot be written: {e}")))?;
    Ok(ascii(&text))
}

/// Our fields as PEFT has them: whole alphas as integers, names sorted.
pub(super) fn config_fields(config: &LoraConfig) -> Result<Map<String, Value>> {
    let mut config = config.clone();
    for targets in [&mut config.target_modules, &mut config.exclude_modules].into_iter().flatten() {
        if let TargetModules::Names(names) = targets {
            names.sort();
            names.dedup();
        }
    }
    let value = serde_json::to_value(&config)
        .map_err(|e| Error::invalid(format!("the configuration cannot be written: {e}")))?;
    let Value::Object(mut fields) = value else { return Err(Error::invalid("the configuration is not an object")) };
    fields.insert("lora_alpha".into(), python_number(config.lora_alpha));
    let alphas: Map<String, Value> =
        config.alpha_pattern.iter().map(|(name, &alpha)| (name.clone(), python_number(alpha))).collect();
    fields.insert("alpha_pattern".into(), Value::Object(alphas));
    Ok(fields)
}

fn python_number(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// Python's `ensure_ascii`. Only strings can hold such characters.
fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{7f}'.. => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out
}

/// Every field of peft 0.21's `LoraConfig` that ours has not, with its default.
fn peft_defaults() -> BTreeMap<String, Value> {
    let null = [
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "eva_config",
        "kasa_config",
        "layer_replication",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "revision",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "velora_config",
    ];
    let mut fields: BTreeMap<String, Value> = null.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    for name in ["ensure_weight_tying", "lora_bias", "use_qalora"] {
        fields.insert(name.into(), json!(false));
    }
    fields.insert("loftq_config".into(), json!({}));
    fields.insert("megatron_core".into(), json!("megatron.core"));
    fields.insert("qalora_group_size".into(), json!(16));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_configuration_and_one_of_a_later_peft_are_read() {
        let launch = json!({ "peft_type": "LORA", "r": 16, "lora_alpha": null, "lora_dropout": null, "bias": "none",
            "target_modules": ["q_proj"], "merge_weights": false, "enable_lora": null, "modules_to_save": null });
        let config = config_from(launch).unwrap();
        assert_eq!((config.r, config.lora_dropout), (16, 0.0));
        assert!(config_from(json!({ "peft_type": "LORA", "of_tomorrow": { "a": 1 } })).is_ok());
    }

    #[test]
    fn names_in_a_transformers_4_configuration_are_respelled() {
        let value = json!({ "target_modules": ["text_model.encoder.layers.0.mlp.fc1", "q_proj"],
            "rank_pattern": { "^text_model.encoder.layers.0.mlp.fc1": 2 },
            "alpha_pattern": { r"text_model\.encoder\.layers\.1\..*q_proj": 9 } });
        let mut config = config_from(value).unwrap();
        respell_config(&mut config);
        assert_eq!(config.rank_of("encoder.layers.0.mlp.fc1"), 2);
        assert_eq!(config.alpha_of("encoder.layers.1.self_attn.q_proj"), 9.0);
    }

    #[test]
    fn a_tensor_that_the_configuration_does_not_use_is_refused_and_an_adapters_name_is_taken_out() {
        let folder = tempfile::tempdir().unwrap();
        let write = |config: Value, names: &[&str]| {
            let tensor = || Tensor::ones([2, 2], (tch::Kind::Float, tch::Device::Cpu));
            let tensors: BTreeMap<String, Tensor> =
                names.iter().map(|name| (format!("base_model.model.{name}"), tensor())).collect();
            tensor_file::save(&folder.path().join(MODEL_FILE), &tensors, &BTreeMap::new()).unwrap();
            std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
            read(folder.path()).map_err(|error| error.to_string())
        };
        let pair = ["q.lora_A.default.weight", "q.lora_B.default.weight"];
        let config = json!({ "peft_type": "LORA", "r": 2, "target_modules": ["q"] });
        let adapter = write(config.clone(), &pair).unwrap();
        assert_eq!(adapter.tensors.keys().collect::<Vec<_>>(), ["q.lora_A.weight", "q.lora_B.weight"]);
        for (surplus, field) in [("q.lora_magnitude_vector", "use_dora"), ("q.lora_B.bias", "lora_bias")] {
            let error = write(config.clone(), &[&pair[..], &[surplus]].concat()).unwrap_err();
            assert!(error.contains(surplus) && error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_key_that_no_peft_wrote_is_left_out_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = || Tensor::ones([2, 2], (tch::Kind::Float, tch::Device::Cpu));
        let save = |names: &[&str]| {
            let tensors = names.iter().map(|name| ((*name).to_owned(), tensor())).collect();
            tensor_file::save(&folder.path().join(MODEL_FILE), &tensors, &BTreeMap::new()).unwrap();
        };
        let config = json!({ "peft_type": "LORA", "r": 2, "target_modules": ["q"] });
        std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
        let pair = ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"];
        save(&pair);
        assert_eq!(left_out(folder.path()).unwrap(), None);
        save(&[&pair[..], &["bundle_emb.dog.string_to_param.*"]].concat());
        assert_eq!(read(folder.path()).unwrap().tensors.len(), 2);
        let said = left_out(folder.path()).unwrap().unwrap();
        assert!(said.contains("left out 1 of its 3 tensors") && said.contains("`bundle_emb.dog"), "{said}");
    }

    #[test]
    fn characters_beyond_ascii_are_written_as_python_writes_them() {
        assert_eq!(ascii("é🙂"), "\\u00e9\\ud83d\\ude42");
    }
}
