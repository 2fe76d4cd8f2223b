//! The text encoders of a pipeline together: one, or the two of Stable Diffusion XL (arXiv 2307.01952, section 2).
//! Reference: diffusers `pipeline_stable_diffusion_xl.py` (`encode_prompt`).

use super::{ClipTextModel, Conditioning, Loaded};
use crate::adapters::{Part, Sites};
use crate::error::Result;
use tch::Tensor;

/// All of a pipeline's text encoders.
pub struct TextEncoders {
    networks: Vec<(Part, Loaded<ClipTextModel>)>,
    zeroes_absent: bool,
}

impl TextEncoders {
    /// These, in the order in which the UNet takes their embeddings. With `zeroes_absent` no text at all is embedded as zeros, else
    /// as the empty text.
    pub fn new(networks: Vec<(Part, Loaded<ClipTextModel>)>, zeroes_absent: bool) -> Self {
        Self { networks, zeroes_absent }
    }

    /// The networks.
    pub fn networks(&self) -> &[(Part, Loaded<ClipTextModel>)] {
        &self.networks
    }

    /// Their layers, by part.
    pub fn sites(&self) -> impl Iterator<Item = (Part, &Sites)> {
        self.networks.iter().map(|(part, network)| (*part, network.sites.as_ref()))
    }

    /// Whether no text at all is embedded as zeros.
    pub fn zeroes_absent(&self) -> bool {
        self.zeroes_absent
    }

    /// Refuses a text's token ids, of each network, that it has no embedding for.
    pub fn check_ids(&self, ids: &[Vec<i64>]) -> Result<()> {
        self.networks.iter().zip(ids).try_for_each(|((_, network), ids)| network.model.check_ids(ids))
    }

    /// The embeddings of texts, of each of which `rows` has the token ids for every network. One network gives its normed last
    /// hidden states; of two the last but one are put side by side, and the whole text is the second's.
    pub fn forward(&self, rows: &[Vec<Vec<i64>>], checkpointing: bool) -> Conditioning {
        let ids = |index: usize| {
            let of_network: Vec<Vec<i64>> = rows.iter().map(|row| row[index].clone()).collect();
            ClipTextModel::ids(&of_network)
        };
        if let [(_, only)] = &self.networks[..] {
            return only.model.forward(&ids(0), checkpointing).into();
        }
        let outputs: Vec<(Tensor, Option<Tensor>)> = self
            .networks
            .iter()
            .enumerate()
            .map(|(index, (_, network))| network.model.penultimate_and_pooled(&ids(index), checkpointing))
            .collect();
        let hidden: Vec<&Tensor> = outputs.iter().map(|(hidden, _)| hidden).collect();
        let context = Tensor::cat(&hidden, -1);
        let pooled = outputs.into_iter().rev().find_map(|(_, pooled)| pooled);
        Conditioning { context, pooled, time_ids: None }
    }
}
