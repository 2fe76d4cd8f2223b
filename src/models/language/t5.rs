//! T5, mT5, T0 and FLAN-T5: an encoder and a decoder whose attention knows positions by learned biases alone.
//! Papers: arXiv 1910.10683, 2010.11934, 2110.08207. Reference: transformers `modeling_t5.py`, `modeling_mt5.py`.
//!
//! Shapes: b batch, t length of what is written, s of what is read, d width.

use super::architectures::Build;
use super::blocks;
use super::interface::{DecoderInputs, Encoded, EncoderDecoder, LanguageModel, Tokens, TransformerShape};
use super::outline::{
    AttentionOutline, BodyOutline, FeedForwardOutline, HeadOutline, MaskOutline, NormOutline, Outline, PartOutline,
    Projection, StackOutline,
};
use super::t5_block::{AttentionContext, T5Block};
use super::t5_config::{FeedForward, T5Config};
use crate::error::Result;
use crate::nn::{
    AttentionMask, Dropout, Embedding, KeyValueCache, Linear, Loader, RelativePositionBias, RelativePositions, RmsNorm,
};
use serde_json::Value;
use std::rc::Rc;
use tch::Tensor;

/// Loads a T5.
pub(super) fn load_t5(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, T5Config::t5(build.config).map_err(|e| build.refuse(e))?)
}

/// Loads an mT5.
pub(super) fn load_mt5(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, T5Config::mt5(build.config).map_err(|e| build.refuse(e))?)
}

fn load(loader: &Loader, config: T5Config) -> Result<LanguageModel> {
    Ok(LanguageModel::EncoderDecoder(Box::new(T5::load(loader, config)?)))
}

/// What the T5 of a configuration is made of.
pub(super) fn outline_t5(config: &Value) -> std::result::Result<Outline, String> {
    outline(&T5Config::t5(config)?)
}

/// What the mT5 of a configuration is made of.
pub(super) fn outline_mt5(config: &Value) -> std::result::Result<Outline, String> {
    outline(&T5Config::mt5(config)?)
}

fn outline(config: &T5Config) -> std::result::Result<Outline, String> {
    let heads = config.num_heads;
    let tables = [false, true].map(|is_decoder| {
        let stack = if is_decoder { "decoder" } else { "encoder" };
        let path = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias");
        (path, config.relative_attention_num_buckets, heads)
    });
    let tokens = ("shared".to_owned(), config.vocab_size, config.d_model);
    Ok(Outline {
        tables: std::iter::once(tokens).chain(tables).collect(),
        stacks: vec![Rc::new(stack_outline(config, false)?), Rc::new(stack_outline(config, true)?)],
        head: HeadOutline::Tokens { path: "lm_head".into(), tied: config.ties_embeddings() },
        longest: None,
        made_for: None,
    })
}

fn stack_outline(config: &T5Config, is_decoder: bool) -> std::result::Result<StackOutline, String> {
    let (width, heads) = (config.d_model, config.num_heads);
    let stack = if is_decoder { "decoder" } else { "encoder" };
    let attention = |name: &str, reads_encoder: bool| {
        let projection = |part: &str, outputs: i64| Projection::new(&format!("{name}.{part}"), outputs, false);
        AttentionOutline {
            inputs: ["q", "k", "v"].map(|part| projection(part, heads * config.d_kv)).into(),
            output: projection("o", width),
            reads_encoder,
            heads,
            groups: heads,
            head_width: config.d_kv,
            dropout: config.dropout_rate,
            mask: if reads_encoder { MaskOutline::Padding } else { MaskOutline::Bias },
            rotary: false,
        }
    };
    let last = if is_decoder { 2 } else { 1 };
    let FeedForward { activation, gated } = config.feed_forward()?;
    let dense =
        |name: &str, outputs: i64| Projection::new(&format!("layer.{last}.DenseReluDense.{name}"), outputs, false);
    let feed_forward = FeedForwardOutline {
        up: dense(if gated { "wi_0" } else { "wi" }, config.d_ff),
        gate: gated.then(|| dense("wi_1", config.d_ff)),
        down: dense("wo", width),
        activation,
        dropout: config.dropout_rate,
    };
    let part = |layer: i64, body: BodyOutline| PartOutline {
        norm: format!("layer.{layer}.layer_norm"),
        dropout: config.dropout_rate,
        body,
    };
    let mut parts = vec![part(0, BodyOutline::Attention(attention("layer.0.SelfAttention", false)))];
    if is_decoder {
        parts.push(part(1, BodyOutline::Attention(attention("layer.1.EncDecAttention", true))));
    }
    parts.push(part(last, BodyOutline::FeedForward(feed_forward)));
    Ok(StackOutline {
        path: format!("{stack}.block"),
        embeddings: format!("{stack}.embed_tokens"),
        blocks: if is_decoder { config.decoder_layers() } else { config.num_layers },
        width,
        norm: NormOutline::RootMeanSquare,
        norms_after: false,
        parts,
        norms_before_blocks: Vec::new(),
        norms_behind_blocks: vec![format!("{stack}.final_layer_norm")],
        projections: None,
        dropout: config.dropout_rate,
    })
}

struct T5 {
    encoder: Stack,
    decoder: Stack,
    lm_head: Linear,
    config: T5Config,
}

impl T5 {
    fn load(loader: &Loader, config: T5Config) -> Result<Self> {
        let shared = Embedding::load(&(loader / "shared"), config.vocab_size, config.d_model)?;
        Ok(Self {
            encoder: Stack::load(&(loader / "encoder"), &config, &shared, false)?,
            decoder: Stack::load(&(loader / "decoder"), &config, &shared, true)?,
            lm_head: Linear::load_output(&(loader / "lm_head"), config.d_model, config.vocab_size, Some(&shared))?,
            config,
        })
    }
}

impl EncoderDecoder for T5 {
    fn shape(&self) -> TransformerShape {
        TransformerShape {
            blocks: self.config.decoder_layers(),
            heads: self.config.num_heads,
            key_value_heads: self.config.num_heads,
            head_width: self.config.d_kv,
            width: self.config.d_model,
            vocabulary: self.config.vocab_size,
            longest: None,
        }
    }

    fn encoder_blocks(&self) -> i64 {
        self.config.num_layers
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.encoder.embed_tokens.forward(ids)
    }

    fn encode(&self, tokens: Tokens, attention_mask: Option<&Tensor>, checkpointing: bool) -> Tensor {
        let bias = self.encoder.bias.forward(tokens.length(), 0, tokens.device());
        let mask = AttentionMask::of_tokens(attention_mask).with_bias(&bias, tokens.length());
        let context = AttentionContext { text: mask, encoded: None };
        self.encoder.forward(tokens.embedded(&self.encoder.embed_tokens), &context, None, checkpointing)
    }

    fn decode(&self, inputs: DecoderInputs, encoded: Encoded) -> Tensor {
        let tokens = inputs.tokens;
        let bias = self.decoder.bias.forward(tokens.length(), inputs.past(), tokens.device());
        let context = AttentionContext {
            text: inputs.causal_mask(None).with_bias(&bias, tokens.length()),
            encoded: Some((encoded.hidden.shallow_clone(), AttentionMask::of_tokens(encoded.attention_mask))),
        };
        self.decoder.forward(tokens.embedded(&self.decoder.embed_tokens), &context, inputs.cache, inputs.checkpointing)
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        match self.config.output_scale() {
            Some(scale) => self.lm_head.forward(&(hidden * scale)),
            None => self.lm_head.forward(hidden),
        }
    }

    fn decoder_start_token_id(&self) -> i64 {
        self.config.start_token()
    }
}

/// The encoder, or the decoder.
struct Stack {
    /// The one table of the model.
    embed_tokens: Embedding,
    /// Kept under the first block, for all of them.
    bias: RelativePositionBias,
    block: Vec<Rc<T5Block>>,
    final_layer_norm: RmsNorm,
    dropout: Dropout,
}

impl Stack {
    fn load(loader: &Loader, config: &T5Config, shared: &Embedding, is_decoder: bool) -> Result<Self> {
        let blocks = loader / "block";
        let positions = RelativePositions {
            buckets: config.relative_attention_num_buckets,
            max_distance: config.relative_attention_max_distance,
            bidirectional: !is_decoder,
        };
        let layers = if is_decoder { config.decoder_layers() } else { config.num_layers };
        Ok(Self {
            embed_tokens: Embedding::tied(&(loader / "embed_tokens"), shared)?,
            bias: RelativePositionBias::load(
                &(&blocks / "0.layer.0.SelfAttention.relative_attention_bias"),
                config.num_heads,
                positions,
            )?,
            block: (0..layers)
                .map(|i| T5Block::load(&(&blocks / i), config, is_decoder).map(Rc::new))
                .collect::<Result<_>>()?,
            final_layer_norm: RmsNorm::load(&(loader / "final_layer_norm"), config.d_model, config.layer_norm_epsilon)?,
            dropout: Dropout::new(loader, config.dropout_rate),
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(
        &self,
        xs: Tensor,
        context: &AttentionContext,
        cache: Option<&mut KeyValueCache>,
        checkpointing: bool,
    ) -> Tensor {
        let xs = blocks::run(&self.block, self.dropout.forward(xs), context, cache, checkpointing);
        self.dropout.forward(self.final_layer_norm.forward(&xs))
    }
}
