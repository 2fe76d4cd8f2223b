//! Parquet files whose columns are flat. Format: <https://parquet.apache.org/docs/file-format>.

use super::{no_column, Row};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::regular_file::{self, FileKind};
use parquet::basic::{ConvertedType, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

/// Values that are decoded at once.
const BATCH: usize = 1024;

pub(super) fn read(path: &Path, columns: &[String]) -> Result<Vec<Row>> {
    // The crate panics in some damaged files, as of a page that needs a dictionary which is not there.
    catch_unwind(AssertUnwindSafe(|| read_columns(path, columns)))
        .unwrap_or_else(|_| Err(Error::file(path, "is a damaged Parquet file; download or copy it again")))
}

/// The names of the columns.
pub(super) fn columns(path: &Path) -> Result<Vec<String>> {
    let damaged = || Err(Error::file(path, "is a damaged Parquet file; download or copy it again"));
    let names = || {
        let file = regular_file::open(path, FileKind::RECORDS)?;
        let reader = SerializedFileReader::new(file).map_err(|error| broken(path, &error))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        Ok(schema.root_schema().get_fields().iter().map(|field| field.name().to_owned()).collect())
    };
    catch_unwind(AssertUnwindSafe(names)).unwrap_or_else(|_| damaged())
}

fn read_columns(path: &Path, columns: &[String]) -> Result<Vec<Row>> {
    let file = regular_file::open(path, FileKind::RECORDS)?;
    let reader = SerializedFileReader::new(file).map_err(|error| broken(path, &error))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let names = || schema.root_schema().get_fields().iter().map(|field| field.name());
    let mut rows: Vec<Row> = Vec::new();
    for (index, name) in columns.iter().enumerate() {
        if !names().any(|found| found == name) {
            return Err(no_column(path, None, name, names()));
        }
        let is_it = |column: &ColumnDescriptor| column.path().parts().first() == Some(name);
        let leaf = (0..schema.num_columns()).find(|&leaf| is_it(&schema.column(leaf)));
        let leaf = leaf.ok_or_else(|| no_column(path, None, name, names()))?;
        let column = schema.column(leaf);
        if column.path().parts().len() != 1 || column.max_rep_level() > 0 {
            let message = format!("`{name}` is nested; it must be a column of texts, numbers or truth values");
            return Err(Error::file(path, message));
        }
        let mut line = 0;
        for group in 0..reader.num_row_groups() {
            interrupt::check()?;
            let group = reader.get_row_group(group).map_err(|error| broken(path, &error))?;
            let values = group.get_column_reader(leaf).map_err(|error| broken(path, &error))?;
            for value in texts(values, &column).map_err(|cause| Error::file(path, format!("`{name}`: {cause}")))? {
                line += 1;
                let value = value.ok_or_else(|| {
                    Error::file(path, format!("row {line}: `{name}` is null; every row needs a value"))
                })?;
                match (index, rows.get_mut(line - 1)) {
                    (0, _) => rows.push(Row { line, values: vec![value] }),
                    (_, Some(row)) => row.values.push(value),
                    (_, None) => return Err(Error::file(path, "has columns of different lengths")),
                }
            }
        }
        if line != rows.len() {
            return Err(Error::file(path, "has columns of different lengths"));
        }
    }
    Ok(rows)
}

fn broken(path: &Path, error: &ParquetError) -> Error {
    Error::file(path, format!("is not a readable Parquet file: {error}"))
}

/// A column's values in one group of rows; none where they are null.
fn texts(reader: ColumnReader, column: &ColumnDescriptor) -> std::result::Result<Vec<Option<String>>, String> {
    let kind = column.logical_type_ref();
    let is_plain = matches!(kind, None | Some(LogicalType::Integer(_)));
    let is_text = matches!(kind, None | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json))
        && column.converted_type() != ConvertedType::DECIMAL;
    let is_number = is_plain && !matches!(column.converted_type(), ConvertedType::DECIMAL | ConvertedType::DATE);
    let is_unsigned = matches!(kind, Some(LogicalType::Integer(integer)) if !integer.is_signed);
    let levels = column.max_def_level();
    match reader {
        ColumnReader::ByteArrayColumnReader(reader) if is_text => values(reader, levels, utf8),
        ColumnReader::BoolColumnReader(reader) => values(reader, levels, |flag| Ok(flag.to_string())),
        ColumnReader::Int32ColumnReader(reader) if is_unsigned => {
            values(reader, levels, |number| Ok((*number as u32).to_string()))
        }
        ColumnReader::Int64ColumnReader(reader) if is_unsigned => {
            values(reader, levels, |number| Ok((*number as u64).to_string()))
        }
        ColumnReader::Int32ColumnReader(reader) if is_number => values(reader, levels, |number| Ok(number.to_string())),
        ColumnReader::Int64ColumnReader(reader) if is_number => values(reader, levels, |number| Ok(number.to_string())),
        ColumnReader::FloatColumnReader(reader) => values(reader, levels, |number| Ok(format!("{number:?}"))),
        ColumnReader::DoubleColumnReader(reader) => values(reader, levels, |number| Ok(format!("{number:?}"))),
        _ => Err("holds neither texts nor numbers nor truth values; convert it to text".to_owned()),
    }
}

fn utf8(bytes: &ByteArray) -> std::result::Result<String, String> {
    let text = std::str::from_utf8(bytes.data());
    text.map(str::to_owned).map_err(|_| "holds bytes that are not UTF-8 text".to_owned())
}

fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    levels: i16,
    text: impl Fn(&T::T) -> std::result::Result<String, String>,
) -> std::result::Result<Vec<Option<String>>, String> {
    let mut texts = Vec::new();
    loop {
        let (mut read, mut defined) = (Vec::new(), Vec::new());
        let wanted = (levels > 0).then_some(&mut defined);
        let (records, ..) =
            reader.read_records(BATCH, wanted, None, &mut read).map_err(|error| format!("cannot be read: {error}"))?;
        if records == 0 {
            return Ok(texts);
        }
        let mut read = read.iter();
        for record in 0..records {
            let is_null = levels > 0 && defined.get(record) != Some(&levels);
            texts.push(match is_null {
                true => None,
                false => Some(text(read.next().ok_or("ends before its rows do")?)?),
            });
        }
    }
}
