//! The adapter files of a run: PEFT's folders, and diffusers' one file.

use super::observer::{Event, Observer};
use crate::adapters::{
    read_any, write_diffusers, write_peft, AdapterSet, Attached, LoraConfig, Part, PartAdapter, TextEncoderSpelling,
};
use crate::error::{Error, Result};
use crate::train::run_folder::RunFolder;
use std::collections::BTreeMap;
use std::path::Path;
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

/// Writes the adapters; each file is read back. Tells of what was written, and of what a format has no place for.
pub fn write(folder: &RunFolder, adapters: &[(Part, Attached)], observer: &mut dyn Observer) -> Result<()> {
    let mut set = AdapterSet::default();
    for (part, adapter) in adapters {
        set.set(*part, PartAdapter::of(adapter));
    }
    write_peft(folder.path(), &set, TextEncoderSpelling::Today)?;
    set.parts().for_each(|(part, _)| observer.on(Event::Wrote { path: folder.join(part.name()) }));
    let path = write_diffusers(folder.path(), &set)?;
    if let Some(text) = set.left_out_warning(&path) {
        observer.warning(text);
    }
    observer.on(Event::Wrote { path });
    Ok(())
}
