//! JSON Lines: an object a line. Format: <https://jsonlines.org>.

use super::{no_column, Row};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::regular_file::{self, FileKind};
use serde_json::{Map, Value};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A longer line is no record.
const MAX_LINE_BYTES: u64 = 64 << 20;

pub(super) fn read(path: &Path, columns: &[String]) -> Result<Vec<Row>> {
    let mut file = BufReader::new(regular_file::open(path, FileKind::RECORDS)?);
    let (mut rows, mut bytes) = (Vec::new(), Vec::new());
    for line in 1.. {
        interrupt::check()?;
        bytes.clear();
        let read = file.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        match read.map_err(|source| Error::io("read", path, source))? {
            0 => break,
            read if read as u64 > MAX_LINE_BYTES => {
                let most = MAX_LINE_BYTES >> 20;
                return Err(Error::file(path, format!("line {line} is longer than {most} MB; is it JSON Lines?")));
            }
            _ => {}
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Error::file(path, format!("line {line} is not UTF-8; save the file as UTF-8")))?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if !text.trim().is_empty() {
            rows.push(row(path, line, text, columns)?);
        }
    }
    Ok(rows)
}

/// The names of the first row's columns.
pub(super) fn columns(path: &Path) -> Result<Vec<String>> {
    let file = BufReader::new(regular_file::open(path, FileKind::RECORDS)?);
    for (line, text) in (1..).zip(file.take(MAX_LINE_BYTES).lines()) {
        let text = text.map_err(|_| Error::file(path, format!("line {line} is not UTF-8; save the file as UTF-8")))?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text.as_str() };
        if !text.trim().is_empty() {
            return Ok(object(path, line, text)?.keys().cloned().collect());
        }
    }
    Err(Error::file(path, "has no rows"))
}

fn object(path: &Path, line: usize, text: &str) -> Result<Map<String, Value>> {
    if line == 1 && text.trim_start().starts_with('[') {
        return Err(Error::file(path, "is one JSON list; write an object a line instead (JSONL)"));
    }
    serde_json::from_str(text).map_err(|error| {
        let cause = error.to_string();
        let cause = cause.split(" at line ").next().unwrap_or_default();
        Error::file(path, format!("line {line} is not a JSON object ({cause}, column {})", error.column()))
    })
}

fn row(path: &Path, line: usize, text: &str, columns: &[String]) -> Result<Row> {
    let object = object(path, line, text)?;
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
