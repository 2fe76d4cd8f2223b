//! JSON files that can be missing.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use serde_json::{Map, Value};
use std::path::Path;

/// The fields of a JSON file; none where there is no such file.
pub(crate) fn optional_object(path: &Path) -> Result<Map<String, Value>> {
    match optional_json(path)? {
        None => Ok(Map::new()),
        Some(Value::Object(fields)) => Ok(fields),
        Some(_) => Err(Error::file(path, "is not a JSON object")),
    }
}

/// A JSON file, or none where there is no such file.
pub(super) fn optional_json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = regular_file::read_text_if_there(path, FileKind::TOKENIZER)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| Error::file(path, format!("is broken JSON: {error}")))
}
