//! The adapter files of a run: PEFT's folders, and diffusers' one file.

use crate::adapters::{
    read_any, write_diffusers, write_peft, AdapterSet, Attached, LoraConfig, Part, PartAdapter, TextEncoderSpelling,
};
use crate::error::{Error, Result};
use crate::train::run_folder::RunFolder;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Configuration and tensors of one part of the adapter at `path`, in any format that is known.
pub fn read_part(path: &Path, part: Part) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let set = read_any(path, None)?;
    match set.part(part) {
        Some(adapter) => {
            Ok((adapter.config.clone(), adapter.tensors.iter().map(|(k, v)| (k.clone(), v.copy())).collect()))
        }
        None => Err(Error::file(path, format!("has no adapter for the {}", part.name()))),
    }
}

/// Writes the adapters; each file is read back. Returns what was written.
pub fn write(folder: &RunFolder, adapters: &[(Part, Attached)]) -> Result<Vec<PathBuf>> {
    let mut set = AdapterSet::default();
    for (part, adapter) in adapters {
        set.set(*part, PartAdapter::of(adapter));
    }
    write_peft(folder.path(), &set, TextEncoderSpelling::Today)?;
    let mut written: Vec<PathBuf> = set.parts().map(|(part, _)| folder.join(part.name())).collect();
    written.push(write_diffusers(folder.path(), &set)?);
    Ok(written)
}
