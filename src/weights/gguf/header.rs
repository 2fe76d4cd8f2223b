//! A GGUF file's header: version, metadata, and where each tensor lies. All of it is checked against the file's length,
//! and nothing is allocated for a count before what is counted was read.

use super::encoding::Encoding;
use super::metadata::{Metadata, MetadataValue};
use std::collections::BTreeMap;

/// Values that metadata can have: vocabularies of a million tokens with their merges, scores and types are below it.
const MAX_VALUES: usize = 1 << 22;
/// Arrays in arrays.
const MAX_DEPTH: usize = 4;
/// The format's limit.
const MAX_DIMENSIONS: usize = 4;
/// Where `general.alignment` is not there.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Eight is the format's smallest; a larger one than the largest is a mistake.
const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=1 << 20;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorInfo {
    /// Row-major, as in PyTorch; the file has it the other way round.
    pub(super) shape: Vec<i64>,
    pub(super) encoding: Encoding,
    /// Its first byte in the file.
    pub(super) start: usize,
    /// Its length in bytes.
    pub(super) bytes: usize,
}

/// All of a file but its tensors' bytes.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// A tensor before the place of the first one is known.
struct Described {
    name: String,
    shape: Vec<i64>,
    encoding: Encoding,
    offset: u64,
}

/// Reads the header of a whole file's `bytes`; an error is a sentence about the file.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
    if !bytes.starts_with(b"GGUF") {
        return Err("is not a GGUF file: it does not begin with GGUF".to_owned());
    }
    let mut cursor = Cursor { bytes, at: 4, values: 0 };
    match cursor.u32()? {
        2 | 3 => {}
        swapped if swapped.swap_bytes() <= 3 => return Err("is for big-endian machines, which is not read".to_owned()),
        other => return Err(format!("is GGUF version {other}; only versions 2 and 3 are supported: convert it again")),
    }
    let (tensor_count, value_count) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0).map_err(|cause| format!("`{key}` in its metadata {cause}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("has `{key}` twice in its metadata"));
        }
    }
    let metadata = Metadata(metadata);
    let alignment = metadata.integer("general.alignment")?.map_or(DEFAULT_ALIGNMENT, |alignment| alignment as u64);
    if !alignment.is_power_of_two() || !ALIGNMENTS.contains(&alignment) {
        return Err(format!("has a `general.alignment` of {alignment}; it must be a power of two, 8 to 1048576"));
    }
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(cursor.tensor()?);
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for tensor in described {
        let name = tensor.name.clone();
        let placed =
            place(tensor, data_start, alignment, bytes.len()).map_err(|cause| format!("tensor `{name}` {cause}"))?;
        if tensors.insert(name.clone(), placed).is_some() {
            return Err(format!("has tensor `{name}` twice"));
        }
    }
    Ok(Header { metadata, tensors })
}

/// Finds a tensor's bytes, which must lie in the file.
fn place(tensor: Described, data_start: u64, alignment: u64, file_bytes: usize) -> Result<TensorInfo, String> {
    let Described { shape, encoding, offset, .. } = tensor;
    let (block_values, block_bytes) = encoding.block();
    let values = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let values = values.ok_or_else(|| format!("has the impossible shape {shape:?}"))?;
    if shape.last().is_none_or(|&row| row % block_values as i64 != 0) {
        return Err(format!("has rows that are not whole blocks of {block_values} values: {shape:?}"));
    }
    if offset % alignment != 0 {
        return Err(format!("begins at byte {offset}, which is not a multiple of the alignment {alignment}"));
    }
    let bytes = (values / block_values).checked_mul(block_bytes);
    let start = data_start.checked_add(offset).and_then(|start| usize::try_from(start).ok());
    let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
    match (start, bytes, end) {
        (Some(start), Some(bytes), Some(end)) if end <= file_bytes => Ok(TensorInfo { shape, encoding, start, bytes }),
        _ => Err("ends after its file; download or copy it again".to_owned()),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    values: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("ends within its header; download or copy it again")?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_owned).map_err(|_| "has a text in its header that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<MetadataValue, String> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(format!("brings its values to more than {MAX_VALUES}"));
        }
        Ok(match kind {
            0 => MetadataValue::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => MetadataValue::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => MetadataValue::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => MetadataValue::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => MetadataValue::Unsigned(self.u32()?.into()),
            5 => MetadataValue::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => MetadataValue::F32(f32::from_le_bytes(self.array()?)),
            7 => match self.array()? {
                [0] => MetadataValue::Bool(false),
                [1] => MetadataValue::Bool(true),
                [other] => return Err(format!("is a truth value of {other}; it must be 0 or 1")),
            },
            8 => MetadataValue::Text(self.text()?),
            9 if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let mut elements = Vec::new();
                for _ in 0..count {
                    elements.push(self.value(kind, depth + 1)?);
                }
                MetadataValue::Array(elements)
            }
            9 => return Err(format!("has arrays in arrays, more than {MAX_DEPTH} deep")),
            10 => MetadataValue::Unsigned(self.u64()?),
            11 => MetadataValue::Signed(i64::from_le_bytes(self.array()?)),
            12 => MetadataValue::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("is of type {other}, which the format does not have")),
        })
    }

    fn tensor(&mut self) -> Result<Described, String> {
        let name = self.text()?;
        let dimensions = self.u32()? as usize;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("tensor `{name}` has {dimensions} dimensions; there are 1 to {MAX_DIMENSIONS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = i64::try_from(self.u64()?).ok().filter(|&size| size > 0);
            shape.push(size.ok_or_else(|| format!("tensor `{name}` has an impossible dimension"))?);
        }
        shape.reverse();
        let encoding = Encoding::of(self.u32()?).map_err(|cause| format!("tensor `{name}` {cause}"))?;
        Ok(Described { name, shape, encoding, offset: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 64 bytes of tensors behind what `more` appends to a header of one value and one tensor.
    fn file(value: &[u8], dimensions: &[u64], encoding: u32, offset: u64) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([1u64, 1].map(u64::to_le_bytes).concat());
        bytes.extend([text("key"), value.to_vec(), text("w")].concat());
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(encoding.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
        bytes
    }

    const TRUE: &[u8] = b"\x07\0\0\0\x01";

    fn refusal(bytes: &[u8]) -> String {
        parse(bytes).err().unwrap()
    }

    #[test]
    fn shapes_are_turned_round_and_every_cut_is_noticed() {
        let whole = file(TRUE, &[8, 2], 0, 0);
        let header = parse(&whole).unwrap();
        assert_eq!(header.tensors["w"].shape, [2, 8]);
        assert_eq!(header.metadata.flag("key"), Ok(Some(true)));
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn hostile_numbers_are_refused_without_being_allocated() {
        let huge = (1u64 << 60).to_le_bytes();
        let mut counts = file(TRUE, &[8, 2], 0, 0);
        for at in [8, 16, 24] {
            let mut bytes = counts.clone();
            bytes[at..at + 8].copy_from_slice(&huge);
            assert!(!refusal(&bytes).is_empty(), "{at}");
        }
        counts[4] = 1;
        assert!(refusal(&counts).contains("version 1"));
        for kind in 0..13u32 {
            let array = [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &huge].concat();
            assert!(!refusal(&file(&array, &[8, 2], 0, 0)).is_empty());
        }
        for (dimensions, encoding, offset, says) in [
            (vec![1 << 40, 1 << 40], 0, 0, "impossible shape"),
            (vec![1 << 63], 0, 0, "impossible dimension"),
            (vec![0], 0, 0, "impossible dimension"),
            (vec![1; 5], 0, 0, "5 dimensions"),
            (vec![], 0, 0, "0 dimensions"),
            (vec![8, 2], 0, 32, "after its file"),
            (vec![8, 2], 0, u64::MAX - 31, "after its file"),
            (vec![8, 2], 0, 8, "multiple of the alignment"),
            (vec![8, 4], 8, 0, "whole blocks"),
            (vec![32], 10, 0, "whole blocks"),
            (vec![32], 20, 0, "IQ4_NL"),
        ] {
            assert!(refusal(&file(TRUE, &dimensions, encoding, offset)).contains(says), "{says}");
        }
        assert!(refusal(&file(b"\x07\0\0\0\x02", &[8, 2], 0, 0)).contains("0 or 1"));
        assert!(refusal(&file(b"\x0D\0\0\0\x02", &[8, 2], 0, 0)).contains("type 13"));
        let nested = [9u32, 9, 1, 0, 9, 1, 0, 9, 1, 0, 9, 1, 0, 9, 1, 0].map(u32::to_le_bytes).concat();
        assert!(refusal(&file(&nested, &[8, 2], 0, 0)).contains("deep"));
    }
}
