//! A VAE that stands in the place of a pipeline's own: a folder, a file in diffusers' or the original key names, or a hub id.

use super::{inferred_config, VaeConfig};
use crate::error::{Error, Result};
use crate::models::config_file;
use crate::weights::hub::{self, Hub, Listener};
use crate::weights::{original_vae, spelling, WeightSet};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where a VAE is.
#[derive(Debug, Clone)]
pub(super) enum VaeFiles {
    /// A folder with config.json and weights.
    Folder(PathBuf),
    /// A file, which has no configuration.
    File(PathBuf),
}

impl VaeFiles {
    /// The VAE that `name` names; one of the hub is fetched first, its weights only where they are wanted.
    pub fn resolve(name: &str, with_weights: bool, listener: &mut dyn Listener) -> Result<Self> {
        let path = Path::new(name);
        if path.is_file() {
            return Ok(Self::File(path.to_owned()));
        }
        if path.is_dir() {
            let folders = [path.to_owned(), path.join("vae")];
            let found = folders.into_iter().find(|folder| folder.join("config.json").is_file());
            return found.map(Self::Folder).ok_or_else(|| {
                Error::file(path, "holds no VAE: neither config.json nor a folder `vae` with one (⟨vae⟩)")
            });
        }
        if !hub::is_id(name) {
            return Err(Error::invalid(format!(
                "no VAE `{name}` was found: give ⟨vae⟩ a folder, a .safetensors file or a hub id (`owner/name`)"
            )));
        }
        let request =
            hub::Request { id: name, weights_of: if with_weights { &[""] } else { &[] }, ..Default::default() };
        Ok(Self::Folder(Hub::from_env()?.fetch_vae(&request, listener)?))
    }

    /// Its configuration; what a file does not tell is as in the models of its pipeline's kind.
    pub fn config(&self, of_xl: bool) -> Result<VaeConfig> {
        match self {
            Self::Folder(folder) => VaeConfig::from_folder(folder),
            Self::File(_) => inferred_config::vae(&self.weights()?, of_xl),
        }
    }

    /// Its config.json, where it has one.
    pub fn config_json(&self) -> Result<Option<Value>> {
        match self {
            Self::Folder(folder) => config_file::read_json(&folder.join("config.json")).map(Some),
            Self::File(_) => Ok(None),
        }
    }

    /// Its weights under our keys.
    pub fn weights(&self) -> Result<WeightSet> {
        let path = match self {
            Self::Folder(folder) => return Ok(WeightSet::open_folder(folder, None)?.respelled(spelling::vae)),
            Self::File(path) => path,
        };
        let weights = WeightSet::open_file(path)?;
        let is_ours = weights.contains("decoder.up_blocks.0.resnets.0.conv1.weight");
        let weights = if is_ours { weights.respelled(spelling::vae) } else { original_vae(&weights) };
        match weights.contains("decoder.conv_in.weight") {
            true => Ok(weights),
            false => Err(Error::file(path, "holds no VAE of Stable Diffusion (⟨vae⟩)")),
        }
    }
}
