//! T5, mT5, T0 and FLAN-T5: an encoder and a decoder whose attention knows positions by learned biases alone.
//! Papers: arXiv 1910.10683, 2010.11934, 2110.08207. Reference: transformers `modeling_t5.py`, `modeling_mt5.py`.
//!
//! Shapes: b batch, t length of what is written, s of what is read, d width.

use super::architectures::Build;
use super::blocks;
use super::interface::{DecoderInputs, Encoded, EncoderDecoder, LanguageModel, Tokens, TransformerShape};
use super::outline::{HeadOutline, Outline};
use super::t5_block::{AttentionContext, T5Block};
use super::t5_config::T5Config;
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
    Ok(outline(&T5Config::t5(config)?))
}

/// What the mT5 of a configuration is made of.
pub(super) fn outline_mt5(config: &Value) -> std::result::Result<Outline, String> {
    Ok(outline(&T5Config::mt5(config)?))
}

fn outline(config: &T5Config) -> Outline {
    Outline {
        table: "shared".into(),
        readers: ["encoder.embed_tokens", "decoder.embed_tokens"].map(str::to_owned).into(),
        embedding_width: config.d_model,
        shape: config.shape(),
        encoder_blocks: Some(config.num_layers),
        head: HeadOutline::Tokens { path: "lm_head".into(), tied: config.ties_embeddings() },
        made_for: None,
    }
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
        self.config.shape()
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
