//! Writes safetensors files: header and order of the tensors as the Python library writes them, metadata sorted, so that
//! one content is one file. Format: <https://github.com/huggingface/safetensors>.

use crate::error::{Error, Result};
use crate::whole_file::WholeFile;
use safetensors::tensor::Dtype;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// A tensor that will be written: its name, shape and dtype.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its dtype.
    pub kind: Kind,
}

/// Writes a file tensor by tensor, so that one of them is in memory at a time.
pub struct TensorFileWriter {
    file: WholeFile,
    left: std::vec::IntoIter<Planned>,
}

impl TensorFileWriter {
    /// Starts the file `path` with its header.
    pub fn create(path: &Path, planned: Vec<Planned>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let (header, ordered) = header(planned, metadata)?;
        let mut file = WholeFile::create(path)?;
        file.write(&header)?;
        Ok(Self { file, left: ordered.into_iter() })
    }

    /// Writes all tensors, each made by `make` when its turn comes, and gives the file its name.
    pub fn write_all(mut self, mut make: impl FnMut(&Planned) -> Result<Tensor>) -> Result<()> {
        for planned in self.left.by_ref() {
            let tensor = make(&planned)?;
            if tensor.size() != planned.shape || tensor.kind() != planned.kind {
                return Err(Error::invalid(format!("`{}` changed its shape or dtype while written", planned.name)));
            }
            self.file.write(&tensor_bytes(&tensor)?)?;
        }
        self.file.finish()
    }
}

/// Writes `tensors` to `path`, whole or not at all.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    TensorFileWriter::create(path, plan(tensors), metadata)?
        .write_all(|planned| Ok(tensors[&planned.name].shallow_clone()))
}

/// The whole file as bytes.
pub fn serialize(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let (mut bytes, ordered) = header(plan(tensors), metadata)?;
    for planned in ordered {
        bytes.extend(tensor_bytes(&tensors[&planned.name])?);
    }
    Ok(bytes)
}

fn plan(tensors: &BTreeMap<String, Tensor>) -> Vec<Planned> {
    let planned =
        |(name, tensor): (&String, &Tensor)| Planned { name: name.clone(), shape: tensor.size(), kind: tensor.kind() };
    tensors.iter().map(planned).collect()
}

/// The header, and the tensors in the order of their bytes: widest dtype first, then by name.
fn header(planned: Vec<Planned>, metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<Planned>)> {
    let mut typed = planned.into_iter().map(|p| Ok((dtype(p.kind)?, p))).collect::<Result<Vec<_>>>()?;
    typed.sort_by(|(a, left), (b, right)| b.cmp(a).then_with(|| left.name.cmp(&right.name)));
    let mut fields = Map::new();
    if !metadata.is_empty() {
        fields.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (dtype, tensor) in &typed {
        let bytes = tensor.shape.iter().product::<i64>() as usize * tensor.kind.elt_size_in_bytes();
        let entry: Value = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, offset + bytes] });
        fields.insert(tensor.name.clone(), entry);
        offset += bytes;
    }
    let mut json = Value::Object(fields).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    Ok((bytes, typed.into_iter().map(|(_, planned)| planned).collect()))
}

/// The bytes of `tensor`, row by row.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let count = tensor.numel();
    let mut bytes = vec![0; count * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, count)?;
    Ok(bytes)
}

fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        other => return Err(Error::invalid(format!("tensors of dtype {other:?} cannot be written"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::MappedFile;
    use tch::Device;

    #[test]
    fn what_is_written_is_read_again_with_its_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = BTreeMap::from([
            ("b".to_owned(), Tensor::arange(6, (Kind::Half, Device::Cpu)).view([2, 3]).tr()),
            ("a".to_owned(), Tensor::arange(3, (Kind::Float, Device::Cpu))),
            ("scalar".to_owned(), Tensor::from(2.5f32)),
        ]);
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        save(&path, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), serialize(&tensors, &metadata).unwrap());
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(file.metadata(), metadata);
        for (name, tensor) in &tensors {
            assert_eq!(&file.tensor(name).unwrap(), tensor);
        }
    }
}
