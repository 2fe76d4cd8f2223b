//! One safetensors file, mapped into memory: opening it reads its header alone.

use super::tensor_source::TensorSource;
use crate::error::{Error, Result};
use crate::libtorch::file_map::FileMap;
use crate::libtorch::mapped_tensor;
use crate::regular_file::{self, FileKind};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Kind, Tensor};

/// A mapped safetensors file.
pub struct MappedFile {
    path: PathBuf,
    map: Arc<FileMap>,
    metadata: Metadata,
    data_start: usize,
}

impl MappedFile {
    /// Maps `path` and checks its header against the file's length. Pickles are refused.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(kind @ ("bin" | "ckpt" | "pt" | "pth" | "pkl")) = path.extension().and_then(|ext| ext.to_str()) {
            return Err(Error::file(
                path,
                format!(
                    "a .{kind} file is a Python pickle, which can run code when it is read; save the model as .safetensors with `save_pretrained` in Python"
                ),
            ));
        }
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) {
            let message = "is a GGUF file, which only a language model is read from; of Stable Diffusion give a .safetensors file or a \
                           folder in the diffusers layout";
            return Err(Error::file(path, message));
        }
        let map = map_file(path, FileKind::SAFETENSORS)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::file(path, format!("not a whole safetensors file ({e}); download or copy it again")))?;
        Ok(Self { path: path.to_owned(), map, metadata, data_start: header + 8 })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort();
        names
    }

    /// The shape and dtype of a tensor.
    pub fn info(&self, name: &str) -> Option<(Vec<i64>, Result<Kind>)> {
        let info = self.metadata.info(name)?;
        let shape = info.shape.iter().map(|&d| d as i64).collect();
        Some((shape, self.kind_of(name, info.dtype)))
    }

    /// The free-text `__metadata__` of the header.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// The tensor called `name`, over the mapped bytes: it must not be written to.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.metadata.info(name).ok_or_else(|| self.missing(name))?;
        let shape: Vec<i64> = info.shape.iter().map(|&d| d as i64).collect();
        let kind = self.kind_of(name, info.dtype)?;
        self.map.check()?;
        mapped_tensor::over(&self.map, self.data_start + info.data_offsets.0, &shape, kind)
    }

    /// Lets the pages of `name` leave memory; they are read again from the file when they are touched.
    pub fn let_go(&self, name: &str) {
        if let Some(info) = self.metadata.info(name) {
            let (start, end) = info.data_offsets;
            mapped_tensor::let_go(&self.map, self.data_start + start, end - start);
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingWeight { path: self.path.clone(), key: name.to_owned() }
    }

    fn kind_of(&self, name: &str, dtype: Dtype) -> Result<Kind> {
        Ok(match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            Dtype::I64 => Kind::Int64,
            Dtype::I32 => Kind::Int,
            Dtype::I16 => Kind::Int16,
            Dtype::I8 => Kind::Int8,
            Dtype::U8 => Kind::Uint8,
            Dtype::BOOL => Kind::Bool,
            Dtype::F8_E4M3 => Kind::Float8e4m3fn,
            Dtype::F8_E5M2 => Kind::Float8e5m2,
            other => {
                return Err(Error::file(
                    &self.path,
                    format!("weight `{name}` has dtype {other:?}, which is not supported; use f32, f16 or bf16"),
                ))
            }
        })
    }
}

impl TensorSource for MappedFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn info(&self, name: &str) -> Option<(Vec<i64>, Result<Kind>)> {
        self.info(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor(name)
    }

    fn let_go(&self, name: &str) {
        self.let_go(name);
    }
}

/// Maps the file `path`.
pub(super) fn map_file(path: &Path, kind: FileKind) -> Result<Arc<FileMap>> {
    FileMap::of(regular_file::open(path, kind)?, path).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn a_header_that_claims_two_to_the_sixty_bytes_is_refused() {
        let mut bytes = (1u64 << 60).to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        let (_dir, path) = file_of(&bytes);
        let message = MappedFile::open(&path).err().unwrap().to_string();
        assert!(message.contains("not a whole safetensors file"), "{message}");
    }

    #[test]
    fn a_truncated_file_and_an_empty_one_are_refused() {
        for bytes in [&b""[..], b"\x08\0\0\0\0\0\0\0{\"a\":{}}", b"12345"] {
            let (_dir, path) = file_of(bytes);
            assert!(MappedFile::open(&path).is_err());
        }
    }

    #[test]
    fn a_pickle_is_refused_with_the_reason() {
        let message = MappedFile::open(Path::new("model.ckpt")).err().unwrap().to_string();
        assert!(message.contains("can run code"), "{message}");
    }

    #[test]
    fn tensors_come_out_as_they_were_written_and_outlive_the_file_handle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let values = Tensor::arange(6, (Kind::Float, tch::Device::Cpu)).view([2, 3]);
        Tensor::write_safetensors(&[("w", &values)], &path).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let read = file.tensor("w").unwrap();
        file.let_go("w");
        drop(file);
        assert_eq!(read, values);
    }
}
