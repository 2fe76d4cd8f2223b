//! JSON Lines: an object a line. Format: <https://jsonlines.org>.

use super::{no_column, Row};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

pub(super) fn read(path: &Path, columns: &[String]) -> Result<Vec<Row>> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let mut rows = Vec::new();
    for (line, bytes) in (1..).zip(BufReader::new(file).split(b'\n')) {
        let bytes = bytes.map_err(|source| Error::io("read", path, source))?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Error::file(path, format!("line {line} is not UTF-8; save the file as UTF-8")))?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if !text.trim().is_empty() {
            rows.push(row(path, line, text, columns)?);
        }
    }
    Ok(rows)
}

fn row(path: &Path, line: usize, text: &str, columns: &[String]) -> Result<Row> {
    if line == 1 && text.trim_start().starts_with('[') {
        return Err(Error::file(path, "is one JSON list; write an object a line instead (JSONL)"));
    }
    let object: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        let cause = error.to_string();
        let cause = cause.split(" at line ").next().unwrap_or_default();
        Error::file(path, format!("line {line} is no JSON object ({cause}, column {})", error.column()))
    })?;
    let value = |name: &String| match object.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(number @ (Value::Number(_) | Value::Bool(_))) => Ok(number.to_string()),
        Some(Value::Null) => Err(Error::file(path, format!("line {line}: `{name}` is null; every row needs a value"))),
        Some(Value::Array(_)) => Err(nested(path, line, name, "a list")),
        Some(Value::Object(_)) => Err(nested(path, line, name, "an object")),
        None => Err(no_column(path, Some(line), name, object.keys().map(String::as_str))),
    };
    Ok(Row { line, values: columns.iter().map(value).collect::<Result<_>>()? })
}

fn nested(path: &Path, line: usize, name: &str, kind: &str) -> Error {
    Error::file(path, format!("line {line}: `{name}` is {kind}; it must be a text, a number or true or false"))
}
