//! LLaMA, Mistral and Qwen2: decoders with rotary positions, grouped keys and values, and a gated feed-forward.
//! Papers: arXiv 2302.13971, 2310.06825, 2407.10671. Reference: transformers `modeling_llama.py`,
//! `modeling_mistral.py`, `modeling_qwen2.py`.
//!
//! Shapes: b batch, t length, d width, h heads, g heads of keys and values, w width of a head.

use super::architectures::Build;
use super::blocks::{self, Block, Shared};
use super::interface::{CausalLm, DecoderInputs, LanguageModel, TransformerShape};
use super::llama_config::{Family, LlamaConfig};
use super::outline::{HeadOutline, Outline};
use super::rope::Rope;
use crate::error::Result;
use crate::nn::{
    attend_heads, split_heads, Activation, Attending, AttentionMask, Bias, BlockCache, Dropout, Embedding, Linear,
    Loader, RmsNorm, RotaryAngles,
};
use serde_json::Value;
use std::rc::Rc;
use tch::Tensor;

/// Loads a LLaMA.
pub(super) fn load_llama(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Llama)
}

/// Loads a Mistral.
pub(super) fn load_mistral(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Mistral)
}

/// Loads a Qwen2.
pub(super) fn load_qwen2(loader: &Loader, build: &Build) -> Result<LanguageModel> {
    load(loader, build, Family::Qwen2)
}

fn load(loader: &Loader, build: &Build, family: Family) -> Result<LanguageModel> {
    let config = LlamaConfig::new(build.config, family).map_err(|e| build.refuse(e))?;
    let rope = config.rope(loader.placement().device).map_err(|e| build.refuse(e))?;
    Ok(build.decoder(Llama::load(loader, config, rope, build)?))
}

/// What the model of a configuration is made of.
pub(super) fn outline(config: &Value, family: Family) -> std::result::Result<Outline, String> {
    let config = LlamaConfig::new(config, family)?;
    Ok(Outline {
        table: "model.embed_tokens".into(),
        readers: Vec::new(),
        embedding_width: config.hidden_size,
        shape: config.shape(),
        encoder_blocks: None,
        head: HeadOutline::Tokens { path: "lm_head".into(), tied: config.tie_word_embeddings },
        made_for: Some(config.max_position_embeddings),
    })
}

struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Rc<DecoderLayer>>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: Rope,
    config: LlamaConfig,
}

impl Llama {
    fn load(loader: &Loader, config: LlamaConfig, rope: Rope, build: &Build) -> Result<Self> {
        let model = loader / "model";
        let layers = &model / "layers";
        let width = config.hidden_size;
        let embed_tokens = Embedding::load(&(&model / "embed_tokens"), config.vocab_size, width)?;
        let tied = config.tie_word_embeddings.then_some(&embed_tokens);
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(|i| DecoderLayer::load(&(&layers / i), &config, i).map(Rc::new))
                .collect::<Result<_>>()?,
            norm: RmsNorm::load(&(&model / "norm"), width, config.rms_norm_eps)?,
            lm_head: build.head(loader, width, config.vocab_size, tied)?,
            embed_tokens,
            rope,
            config,
        })
    }
}

impl CausalLm for Llama {
    fn shape(&self) -> TransformerShape {
        self.config.shape()
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.embed_tokens.forward(ids)
    }

    fn forward(&self, inputs: DecoderInputs) -> Tensor {
        let xs = inputs.tokens.embedded(&self.embed_tokens);
        let window = self.config.window();
        let shared = AttentionContext {
            angles: self.rope.angles(&inputs.positions(), xs.kind()),
            all: inputs.causal_mask(None),
            window: window.map(|window| inputs.causal_mask(Some(window))),
        };
        let xs = blocks::run(&self.layers, xs, &shared, inputs.cache, inputs.checkpointing);
        self.norm.forward(&xs)
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        self.lm_head.forward(hidden)
    }
}

/// Where tokens are, and what they see.
#[derive(Clone)]
struct AttentionContext {
    angles: RotaryAngles,
    all: AttentionMask,
    window: Option<AttentionMask>,
}

impl Shared for AttentionContext {}

struct DecoderLayer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

impl DecoderLayer {
    fn load(loader: &Loader, config: &LlamaConfig, index: i64) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(&(loader / name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            self_attn: Attention::load(&(loader / "self_attn"), config, index)?,
            mlp: Mlp::load(&(loader / "mlp"), config)?,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        })
    }
}

impl Block for DecoderLayer {
    type Shared = AttentionContext;

    fn forward(&self, xs: &Tensor, context: &AttentionContext, cache: Option<&mut BlockCache>) -> Tensor {
        let xs = xs + self.self_attn.forward(&self.input_layernorm.forward(xs), context, cache);
        &xs + self.mlp.forward(&self.post_attention_layernorm.forward(&xs))
    }
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    dropout: Dropout,
    heads: i64,
    key_value_heads: i64,
    scale: f64,
    has_window: bool,
}

impl Attention {
    fn load(loader: &Loader, config: &LlamaConfig, index: i64) -> Result<Self> {
        let (width, head_width) = (config.hidden_size, config.head_width());
        let inner = config.num_attention_heads * head_width;
        let grouped = config.key_value_heads() * head_width;
        let (bias, output_bias) = config.attention_biases();
        let linear = |name: &str, outputs: i64| Linear::load(&(loader / name), width, outputs, bias);
        Ok(Self {
            q_proj: linear("q_proj", inner)?,
            k_proj: linear("k_proj", grouped)?,
            v_proj: linear("v_proj", grouped)?,
            o_proj: Linear::load(&(loader / "o_proj"), inner, width, output_bias)?,
            dropout: Dropout::new(loader, config.attention_dropout),
            heads: config.num_attention_heads,
            key_value_heads: config.key_value_heads(),
            scale: (head_width as f64).powf(-0.5),
            has_window: config.has_window(index),
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor, context: &AttentionContext, cache: Option<&mut BlockCache>) -> Tensor {
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], xs);
        let q = context.angles.rotate(&split_heads(&q, self.heads)); // [b, h, t, w]
        let mut k = context.angles.rotate(&split_heads(&k, self.key_value_heads)); // [b, g, t, w]
        let mut v = split_heads(&v, self.key_value_heads);
        if let Some(cache) = cache {
            (k, v) = cache.text.extend(k, v);
        }
        let mask = context.window.as_ref().filter(|_| self.has_window).unwrap_or(&context.all);
        let attending = Attending { mask, scale: self.scale, dropout: self.dropout.rate() };
        self.o_proj.forward(&attend_heads(&q, &k, &v, attending))
    }
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    fn load(loader: &Loader, config: &LlamaConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let bias = if config.mlp_bias { Bias::Yes } else { Bias::No };
        Ok(Self {
            gate_proj: Linear::load(&(loader / "gate_proj"), width, inner, bias)?,
            up_proj: Linear::load(&(loader / "up_proj"), width, inner, bias)?,
            down_proj: Linear::load(&(loader / "down_proj"), inner, width, bias)?,
            activation: config.hidden_act,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], xs);
        self.down_proj.forward(&(self.activation.forward(&gate) * up))
    }
}
