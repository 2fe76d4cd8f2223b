//! Prefix tuning: keys and values of virtual tokens are trained for every block, themselves or through a projection
//! (arXiv 2101.00190). Reference: peft `tuners/prefix_tuning`.
//!
//! Shapes: n virtual tokens, l blocks, h heads of keys and values, d width of a head, w = h·d, e width of the encoder.

use super::prompt::{EncoderTensors, Projection, PromptEncoder, PromptMethod, PromptPlace, Table};
use super::prompt_config::{PromptConfig, PromptSizes};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub(super) const METHOD: PromptMethod =
    PromptMethod { peft_type: "PREFIX_TUNING", name: "prefix tuning", place: PromptPlace::KeyValues, make };

/// Fields of `PrefixTuningConfig`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixTuningOptions {
    /// Whether the prefix is projected from embeddings.
    pub prefix_projection: bool,
    /// Width between the two projections; as wide as a virtual token where not given.
    pub encoder_hidden_size: Option<i64>,
    /// `zero` where PEFT was to start without an effect (in files of PEFT).
    pub init_weights: Option<String>,
}

fn make(config: &PromptConfig, tensors: &mut EncoderTensors) -> Result<Box<dyn PromptEncoder>> {
    let [rows, width] = shape(config)?;
    let PrefixTuningOptions { prefix_projection, encoder_hidden_size, .. } = config.options()?;
    if !prefix_projection {
        return Ok(Box::new(Table(tensors.table(rows, width)?)));
    }
    let token_dim = config.sizes()?.token_dim;
    let hidden = encoder_hidden_size.unwrap_or(token_dim);
    Ok(Box::new(ProjectedPrefix {
        embedding: tensors.table(rows, token_dim)?,
        inner: tensors.projection("transform.0", token_dim, hidden)?,
        outer: tensors.projection("transform.2", hidden, width)?,
    }))
}

/// The shape of `prompt_embeddings`: `[n, 2·l·w]`.
pub(super) fn shape(config: &PromptConfig) -> Result<[i64; 2]> {
    let PromptSizes { token_dim, num_layers, .. } = config.sizes()?;
    Ok([config.num_virtual_tokens, 2 * num_layers * token_dim])
}

/// A prefix that two projections make of embeddings.
struct ProjectedPrefix {
    /// `[n, w]`
    embedding: Tensor,
    inner: Projection,
    outer: Projection,
}

impl PromptEncoder for ProjectedPrefix {
    fn forward(&self, _training: bool) -> Tensor {
        self.outer.forward(&self.inner.forward(&self.embedding).tanh())
    }
}

/// Keys and values `[1, h, n, d]` of each block from `prompt_embeddings` `[n, 2·l·w]`.
///
/// PEFT sets twice as many tensors aside for a block of an encoder-decoder and begins anew when they are used up: block
/// i has the pair 2i mod l of l.
pub(super) fn key_values(rows: &Tensor, config: &PromptConfig) -> Result<Vec<(Tensor, Tensor)>> {
    let PromptSizes { token_dim, num_transformer_submodules, num_attention_heads: heads, num_layers } =
        config.sizes()?;
    let split = rows.view([config.num_virtual_tokens, 2 * num_layers, heads, token_dim / heads]); // [n, 2l, h, d]
    let split = split.permute([1, 2, 0, 3]).unsqueeze(1); // [2l, 1, h, n, d]
    let pair = |block: i64| {
        let first = 2 * (block * num_transformer_submodules % num_layers);
        (split.get(first), split.get(first + 1))
    };
    Ok((0..num_layers).map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tch::{Device, Kind};

    fn blocks(submodules: i64) -> Vec<[f64; 2]> {
        let config = PromptConfig::from_json(&json!({ "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2,
            "token_dim": 6, "num_attention_heads": 3, "num_layers": 4, "num_transformer_submodules": submodules }))
        .unwrap();
        // The number of a row's tensor is in all of its places.
        let row = Tensor::arange(8, (Kind::Float, Device::Cpu)).repeat_interleave_self_int(6, 0, None);
        let pairs = key_values(&row.repeat([2, 1]), &config).unwrap();
        pairs.iter().map(|(k, v)| [k, v].map(|xs| xs.mean(Kind::Float).double_value(&[]))).collect()
    }

    #[test]
    fn a_decoders_blocks_have_their_pairs_in_order() {
        assert_eq!(blocks(1), [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]);
    }

    #[test]
    fn an_encoder_decoders_blocks_share_every_other_pair() {
        assert_eq!(blocks(2), [[0.0, 1.0], [4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]);
    }

    #[test]
    fn keys_are_split_into_heads() {
        let config = PromptConfig::from_json(&json!({ "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2,
            "token_dim": 6, "num_attention_heads": 3, "num_layers": 1, "num_transformer_submodules": 1 }))
        .unwrap();
        let rows = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([2, 12]);
        let pairs = key_values(&rows, &config).unwrap();
        assert_eq!(pairs[0].0.size(), [1, 3, 2, 2]);
        // Head 2 of the second virtual token's values.
        assert_eq!(Vec::<f64>::try_from(pairs[0].1.get(0).get(2).get(1)).unwrap(), [22.0, 23.0]);
    }
}
