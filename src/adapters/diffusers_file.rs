//! `pytorch_lora_weights.safetensors`, diffusers' file for all parts of a pipeline.
//!
//! Written with PEFT's key names and the configuration as metadata, without which diffusers takes every alpha to be the
//! rank. Read in every spelling that diffusers has written. Reference: diffusers `loaders/lora_base.py`, `loaders/peft.py`,
//! `utils/state_dict_utils.py`.

use super::adapter_set::{is_of_projection, AdapterSet, Part};
use super::lora_file;
use super::peft_folder::{check_magnitudes, check_written, config_fields, CLIP, PROJECTION};
use crate::error::{Error, Result};
use crate::weights::{tensor_file, MappedFile};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

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
        check_magnitudes(adapter, "diffusers' file")?;
        // Older transformers know the text encoder's keys only with `text_model.`; newer ones take both.
        let prefix = match part {
            Part::UNet => "unet.",
            Part::TextEncoder => "text_encoder.text_model.",
            Part::TextEncoder2 => "text_encoder_2.text_model.",
        };
        for (name, tensor) in adapter.tensors.iter().filter(|(name, _)| is_of_projection(name)) {
            // transformers 5, which loads the text encoder's, finds a magnitude only as a module's weight; PEFT takes both.
            let is_bare = part.is_text_encoder() && name.ends_with(".lora_magnitude_vector");
            let end = if is_bare { ".weight" } else { "" };
            let prefix = if name.starts_with(PROJECTION) { prefix.replace(CLIP, "") } else { prefix.to_owned() };
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
    lora_file::read(&MappedFile::open(path)?, None).map(|_| ())
}

/// The configuration of each part, where the file's metadata has one.
pub(super) fn configurations(file: &MappedFile) -> Result<BTreeMap<Part, Value>> {
    let Some(text) = file.metadata().remove(METADATA) else { return Ok(BTreeMap::new()) };
    let flat: BTreeMap<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::file(file.path(), format!("the metadata `{METADATA}` is not a JSON object: {e}")))?;
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
