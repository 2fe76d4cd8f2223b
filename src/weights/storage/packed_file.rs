//! Quantised weights that wait on disk for the CPU: in a file without a name, which is gone with the process.

use crate::error::{Error, Result};
use crate::libtorch::file_map::FileMap;
use crate::libtorch::mapped_tensor;
use crate::plain_text::hex;
use crate::weights::tensor_file::tensor_bytes;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Kind, Tensor};

/// A part's place in the file.
pub(super) struct Part {
    start: usize,
    shape: Vec<i64>,
    kind: Kind,
}

/// A file that weights are added to, and taken from once all are there.
pub struct PackedFile {
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    bytes: usize,
    /// Made when the first weight is taken, and anew where some were added since.
    map: Option<Arc<FileMap>>,
}

/// Parts start at multiples of this, as pages do: those of one weight leave memory without another's.
const ALIGNMENT: usize = 4096;

impl PackedFile {
    /// An empty file in the folder of temporary files.
    pub fn new() -> Result<Self> {
        let folder = std::env::temp_dir();
        let file = unnamed(&folder).map_err(|error| Error::io("write", &folder, error))?;
        Ok(Self { folder, state: Mutex::new(State { file, bytes: 0, map: None }) })
    }

    /// Writes a copy of `part`, which lies densely on the CPU.
    pub(super) fn add(&self, part: &Tensor) -> Result<Part> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = state.bytes.next_multiple_of(ALIGNMENT);
        let bytes = tensor_bytes(part)?;
        let gap = vec![0; start - state.bytes];
        let written = state.file.write_all(&gap).and_then(|()| state.file.write_all(&bytes));
        written.map_err(|error| Error::io("write", &self.folder, error))?;
        state.bytes = start + bytes.len();
        Ok(Part { start, shape: part.size(), kind: part.kind() })
    }

    /// The parts of one weight, over the file.
    pub(super) fn get(&self, parts: &[Part]) -> Result<Vec<Tensor>> {
        let map = self.map()?;
        parts.iter().map(|part| mapped_tensor::over(&map, part.start, &part.shape, part.kind)).collect()
    }

    /// Lets the pages of `parts` leave memory.
    pub(super) fn let_go(&self, parts: &[Part]) {
        let Ok(map) = self.map() else { return };
        for part in parts {
            let numbers = part.shape.iter().product::<i64>() as usize;
            mapped_tensor::let_go(&map, part.start, numbers * part.kind.elt_size_in_bytes());
        }
    }

    fn map(&self) -> Result<Arc<FileMap>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = state.map.as_ref().filter(|map| map.len() == state.bytes) {
            return Ok(map.clone());
        }
        let file = state.file.try_clone().map_err(|error| Error::io("read", &self.folder, error))?;
        let map = Arc::new(FileMap::of(file, &self.folder)?);
        state.map = Some(map.clone());
        Ok(map)
    }
}

/// A file in `folder` that no other program can open.
fn unnamed(folder: &Path) -> std::io::Result<File> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(|error| std::io::Error::other(error.to_string()))?;
    let path = folder.join(format!("lorabooth-{}", hex(&name)));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
