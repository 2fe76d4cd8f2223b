//! `pytorch_lora_weights.safetensors`, diffusers' file for both parts of a pipeline.
//!
//! Written with PEFT's key names and the configuration as metadata, without which diffusers takes every alpha to be the
//! rank. Read in every spelling that diffusers has written. Reference: diffusers `loaders/lora_base.py`, `loaders/peft.py`,
//! `utils/state_dict_utils.py`.

use super::adapter_set::{is_of_projection, AdapterSet, Part, PartAdapter};
use super::peft_folder::{check_written, config_fields, config_from, respell_config};
use crate::error::{Error, Result};
use crate::weights::{tensor_file, MappedFile};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The name that `load_lora_weights` looks for in a folder.
pub const FILE_NAME: &str = "pytorch_lora_weights.safetensors";
const METADATA: &str = "lora_adapter_metadata";

/// The fields that matter to a reader. diffusers hands all of them to the `LoraConfig` of whatever PEFT is there, which
/// fails on a field that it does not know: so no more than these, and those off by default only where they are on.
const FIELDS: &[&str] = &["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "lora_dropout"];
const OPTIONAL_FIELDS: &[&str] =
    &["exclude_modules", "layers_to_transform", "layers_pattern", "use_rslora", "use_dora"];

/// Writes `set` to the file `path` and reads it back. Tensors that are no low-rank pairs ([`AdapterSet::whole_tensors`])
/// have no place in this format and are left out.
pub fn write(path: &Path, set: &AdapterSet) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let mut config = Map::new();
    for (part, adapter) in set.parts() {
        // Older transformers know the text encoder's keys only with `text_model.`; newer ones take both.
        let prefix = match part {
            Part::UNet => "unet.",
            Part::TextEncoder => "text_encoder.text_model.",
        };
        for (name, tensor) in adapter.tensors.iter().filter(|(name, _)| is_of_projection(name)) {
            // transformers 5, which loads the text encoder's, finds a magnitude only as a module's weight; PEFT takes both.
            let is_bare = part == Part::TextEncoder && name.ends_with(".lora_magnitude_vector");
            let end = if is_bare { ".weight" } else { "" };
            tensors.insert(format!("{prefix}{name}{end}"), tensor.shallow_clone());
        }
        let fields = config_fields(&adapter.config)?;
        let off = |value: &Value| value.is_null() || value == &json!(false);
        for (name, value) in fields {
            let given = OPTIONAL_FIELDS.contains(&name.as_str()) && !off(&value);
            if FIELDS.contains(&name.as_str()) || given {
                config.insert(format!("{}.{name}", part.name()), value);
            }
        }
    }
    if tensors.is_empty() {
        return Err(Error::invalid("the adapter has no LoRA pairs, which a diffusers file is made of"));
    }
    config.sort_keys();
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (METADATA.to_owned(), Value::Object(config).to_string()),
    ]);
    tensor_file::save(path, &tensors, &metadata)?;
    check_written(path, &tensors)?;
    read(&MappedFile::open(path)?).map(|_| ())
}

/// Reads a file in any of diffusers' spellings.
pub fn read(file: &MappedFile) -> Result<AdapterSet> {
    let mut tensors: BTreeMap<Part, BTreeMap<String, Tensor>> = BTreeMap::new();
    let mut alphas: BTreeMap<Part, BTreeMap<String, f64>> = BTreeMap::new();
    for key in file.names() {
        let unknown = || Error::file(file.path(), format!("the key `{key}` is of no LoRA format that is known here"));
        match respelled(&key).ok_or_else(unknown)? {
            (part, Key::Tensor(name)) => {
                tensors.entry(part).or_default().insert(name, file.tensor(&key)?);
            }
            (part, Key::Alpha(module)) => {
                let alpha = f64::try_from(file.tensor(&key)?.reshape([-1]).f_get(0)?)?;
                alphas.entry(part).or_default().insert(module, alpha);
            }
        }
    }
    let metadata = configurations(file)?;
    let mut set = AdapterSet::default();
    for (part, tensors) in tensors {
        let adapter = match metadata.get(&part) {
            Some(config) => {
                let mut config = config_from(config.clone())?;
                respell_config(&mut config);
                PartAdapter { config, tensors }.checked()
            }
            None => PartAdapter::inferred(tensors, alphas.get(&part).unwrap_or(&BTreeMap::new())),
        };
        set.set(part, adapter.map_err(|error| Error::file(file.path(), error.to_string()))?);
    }
    let empty = set.parts().next().is_none();
    match empty {
        false => Ok(set),
        true => Err(Error::file(file.path(), "holds no LoRA tensors")),
    }
}

/// Whether the keys are diffusers' (with a part's prefix, or an early UNet file without).
pub(super) fn is_one(file: &MappedFile) -> bool {
    file.names().iter().all(|key| respelled(key).is_some())
}

fn configurations(file: &MappedFile) -> Result<BTreeMap<Part, Value>> {
    let Some(text) = file.metadata().remove(METADATA) else { return Ok(BTreeMap::new()) };
    let flat: BTreeMap<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::file(file.path(), format!("the metadata `{METADATA}` is no JSON object: {e}")))?;
    let mut found = BTreeMap::new();
    for part in Part::ALL {
        let prefix = format!("{}.", part.name());
        let fields: Map<String, Value> = flat
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?.to_owned(), value.clone())))
            .collect();
        if !fields.is_empty() {
            found.insert(part, Value::Object(fields));
        }
    }
    Ok(found)
}

enum Key {
    Tensor(String),
    Alpha(String),
}

/// The spellings of a pair's two tensors, and ours.
const PAIRS: &[(&str, &str)] = &[
    (".lora_A.weight", "lora_A.weight"),
    (".lora_B.weight", "lora_B.weight"),
    (".lora.down.weight", "lora_A.weight"),
    (".lora.up.weight", "lora_B.weight"),
    (".lora_linear_layer.down.weight", "lora_A.weight"),
    (".lora_linear_layer.up.weight", "lora_B.weight"),
    ("_lora.down.weight", "lora_A.weight"),
    ("_lora.up.weight", "lora_B.weight"),
    (".lora_magnitude_vector", "lora_magnitude_vector"),
    (".lora_magnitude_vector.weight", "lora_magnitude_vector"),
];

fn respelled(key: &str) -> Option<(Part, Key)> {
    let (part, rest) = match (key.strip_prefix("unet."), key.strip_prefix("text_encoder.")) {
        (Some(rest), _) => (Part::UNet, rest),
        (_, Some(rest)) => (Part::TextEncoder, rest.strip_prefix("text_model.").unwrap_or(rest)),
        _ if ["down_blocks.", "mid_block.", "up_blocks."].iter().any(|block| key.starts_with(block)) => {
            (Part::UNet, key)
        }
        _ => return None,
    };
    if let Some(module) = rest.strip_suffix(".alpha") {
        let module = PAIRS.iter().find_map(|(end, _)| module.strip_suffix(end)).unwrap_or(module);
        return Some((part, Key::Alpha(module_path(part, module, false))));
    }
    let (end, ours) = PAIRS.iter().find(|(end, _)| rest.ends_with(end))?;
    let module = module_path(part, &rest[..rest.len() - end.len()], end.starts_with("_lora"));
    Some((part, Key::Tensor(format!("{module}.{ours}"))))
}

/// `attn1.processor.to_out` of the first files is `attn1.to_out.0`, and the text encoder's `to_q` its `q_proj`.
fn module_path(part: Part, module: &str, is_old: bool) -> String {
    let module = module.replace(".processor.", ".");
    let Some((before, last)) = module.rsplit_once('.').filter(|_| is_old || module.ends_with(".to_out")) else {
        return module;
    };
    let last = match (part, last) {
        (Part::UNet, "to_out") => "to_out.0",
        (Part::TextEncoder, "to_q") => "q_proj",
        (Part::TextEncoder, "to_k") => "k_proj",
        (Part::TextEncoder, "to_v") => "v_proj",
        (Part::TextEncoder, "to_out") => "out_proj",
        (_, last) => last,
    };
    format!("{before}.{last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_key_is_one_key() {
        let at = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        for (key, ours) in [
            (format!("unet.{at}.to_q.lora_A.weight"), format!("{at}.to_q.lora_A.weight")),
            (format!("unet.{at}.to_out.0.lora.up.weight"), format!("{at}.to_out.0.lora_B.weight")),
            (format!("unet.{at}.processor.to_out_lora.down.weight"), format!("{at}.to_out.0.lora_A.weight")),
            (format!("{at}.processor.to_v_lora.up.weight"), format!("{at}.to_v.lora_B.weight")),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight".to_owned(),
                "encoder.layers.0.self_attn.q_proj.lora_A.weight".to_owned(),
            ),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight".to_owned(),
                "encoder.layers.0.self_attn.out_proj.lora_B.weight".to_owned(),
            ),
        ] {
            match respelled(&key) {
                Some((_, Key::Tensor(name))) => assert_eq!(name, ours),
                _ => panic!("{key} is not read"),
            }
        }
        assert!(respelled("unet.conv_in.weight").is_none());
    }
}
