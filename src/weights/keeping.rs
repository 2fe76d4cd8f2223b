//! How the weights of a model are kept and computed with, where that is not as they lie in their files.

use super::storage::Storage;
use crate::error::Error;
use std::sync::Arc;

/// How weights are kept.
#[derive(Debug, Clone, Default)]
pub struct Keeping {
    /// Those of projections.
    pub storage: Storage,
    /// Paths of modules whose weights are in float32 where the others are in 16 bits.
    pub fp32_layers: Arc<[String]>,
    /// Attention and the VAE run by slices.
    pub slicing: bool,
}

impl From<Storage> for Keeping {
    fn from(storage: Storage) -> Self {
        Self { storage, ..Self::default() }
    }
}

impl Keeping {
    /// Of a model of several networks what is said of the network `part`, by paths in it.
    pub fn of_part(&self, part: &str) -> Self {
        let inside = |path: &String| Some(path.strip_prefix(part)?.strip_prefix('.')?.to_owned());
        Self { fp32_layers: self.fp32_layers.iter().filter_map(inside).collect(), ..self.clone() }
    }

    /// The refusal of a layer in float32 that no model has.
    pub fn no_layer(layer: &str) -> Error {
        Error::invalid(format!(
            "⟨fp32_layers⟩ {layer}: the model has no such layer; give paths as its files have them, of Stable Diffusion behind unet., \
             text_encoder. or vae."
        ))
    }

    /// Whether the module at `path` is in float32.
    pub fn is_in_fp32(&self, path: &str) -> bool {
        self.fp32_layers.iter().any(|layer| match path.strip_prefix(layer.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_in_float32_is_all_below_its_path_and_nothing_beside_it() {
        let fp32_layers = ["unet.mid_block.resnets.0", "text_encoder.head", "vae"].map(str::to_owned).into();
        let unet = Keeping { fp32_layers, ..Keeping::default() }.of_part("unet");
        assert!(unet.is_in_fp32("mid_block.resnets.0") && unet.is_in_fp32("mid_block.resnets.0.conv1"));
        assert!(!["mid_block.resnets.01", "mid_block", "head", "vae", ""].iter().any(|path| unet.is_in_fp32(path)));
    }
}
