//! Rows of named texts from JSONL, CSV, TSV and Parquet.
//!
//! Only the columns that are asked for are kept, and only in those does a null or nested value matter. Numbers and truth values
//! become text as JSON spells them.

mod csv;
mod jsonl;
mod parquet;

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Some columns of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<Row>,
}

/// One row: where it is in its file, and a value for each column.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    line: usize,
    values: Vec<String>,
}

/// A row with the names of its columns.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    columns: &'a [String],
    row: &'a Row,
}

impl<'a> Record<'a> {
    /// The value of a column that was asked for.
    pub fn get(&self, column: &str) -> Option<&'a str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.row.values.get(index).map(String::as_str)
    }

    /// The line of the file that the row begins in; in Parquet, its number from 1.
    pub fn line(&self) -> usize {
        self.row.line
    }
}

impl Records {
    /// Reads the columns `wanted` of a file, whose format is that of its name: `.jsonl`, `.ndjson` or `.json` (an object a
    /// line), `.csv` (RFC 4180 with a header), `.tsv` or `.tab` (the same with tabs), `.parquet`.
    ///
    /// A missing column, no rows, a broken row, text that is not UTF-8, and a null or nested value are errors that name the
    /// column and the line.
    pub fn read(path: &Path, wanted: &[&str]) -> Result<Self> {
        let mut columns: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        columns.sort();
        columns.dedup();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        let rows = match extension.as_str() {
            "jsonl" | "ndjson" | "json" => jsonl::read(path, &columns)?,
            "csv" => csv::read(path, &columns, b',')?,
            "tsv" | "tab" => csv::read(path, &columns, b'\t')?,
            "parquet" => parquet::read(path, &columns)?,
            _ => return Err(no_data_file(path)),
        };
        match rows.is_empty() {
            true => Err(Error::file(path, "has no rows")),
            false => Ok(Self { path: path.to_owned(), columns, rows }),
        }
    }

    /// The names of all columns of a file, in its order; of JSON Lines those of the first row.
    pub fn columns(path: &Path) -> Result<Vec<String>> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        match extension.as_str() {
            "jsonl" | "ndjson" | "json" => jsonl::columns(path),
            "csv" => csv::columns(path, b','),
            "tsv" | "tab" => csv::columns(path, b'\t'),
            "parquet" => parquet::columns(path),
            _ => Err(no_data_file(path)),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of rows, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a file without rows is an error")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// All rows, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        self.rows.iter().map(|row| Record { columns: &self.columns, row })
    }
}

fn no_data_file(path: &Path) -> Error {
    Error::file(path, "is not a data file by its name; it must be .jsonl, .csv, .tsv or .parquet")
}

/// Each wanted column's place among those of the file at `path`.
fn places(path: &Path, wanted: &[String], found: &[String]) -> Result<Vec<usize>> {
    let place = |name: &String| {
        let mut places = found.iter().enumerate().filter(|(_, column)| *column == name).map(|(place, _)| place);
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            (Some(_), Some(_)) => Err(Error::file(path, format!("has two columns `{name}`; rename one of them"))),
            (None, _) => Err(no_column(path, None, name, found.iter().map(String::as_str))),
        }
    };
    wanted.iter().map(place).collect()
}

fn no_column<'a>(path: &Path, line: Option<usize>, name: &str, found: impl Iterator<Item = &'a str>) -> Error {
    let found: Vec<String> = found.map(|column| format!("`{column}`")).collect();
    let there = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let place = line.map_or_else(String::new, |line| format!("line {line} "));
    Error::file(path, format!("{place}has no column `{name}`; there are: {there}"))
}
