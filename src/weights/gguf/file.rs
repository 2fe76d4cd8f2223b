//! A mapped GGUF file.

use super::header::{self, Header, TensorInfo};
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::libtorch::file_map::FileMap;
use crate::libtorch::mapped_tensor;
use crate::regular_file::FileKind;
use crate::weights::mapped_file::map_file;
use crate::weights::tensor_source::TensorSource;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Values that are decoded at once: they are copied into the tensor from a buffer of this size.
const DECODED_AT_ONCE: usize = 1 << 20;

/// A mapped GGUF file (version 2 or 3, little-endian) of tensors in floats, or in blocks of 2 to 8 bits.
pub struct GgufFile {
    path: PathBuf,
    map: Arc<FileMap>,
    header: Header,
}

impl GgufFile {
    /// Maps `path` and checks its header against the file's length. A file with a tensor in another encoding is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path, FileKind::GGUF)?;
        let header = header::parse(&map).map_err(|cause| Error::file(path, cause))?;
        Ok(Self { path: path.to_owned(), map, header })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Shape of the tensor `name`, row-major as in PyTorch.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.header.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The tensor `name` on the CPU: float32, or float16 and bfloat16 where the file has them. Floats lie over the mapped
    /// file and must not be written to.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.header.tensors.get(name);
        let info = info.ok_or_else(|| Error::MissingWeight { path: self.path.clone(), key: name.to_owned() })?;
        self.map.check()?;
        match info.encoding.is_float() {
            true => mapped_tensor::over(&self.map, info.start, &info.shape, info.encoding.kind()),
            false => self.dequantised(info),
        }
    }

    fn dequantised(&self, info: &TensorInfo) -> Result<Tensor> {
        let (block_values, block_bytes) = info.encoding.block();
        let flat = Tensor::f_empty([(info.bytes / block_bytes * block_values) as i64], (Kind::Float, Device::Cpu))?;
        let mut values = Vec::with_capacity(DECODED_AT_ONCE.min(flat.numel()));
        let mut start = 0;
        let bytes = self.map.get(info.start..info.start + info.bytes).unwrap_or_default();
        for blocks in bytes.chunks(DECODED_AT_ONCE / block_values * block_bytes) {
            values.clear();
            info.encoding.decode(blocks, &mut values);
            let length = values.len() as i64;
            flat.f_narrow(0, start, length)?.f_copy_(&Tensor::f_from_slice(&values)?)?;
            start += length;
        }
        mapped_tensor::let_go(&self.map, info.start, info.bytes);
        Ok(flat.f_view(info.shape.as_slice())?)
    }
}

impl TensorSource for GgufFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn info(&self, name: &str) -> Option<(Vec<i64>, Result<Kind>)> {
        self.header.tensors.get(name).map(|tensor| (tensor.shape.clone(), Ok(tensor.encoding.kind())))
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor(name)
    }

    fn let_go(&self, name: &str) {
        if let Some(tensor) = self.header.tensors.get(name) {
            mapped_tensor::let_go(&self.map, tensor.start, tensor.bytes);
        }
    }
}
