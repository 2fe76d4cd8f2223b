//! BERT's transformer block: each part's output is added to its input and normed after.
//!
//! Shapes: b batch, t length, d width.

use super::bert_config::BertConfig;
use super::blocks::Block;
use crate::error::Result;
use crate::nn::{
    attend_heads, split_heads, Activation, Attending, AttentionMask, Bias, BlockCache, Dropout, LayerNorm, Linear,
    Loader,
};
use tch::Tensor;

/// One block.
pub(super) struct BertLayer {
    attention: Attention,
    attention_output: Output,
    intermediate: Linear,
    activation: Activation,
    output: Output,
}

impl BertLayer {
    /// Loads a block.
    pub(super) fn load(loader: &Loader, config: &BertConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            attention: Attention::load(&(loader / "attention.self"), config)?,
            attention_output: Output::load(&(loader / "attention.output"), width, config)?,
            intermediate: Linear::load(&(loader / "intermediate.dense"), width, inner, Bias::Yes)?,
            activation: config.hidden_act,
            output: Output::load(&(loader / "output"), inner, config)?,
        })
    }
}

impl Block for BertLayer {
    type Shared = AttentionMask;

    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let xs = self.attention_output.forward(&self.attention.forward(xs, mask, cache), xs);
        self.output.forward(&self.activation.forward(&self.intermediate.forward(&xs)), &xs)
    }
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dropout: Dropout,
    heads: i64,
    scale: f64,
}

impl Attention {
    fn load(loader: &Loader, config: &BertConfig) -> Result<Self> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let linear = |name: &str| Linear::load(&(loader / name), width, width, Bias::Yes);
        Ok(Self {
            query: linear("query")?,
            key: linear("key")?,
            value: linear("value")?,
            dropout: Dropout::new(loader, config.attention_probs_dropout_prob),
            heads,
            scale: ((width / heads) as f64).powf(-0.5),
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor, mask: &AttentionMask, cache: Option<&mut BlockCache>) -> Tensor {
        let projected = Linear::forward_all([&self.query, &self.key, &self.value], xs);
        let [q, mut k, mut v] = projected.map(|xs| split_heads(&xs, self.heads));
        if let Some(cache) = cache {
            (k, v) = cache.text.extend(k, v);
        }
        let attending = Attending { mask, scale: self.scale, dropout: self.dropout.rate() };
        attend_heads(&q, &k, &v, attending)
    }
}

/// A projection that is added to what went in, and the norm after it.
struct Output {
    dense: Linear,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

impl Output {
    fn load(loader: &Loader, inputs: i64, config: &BertConfig) -> Result<Self> {
        Ok(Self {
            dense: Linear::load(&(loader / "dense"), inputs, config.hidden_size, Bias::Yes)?,
            layer_norm: LayerNorm::load(&(loader / "LayerNorm"), config.hidden_size, config.layer_norm_eps)?,
            dropout: Dropout::new(loader, config.hidden_dropout_prob),
        })
    }

    /// `[b, t, inputs]` and `[b, t, d]` to `[b, t, d]`
    fn forward(&self, hidden: &Tensor, xs: &Tensor) -> Tensor {
        self.layer_norm.forward(&(self.dropout.forward(self.dense.forward(hidden)) + xs))
    }
}
