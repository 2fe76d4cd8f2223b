//! A pipeline in the diffusers layout, written network by network.

use lorabooth::error::{Error, Result};
use lorabooth::models::stable_diffusion::PipelineFiles;
use lorabooth::weights::{tensor_file, Placement, WeightSet};
use lorabooth::whole_file::write_whole;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What a pipeline holds beside weights.
const DESCRIPTIONS: [&str; 8] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
];

/// A network of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    Unet,
    Vae,
    TextEncoder,
}

impl Network {
    pub const ALL: [Network; 3] = [Network::Unet, Network::Vae, Network::TextEncoder];

    /// Its folder, and the prefix of its parameters' names in training.
    pub fn folder(self) -> &'static str {
        match self {
            Network::Unet => "unet",
            Network::Vae => "vae",
            Network::TextEncoder => "text_encoder",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Network::Unet | Network::Vae => "diffusion_pytorch_model.safetensors",
            Network::TextEncoder => "model.safetensors",
        }
    }

    fn weight_set(self, files: &PipelineFiles) -> Result<WeightSet> {
        match self {
            Network::Unet => files.unet_weights(),
            Network::Vae => files.vae_weights(),
            Network::TextEncoder => files.text_encoder_weights(lorabooth::adapters::Part::TextEncoder),
        }
    }

    /// Its weights by key, as they are in the pipeline.
    pub fn read(self, files: &PipelineFiles) -> Result<BTreeMap<String, Tensor>> {
        let weights = self.weight_set(files)?;
        let load = |key: &str| {
            let shape = weights.shape(key).unwrap_or_default();
            let placement = Placement { device: Device::Cpu, kind: Kind::Float };
            Ok((key.to_owned(), weights.load(key, &shape, placement)?))
        };
        weights.keys().map(load).collect()
    }
}

/// Writes a network's weights into the pipeline `folder`, in `kind`.
pub fn write_network(folder: &Path, network: Network, weights: &BTreeMap<String, Tensor>, kind: Kind) -> Result<()> {
    let spelled = |key: &String| match network {
        // What the Stable Diffusion repositories on the hub have, and every version of transformers reads.
        Network::TextEncoder => format!("text_model.{key}"),
        Network::Unet | Network::Vae => key.clone(),
    };
    let tensors = weights.iter().map(|(key, weight)| (spelled(key), weight.detach().to_kind(kind))).collect();
    write_weights(&folder.join(network.folder()).join(network.file()), &tensors)
}

/// Writes `weights` as transformers and diffusers read them.
pub fn write_weights(file: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
    tensor_file::save(file, weights, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}

/// Copies all of a pipeline but its weights.
pub fn copy_descriptions(from: &Path, to: &Path) -> Result<()> {
    copy_files(&DESCRIPTIONS, from, to)
}

/// Copies the files called `names` from one folder to another.
pub fn copy_files(names: &[&str], from: &Path, to: &Path) -> Result<()> {
    for name in names {
        let source = from.join(name);
        let bytes = std::fs::read(&source).map_err(|error| Error::io("read", &source, error))?;
        write_whole(&to.join(name), &bytes)?;
    }
    Ok(())
}
