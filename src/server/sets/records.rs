//! A set's file of records: what is in it.

use super::super::schema::{integer, list_of, map, object, text};
use super::super::App;
use crate::data::records::Records;
use crate::error::Result;
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};

/// Columns of records that are looked at.
const MAX_COLUMNS: usize = 64;
/// Records of a sample, and characters of each value.
const SHOWN_RECORDS: usize = 5;
const SHOWN_CHARACTERS: usize = 300;

/// What the records at `path` are: their columns, how many they are, and the first of them.
pub fn about_records(name: &str, path: &Path) -> Result<Value> {
    let columns = Records::columns(path)?;
    // Columns of lists and gaps are for others; what can be learned from is flat and whole.
    let is_flat = |column: &&String| Records::read(path, &[column.as_str()]).is_ok();
    let flat: Vec<&str> = match Records::read(path, &columns.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(_) => columns.iter().map(String::as_str).collect(),
        Err(_) => columns.iter().take(MAX_COLUMNS).filter(is_flat).map(String::as_str).collect(),
    };
    if flat.is_empty() {
        // Says what is wrong with it.
        Records::read(path, &columns.iter().map(String::as_str).take(1).collect::<Vec<_>>())?;
    }
    let records = Records::read(path, &flat)?;
    let shown = |text: &str| text.chars().take(SHOWN_CHARACTERS).collect::<String>();
    let sample: Vec<Value> = records
        .iter()
        .take(SHOWN_RECORDS)
        .map(|record| {
            flat.iter()
                .map(|column| ((*column).to_owned(), json!(record.get(column).map(shown))))
                .collect::<Map<_, _>>()
                .into()
        })
        .collect();
    Ok(json!({ "name": name, "count": records.len(), "columns": columns, "sample": sample }))
}

/// The folder of the one file of records of the set `id`.
pub fn records_folder(app: &App, id: &str) -> PathBuf {
    app.data.sets().join(id).join("records")
}

/// What [`about_records`] gives.
pub fn schema() -> Value {
    object([("name", text()), ("count", integer()), ("columns", list_of(text())), ("sample", list_of(map()))])
}
