//! Comma- and tab-separated values with a header. Format: RFC 4180.

use super::{places, Row};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::regular_file::{self, FileKind};
use csv::{ErrorKind, Position, ReaderBuilder};
use std::path::Path;

pub(super) fn read(path: &Path, columns: &[String], delimiter: u8) -> Result<Vec<Row>> {
    let bytes = regular_file::read(path, FileKind::RECORDS)?;
    let mut lines = Lines { bytes: &bytes, start: 0, line: 1 };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|error| broken(path, &error, &mut lines))?;
    let found: Vec<String> = header.iter().map(str::to_owned).collect();
    if found.iter().all(|name| name.trim().is_empty()) {
        return Err(Error::file(path, "is empty; its first line must name the columns"));
    }
    let places = places(path, columns, &found)?;
    let mut rows = Vec::new();
    for record in reader.records() {
        interrupt::check()?;
        let record = record.map_err(|error| broken(path, &error, &mut lines))?;
        let line = lines.of(record.position());
        let values = places.iter().map(|&place| record.get(place).unwrap_or_default().to_owned()).collect();
        rows.push(Row { line, values });
    }
    let last = bytes.get(lines.start..).unwrap_or_default();
    match ends_in_quotes(last, delimiter) {
        true => Err(Error::file(path, format!("a quote that is opened in line {} is never closed", lines.line))),
        false => Ok(rows),
    }
}

/// The names of the columns.
pub(super) fn columns(path: &Path, delimiter: u8) -> Result<Vec<String>> {
    let bytes = regular_file::read(path, FileKind::RECORDS)?;
    let mut lines = Lines { bytes: &bytes, start: 0, line: 1 };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|error| broken(path, &error, &mut lines))?;
    Ok(header.iter().map(str::to_owned).collect())
}

/// Counts lines up to one record after another: the reader's own count is behind where lines are blank or end in CRLF.
struct Lines<'a> {
    bytes: &'a [u8],
    /// The first byte of the last record.
    start: usize,
    line: usize,
}

impl Lines<'_> {
    /// The line that the record at `position` begins in.
    fn of(&mut self, position: Option<&Position>) -> usize {
        let reported = position.and_then(|position| usize::try_from(position.byte()).ok()).unwrap_or(self.start);
        let blank = self.bytes.get(reported..).unwrap_or_default();
        let start = reported + blank.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let passed = self.bytes.get(self.start..start).unwrap_or_default();
        self.line += passed.iter().filter(|&&byte| byte == b'\n').count();
        self.start = start;
        self.line
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

fn broken(path: &Path, error: &csv::Error, lines: &mut Lines) -> Error {
    match error.kind() {
        ErrorKind::Utf8 { pos, .. } => {
            let line = lines.of(pos.as_ref());
            Error::file(path, format!("line {line} is not UTF-8; save the file as UTF-8"))
        }
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = lines.of(pos.as_ref());
            let fields = if *len == 1 { "field" } else { "fields" };
            let names = format!("but the header names {expected_len}; are its quotes closed?");
            Error::file(path, format!("line {line} has {len} {fields}, {names}"))
        }
        other => Error::file(path, format!("cannot be read: {other:?}")),
    }
}
