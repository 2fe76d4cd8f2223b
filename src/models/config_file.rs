//! Reads a network's `config.json` and refuses what the architectures here do not compute.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::{json_fields, quantised};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// A JSON file of a configuration's fields.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = regular_file::read_text(path, FileKind::CONFIG)?;
    // Python writes infinities that are no JSON: `"lambda_min_clipped": -Infinity` in many a scheduler_config.json.
    let text = text.replace(": -Infinity", ": null").replace(": Infinity", ": null").replace(": NaN", ": null");
    let value: Value = serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not valid JSON: {e}")))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(Error::file(path, "not a JSON object of the configuration's fields")),
    }
}

/// The fields of `value` over `defaults`. `aliases` are a field's other name, which counts where its own is absent, and
/// that.
pub fn with_defaults(value: &Value, defaults: Value, aliases: &[(&str, &str)]) -> Value {
    let mut fields = defaults.as_object().cloned().unwrap_or_default();
    for (alias, name) in aliases {
        if let Some(field) = value.get(alias) {
            fields.insert((*name).to_owned(), field.clone());
        }
    }
    let given =
        value.as_object().into_iter().flatten().filter(|(name, _)| !aliases.iter().any(|(alias, _)| alias == name));
    fields.extend(given.map(|(name, field)| (name.clone(), field.clone())));
    Value::Object(fields)
}

/// Refuses numbers that no model has, before something is computed with them: `sizes` are names and values.
pub fn check_sizes(sizes: &[(&str, i64)]) -> std::result::Result<(), String> {
    match sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        Some((name, size)) => Err(format!("`{name}` is {size}; it must be 1 to {MAX_SIZE}")),
        None => Ok(()),
    }
}

/// Refuses a width that cannot be parted into heads.
pub fn check_heads(width_name: &str, width: i64, heads_name: &str, heads: i64) -> std::result::Result<(), String> {
    check_sizes(&[(width_name, width), (heads_name, heads)])?;
    match width % heads {
        0 => Ok(()),
        _ => Err(format!("`{width_name}` is {width}, which cannot be parted into {heads} heads (`{heads_name}`)")),
    }
}

/// Refuses a number of layers that no model has.
pub fn check_layers(name: &str, layers: i64) -> std::result::Result<(), String> {
    match (1..=MAX_LAYERS).contains(&layers) {
        true => Ok(()),
        false => Err(format!("`{name}` is {layers}; it must be 1 to {MAX_LAYERS}")),
    }
}

/// Levels that a network can have: the sizes double from one to the next.
pub const MAX_LEVELS: usize = 8;
/// Layers that a level can have.
pub const MAX_LAYERS: i64 = 256;
/// A vocabulary is the largest of the sizes.
const MAX_SIZE: i64 = 1 << 20;

/// A `config.json` as `T`; see [`parse`].
pub fn read<T: DeserializeOwned>(path: &Path, fixed: &[(&str, &[&str])]) -> Result<T> {
    parse(&read_json(path)?, fixed).map_err(|message| Error::file(path, message))
}

/// The fields of a configuration as `T`. Every field in `fixed` must be absent, null or one of the values beside it;
/// another value would change what the model computes in a way that is not written here.
pub fn parse<T: DeserializeOwned>(value: &Value, fixed: &[(&str, &[&str])]) -> std::result::Result<T, String> {
    for (field, allowed) in fixed {
        let found = match value.get(field) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if !allowed.contains(&found.as_str()) {
            return Err(format!("`{field}` is {found}, which is not supported"));
        }
    }
    json_fields::parse(value).map_err(|e| format!("not the configuration expected: {e}"))
}

/// Refuses the weights behind a configuration that says they are quantised, unless they are read as they are.
pub fn check_quantisation(config: &Value, path: &Path) -> Result<()> {
    match config.get("quantization_config").filter(|how| !how.is_null()).and_then(other_quantisation) {
        Some(method) => Err(quantised(path, &format!("`quantization_config` says {method}"))),
        None => Ok(()),
    }
}

/// The method of a `quantization_config` that is not read.
fn other_quantisation(how: &Value) -> Option<String> {
    let text = |name: &str| how.get(name).and_then(Value::as_str);
    let method = text("quant_method").unwrap_or("an unknown method");
    let is_4_bit = how.get("load_in_4bit").and_then(Value::as_bool).unwrap_or(false);
    match (method, is_4_bit, text("bnb_4bit_quant_type")) {
        ("bitsandbytes", true, Some("nf4")) => None,
        ("bitsandbytes", true, Some(kind)) => Some(format!("bitsandbytes with {kind}")),
        ("bitsandbytes", ..) => Some("bitsandbytes with 8 bits".to_owned()),
        _ => Some(method.to_owned()),
    }
}
