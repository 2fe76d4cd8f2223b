//! The adapter files of a run.

use crate::adapters::{Attached, LoraConfig};
use crate::error::{Error, Result};
use crate::train::run_folder::{write_atomically, write_json, RunFolder};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Reads one part of an adapter.
pub fn read_part(folder: &Path, part: &str) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let folder = folder.join(part);
    let path = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let config: LoraConfig = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
    let tensors = Tensor::read_safetensors(folder.join("adapter_model.safetensors"))?;
    let strip = |name: String| name.trim_start_matches("base_model.model.").trim_start_matches("text_model.").to_owned();
    Ok((config, tensors.into_iter().map(|(name, tensor)| (strip(name), tensor)).collect()))
}

/// Writes the adapters; the paths written.
pub fn write(folder: &RunFolder, adapters: &[(&'static str, Attached)], _model: &str) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for (part, adapter) in adapters {
        let place = folder.join(part);
        std::fs::create_dir_all(&place).map_err(|e| Error::io("create", &place, e))?;
        let tensors: Vec<(String, Tensor)> =
            adapter.params.iter().map(|(k, v)| (format!("base_model.model.{k}"), v.detach().to_device(tch::Device::Cpu))).collect();
        write_atomically(&place.join("adapter_model.safetensors"), |path| Ok(Tensor::write_safetensors(&tensors, path)?))?;
        write_json(&place.join("adapter_config.json"), &adapter.config)?;
        written.push(place);
    }
    Ok(written)
}
