//! T5's transformer block: attention to the text, in the decoder also to what was read, and a feed-forward.
//!
//! Shapes: b batch, t length, s length of what was read, d width.

use super::blocks::{Block, Shared};
use super::t5_config::{FeedForward, T5Config};
use crate::error::{Error, Result};
use crate::nn::{
    attend_heads, split_heads, Activation, Attending, AttentionMask, Bias, BlockCache, Dropout, Linear, Loader, RmsNorm,
};
use tch::{Kind, Tensor};

/// What a block sees.
pub(super) struct AttentionContext {
    /// Of the text itself, with the position bias.
    pub(super) text: AttentionMask,
    /// What was read `[b, s, d]`, and where it has tokens.
    pub(super) encoded: Option<(Tensor, AttentionMask)>,
}

impl Clone for AttentionContext {
    fn clone(&self) -> Self {
        let encoded = self.encoded.as_ref().map(|(hidden, mask)| (hidden.shallow_clone(), mask.clone()));
        Self { text: self.text.clone(), encoded }
    }
}

impl Shared for AttentionContext {
    fn differentiable(&self) -> Vec<Tensor> {
        let bias = match &self.text {
            AttentionMask::Tensor(bias) => Some(bias),
            _ => None,
        };
        bias.into_iter().chain(self.encoded.iter().map(|(hidden, _)| hidden)).map(Tensor::shallow_clone).collect()
    }

    fn with(&self, tensors: &[Tensor]) -> Self {
        let (mut context, mut tensors) = (self.clone(), tensors.iter().map(Tensor::shallow_clone));
        if let (AttentionMask::Tensor(bias), Some(tensor)) = (&mut context.text, tensors.next()) {
            *bias = tensor;
        }
        if let (Some((hidden, _)), Some(tensor)) = (&mut context.encoded, tensors.next()) {
            *hidden = tensor;
        }
        context
    }
}

/// One block of the encoder or the decoder.
pub(super) struct T5Block {
    self_attention: Normed<Attention>,
    cross_attention: Option<Normed<Attention>>,
    feed_forward: Normed<Dense>,
}

impl T5Block {
    /// Loads a block; `is_decoder` tells whether it attends to what was read.
    pub(super) fn load(loader: &Loader, config: &T5Config, is_decoder: bool) -> Result<Self> {
        let layer = loader / "layer";
        let last = &layer / if is_decoder { 2 } else { 1 };
        Ok(Self {
            self_attention: Normed::load(&(&layer / 0), "SelfAttention", config, Attention::load)?,
            cross_attention: match is_decoder {
                true => Some(Normed::load(&(&layer / 1), "EncDecAttention", config, Attention::load)?),
                false => None,
            },
            feed_forward: Normed::load(&last, "DenseReluDense", config, Dense::load)?,
        })
    }
}

impl Block for T5Block {
    type Shared = AttentionContext;

    fn forward(&self, xs: &Tensor, context: &AttentionContext, mut cache: Option<&mut BlockCache>) -> Tensor {
        let mut xs = self.self_attention.residual(xs, |attention, xs| {
            let (q, mut k, mut v) = (attention.queries(xs), attention.keys(xs), attention.values(xs));
            if let Some(cache) = cache.as_deref_mut() {
                (k, v) = cache.text.extend(k, v);
            }
            attention.attend(&q, &k, &v, &context.text)
        });
        if let (Some(cross_attention), Some((encoded, mask))) = (&self.cross_attention, &context.encoded) {
            xs = cross_attention.residual(&xs, |attention, xs| {
                let q = attention.queries(xs);
                let read = || (attention.keys(encoded), attention.values(encoded));
                let (k, v) = match cache {
                    Some(cache) => cache.encoded.once(read),
                    None => read(),
                };
                attention.attend(&q, &k, &v, mask)
            });
        }
        self.feed_forward.residual(&xs, |dense, xs| dense.forward(xs))
    }
}

/// A part with the norm before it; its output is added to its input.
struct Normed<Part> {
    part: Part,
    layer_norm: RmsNorm,
    dropout: Dropout,
}

impl<Part> Normed<Part> {
    fn load(
        loader: &Loader,
        name: &str,
        config: &T5Config,
        load: impl FnOnce(&Loader, &T5Config) -> Result<Part>,
    ) -> Result<Self> {
        Ok(Self {
            part: load(&(loader / name), config)?,
            layer_norm: RmsNorm::load(&(loader / "layer_norm"), config.d_model, config.layer_norm_epsilon)?,
            dropout: Dropout::new(loader, config.dropout_rate),
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn residual(&self, xs: &Tensor, compute: impl FnOnce(&Part, &Tensor) -> Tensor) -> Tensor {
        finite(xs + self.dropout.forward(compute(&self.part, &self.layer_norm.forward(xs))))
    }
}

/// float16 holds no more than 65504, which T5 was not trained to stay below.
fn finite(xs: Tensor) -> Tensor {
    if xs.kind() != Kind::Half {
        return xs;
    }
    let limit: Tensor = 65504.0 - xs.isinf().any().to_kind(Kind::Half) * 1000.0;
    xs.clamp_tensor(Some(&limit.negative()), Some(&limit))
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    dropout: Dropout,
    heads: i64,
}

impl Attention {
    fn load(loader: &Loader, config: &T5Config) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let linear = |name: &str| Linear::load(&(loader / name), width, inner, Bias::No);
        Ok(Self {
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            o: Linear::load(&(loader / "o"), inner, width, Bias::No)?,
            dropout: Dropout::new(loader, config.dropout_rate),
            heads: config.num_heads,
        })
    }

    fn queries(&self, xs: &Tensor) -> Tensor {
        split_heads(&self.q.forward(xs), self.heads)
    }

    fn keys(&self, xs: &Tensor) -> Tensor {
        split_heads(&self.k.forward(xs), self.heads)
    }

    fn values(&self, xs: &Tensor) -> Tensor {
        split_heads(&self.v.forward(xs), self.heads)
    }

    /// The scores are not scaled: the weights were drawn so small that they need not be. Gives `[b, t, d]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask) -> Tensor {
        self.o.forward(&attend_heads(q, k, v, Attending { mask, scale: 1.0, dropout: self.dropout.rate() }))
    }
}

struct Dense {
    /// `wi`, or `wi_0`, whose activation `wi_1` multiplies.
    wi: Linear,
    wi_1: Option<Linear>,
    wo: Linear,
    dropout: Dropout,
    activation: Activation,
    output_kind: Kind,
}

impl Dense {
    fn load(loader: &Loader, config: &T5Config) -> Result<Self> {
        let (width, inner) = (config.d_model, config.d_ff);
        let FeedForward { activation, gated } = config.feed_forward().map_err(Error::invalid)?;
        // In float16 its output overflows.
        let output_kind = match loader.placement().kind {
            Kind::Half => Kind::Float,
            kind => kind,
        };
        Ok(Self {
            wi: Linear::load(&(loader / if gated { "wi_0" } else { "wi" }), width, inner, Bias::No)?,
            wi_1: match gated {
                true => Some(Linear::load(&(loader / "wi_1"), width, inner, Bias::No)?),
                false => None,
            },
            wo: Linear::load(&(loader / "wo").in_kind(output_kind), inner, width, Bias::No)?,
            dropout: Dropout::new(loader, config.dropout_rate),
            activation,
            output_kind,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        let hidden = match &self.wi_1 {
            Some(wi_1) => {
                let [activated, gate] = Linear::forward_all([&self.wi, wi_1], xs);
                self.activation.forward(&activated) * gate
            }
            None => self.activation.forward(&self.wi.forward(xs)),
        };
        self.wo.forward(&self.dropout.forward(hidden).to_kind(self.output_kind))
    }
}
