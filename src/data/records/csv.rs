//! Comma- and tab-separated values with a header. Format: RFC 4180.

use super::{places, Row};
use crate::error::{Error, Result};
use csv::{ErrorKind, Position, ReaderBuilder};
use std::path::Path;

pub(super) fn read(path: &Path, columns: &[String], delimiter: u8) -> Result<Vec<Row>> {
    let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|error| broken(path, &error))?.clone();
    let mut last = header.position().map_or(0, Position::byte);
    let found: Vec<String> = header.iter().map(str::to_owned).collect();
    if found.iter().all(|name| name.trim().is_empty()) {
        return Err(Error::file(path, "is empty; its first line must name the columns"));
    }
    let places = places(path, columns, &found)?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| broken(path, &error))?;
        last = record.position().map_or(last, Position::byte);
        let line = record.position().map_or(0, Position::line) as usize;
        let values = places.iter().map(|&place| record.get(place).unwrap_or_default().to_owned()).collect();
        rows.push(Row { line, values });
    }
    let rest = usize::try_from(last).ok().and_then(|last| bytes.get(last..)).unwrap_or_default();
    match ends_in_quotes(rest, delimiter) {
        true => {
            let line = rows.last().map_or(1, |row| row.line);
            Err(Error::file(path, format!("a quote that is opened in line {line} is never closed")))
        }
        false => Ok(rows),
    }
}

/// Whether the last record's last field is opened by a quote that nothing closes: the reader takes all that follows into it.
fn ends_in_quotes(record: &[u8], delimiter: u8) -> bool {
    let (mut quoted, mut starts) = (false, true);
    for &byte in record {
        match byte {
            b'"' if quoted || starts => quoted = !quoted,
            _ => {}
        }
        // In a quoted field a doubled quote closes and opens it again.
        starts = !quoted && (byte == delimiter || byte == b'\n' || byte == b'\r' || byte == b'"');
    }
    quoted
}

fn broken(path: &Path, error: &csv::Error) -> Error {
    let at = |position: &Option<Position>| position.as_ref().map_or(1, Position::line);
    match error.kind() {
        ErrorKind::Utf8 { pos, .. } => {
            Error::file(path, format!("line {} is not UTF-8; save the file as UTF-8", at(pos)))
        }
        ErrorKind::UnequalLengths { pos, expected_len, len } => Error::file(
            path,
            format!("line {} has {len} fields, but the header names {expected_len}; are its quotes closed?", at(pos)),
        ),
        other => Error::file(path, format!("cannot be read: {other:?}")),
    }
}
