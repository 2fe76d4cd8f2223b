//! A Stable Diffusion pipeline on disk: where its parts are, and each of them loaded.

use super::{AutoencoderKl, ClipTextConfig, ClipTextModel, UNet2DConditionModel, UNetConfig, VaeConfig};
use crate::adapters::Sites;
use crate::error::{Error, Result};
use crate::nn::Loader;
use crate::weights::{spelling, Placement, WeightSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A network and the registry of what it loaded.
pub struct Loaded<M> {
    /// The network.
    pub model: M,
    /// Where adapters attach.
    pub sites: Rc<Sites>,
}

/// A pipeline in the diffusers layout. Nothing but configurations is read before a part is loaded.
#[derive(Debug, Clone)]
pub struct PipelineFiles {
    root: PathBuf,
    variant: Option<String>,
}

impl PipelineFiles {
    /// The pipeline in the folder `root`; weights of `variant` ("fp16") where given.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::file(root, "no such model folder"));
        }
        for part in ["unet", "vae", "text_encoder", "scheduler"] {
            if !root.join(part).is_dir() {
                return Err(Error::file(
                    root,
                    format!("has no folder `{part}`; a Stable Diffusion model in the diffusers layout has"),
                ));
            }
        }
        Ok(Self { root: root.to_owned(), variant: variant.map(str::to_owned) })
    }

    /// The folder of the pipeline.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the tokenizer.
    pub fn tokenizer_folder(&self) -> Result<PathBuf> {
        Ok(self.root.join("tokenizer"))
    }

    /// The model's own scheduler configuration.
    pub fn scheduler_config_json(&self) -> Result<serde_json::Value> {
        let path = self.root.join("scheduler").join("scheduler_config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("not valid JSON: {e}")))
    }

    /// The UNet's configuration.
    pub fn unet_config(&self) -> Result<UNetConfig> {
        UNetConfig::from_folder(&self.root.join("unet"))
    }

    /// The VAE's configuration.
    pub fn vae_config(&self) -> Result<VaeConfig> {
        VaeConfig::from_folder(&self.root.join("vae"))
    }

    /// The text encoder's configuration.
    pub fn text_encoder_config(&self) -> Result<ClipTextConfig> {
        ClipTextConfig::from_folder(&self.root.join("text_encoder"))
    }

    fn weights(&self, part: &str) -> Result<WeightSet> {
        WeightSet::open_folder(&self.root.join(part), self.variant.as_deref())
    }

    /// Loads the UNet.
    pub fn load_unet(&self, placement: Placement) -> Result<Loaded<UNet2DConditionModel>> {
        let config = self.unet_config()?;
        load(self.weights("unet")?, placement, |loader| UNet2DConditionModel::load(loader, &config))
    }

    /// Loads the VAE.
    pub fn load_vae(&self, placement: Placement) -> Result<Loaded<AutoencoderKl>> {
        let config = self.vae_config()?;
        let weights = self.weights("vae")?.respelled(spelling::vae);
        load(weights, placement, |loader| AutoencoderKl::load(loader, &config))
    }

    /// Loads the text encoder.
    pub fn load_text_encoder(&self, placement: Placement) -> Result<Loaded<ClipTextModel>> {
        let config = self.text_encoder_config()?;
        let weights = self.weights("text_encoder")?.respelled(spelling::clip_text);
        load(weights, placement, |loader| ClipTextModel::load(loader, &config))
    }
}

fn load<M>(weights: WeightSet, placement: Placement, build: impl FnOnce(&Loader) -> Result<M>) -> Result<Loaded<M>> {
    let sites = Sites::new();
    let loader = Loader::new(weights, sites.clone(), placement);
    Ok(Loaded { model: build(&loader)?, sites })
}
