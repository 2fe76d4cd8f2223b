//! CLIP's text model: a causal transformer whose hidden states condition the UNet.
//! Paper: arXiv 2103.00020. Reference: transformers `modeling_clip.py` (`CLIPTextModel`, `CLIPTextModelWithProjection`).
//!
//! Shapes: b batch, t text length, d width, p width of the projection.

use super::config_file::{self, check_sizes, MAX_LAYERS};
use crate::error::{Error, Result};
use crate::libtorch::checkpoint::checkpoint;
use crate::libtorch::upload::upload;
use crate::nn::{attend, Activation, Bias, Embedding, LayerNorm, Linear, Loader};
use serde::Deserialize;
use std::path::Path;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// `text_encoder/config.json`; absent fields are transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Rows of the token table.
    pub vocab_size: i64,
    /// Width.
    pub hidden_size: i64,
    /// Width inside the feed-forward.
    pub intermediate_size: i64,
    /// Transformer layers.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Longest text in tokens.
    pub max_position_embeddings: i64,
    /// Nonlinearity of the feed-forward.
    pub hidden_act: Activation,
    /// The norms' epsilon.
    pub layer_norm_eps: f64,
    /// The end token, at which the whole text is read. 2 stands for the greatest id: OpenAI's configurations name a token that is
    /// not the end.
    pub eos_token_id: i64,
    /// Width of the projection.
    pub projection_dim: i64,
    /// Whether it is a CLIPTextModelWithProjection, whose projection of a whole text is used.
    #[serde(skip)]
    pub with_projection: bool,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection_dim: 512,
            with_projection: false,
        }
    }
}

/// The `eos_token_id` of OpenAI's configurations, which is no end token.
pub(super) const OLD_EOS: i64 = 2;

impl ClipTextConfig {
    /// Reads `config.json` in `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = config_file::read(&path, &[("model_type", &["clip_text_model", "clip"])])?;
        config.check().map_err(|message| Error::file(&path, message))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (width, heads, layers) = (self.hidden_size, self.num_attention_heads, self.num_hidden_layers);
        check_sizes(&[
            ("hidden_size", width),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", heads),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ])?;
        if width % heads != 0 {
            return Err(format!("a hidden_size of {width} cannot be parted into {heads} attention heads"));
        }
        match (1..=MAX_LAYERS).contains(&layers) {
            true => Ok(()),
            false => Err(format!("`num_hidden_layers` is {layers}; it must be 1 to {MAX_LAYERS}")),
        }
    }
}

/// CLIP's text model.
pub struct ClipTextModel {
    /// Rows of the tables of tokens and positions.
    rows: (i64, i64),
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<Rc<EncoderLayer>>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    eos_token_id: i64,
}

impl ClipTextModel {
    /// Loads the model.
    pub fn load(loader: &Loader, config: &ClipTextConfig) -> Result<Self> {
        let embeddings = loader / "embeddings";
        let layers = loader / "encoder.layers";
        let width = config.hidden_size;
        Ok(Self {
            rows: (config.vocab_size, config.max_position_embeddings),
            token_embedding: Embedding::load_waiting(&(&embeddings / "token_embedding"), config.vocab_size, width)?,
            position_embedding: Embedding::load(
                &(&embeddings / "position_embedding"),
                config.max_position_embeddings,
                width,
            )?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(&(&layers / i), config).map(Rc::new))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&(loader / "final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: config
                .with_projection
                .then(|| Linear::load(&(loader / "text_projection"), width, config.projection_dim, Bias::No))
                .transpose()?,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Token ids `[b, t]` (int64) to the normed last hidden state `[b, t, d]`. With `checkpointing` each layer's
    /// activations are computed again in backward.
    pub fn forward(&self, ids: &Tensor, checkpointing: bool) -> Tensor {
        self.final_layer_norm.forward(&self.run(self.embed(ids), &self.layers, checkpointing))
    }

    /// Token ids `[b, t]` to the hidden state before the last layer, not normed, `[b, t, d]`, and of a model with a projection the
    /// embedding of the whole text `[b, p]`, for which alone the last layer is computed.
    pub fn penultimate_and_pooled(&self, ids: &Tensor, checkpointing: bool) -> (Tensor, Option<Tensor>) {
        let (most, last) = self.layers.split_at(self.layers.len() - 1);
        let hidden = self.run(self.embed(ids), most, checkpointing);
        let pooled = self.text_projection.as_ref().map(|project| {
            let ys = self.final_layer_norm.forward(&self.run(hidden.shallow_clone(), last, checkpointing));
            let rows = Tensor::arange(ys.size()[0], (Kind::Int64, ys.device()));
            project.forward(&ys.index(&[Some(rows), Some(upload(&self.ends(ids), ys.device()))]))
            // [b, d] -> [b, p]
        });
        (hidden, pooled)
    }

    /// Where each text ends: `[b, t] -> [b]`.
    fn ends(&self, ids: &Tensor) -> Tensor {
        match self.eos_token_id {
            OLD_EOS => ids.argmax(-1, false),
            end => ids.eq(end).to_kind(Kind::Int64).argmax(-1, false),
        }
    }

    /// `[b, t] -> [b, t, d]`
    fn embed(&self, ids: &Tensor) -> Tensor {
        self.token_embedding.forward(ids) + self.position_embedding.first(ids.size()[1]).unsqueeze(0)
    }

    /// `[b, t, d] -> [b, t, d]`
    fn run(&self, xs: Tensor, layers: &[Rc<EncoderLayer>], checkpointing: bool) -> Tensor {
        layers.iter().fold(xs, |xs, layer| match checkpointing {
            true => {
                let layer = layer.clone();
                checkpoint(&[&xs], move |inputs| layer.forward(&inputs[0]))
            }
            false => layer.forward(&xs),
        })
    }

    /// Refuses a text's token ids for which the model has no embedding: they are of another model's tokenizer.
    pub fn check_ids(&self, ids: &[i64]) -> Result<()> {
        let (tokens, positions) = self.rows;
        let cure = "take the tokenizer of this model";
        if ids.len() as i64 > positions {
            let found = ids.len();
            let fault = format!("the tokenizer makes texts of {found} tokens (model_max_length)");
            return Err(Error::invalid(format!("{fault}, and the text encoder has {positions} positions; {cure}")));
        }
        match ids.iter().find(|id| !(0..tokens).contains(*id)) {
            Some(id) => Err(Error::invalid(format!(
                "the tokenizer has a token of id {id}, and the text encoder embeds the ids below {tokens}; {cure}"
            ))),
            None => Ok(()),
        }
    }

    /// The ids of texts of one length, on the host as the table of tokens is: int64 `[b, t]`.
    pub fn ids(rows: &[Vec<i64>]) -> Tensor {
        let width = rows.first().map_or(0, Vec::len) as i64;
        let flat: Vec<i64> = rows.iter().flatten().copied().collect();
        Tensor::from_slice(&flat).view([rows.len() as i64, width])
    }
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    activation: Activation,
}

impl EncoderLayer {
    fn load(loader: &Loader, config: &ClipTextConfig) -> Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attn = loader / "self_attn";
        let mlp = loader / "mlp";
        Ok(Self {
            layer_norm1: LayerNorm::load(&(loader / "layer_norm1"), width, eps)?,
            q_proj: Linear::load(&(&attn / "q_proj"), width, width, Bias::Yes)?,
            k_proj: Linear::load(&(&attn / "k_proj"), width, width, Bias::Yes)?,
            v_proj: Linear::load(&(&attn / "v_proj"), width, width, Bias::Yes)?,
            out_proj: Linear::load(&(&attn / "out_proj"), width, width, Bias::Yes)?,
            layer_norm2: LayerNorm::load(&(loader / "layer_norm2"), width, eps)?,
            fc1: Linear::load(&(&mlp / "fc1"), width, inner, Bias::Yes)?,
            fc2: Linear::load(&(&mlp / "fc2"), inner, width, Bias::Yes)?,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
        })
    }

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor) -> Tensor {
        let normed = self.layer_norm1.forward(xs);
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], &normed);
        let xs = xs + self.out_proj.forward(&attend(&q, &k, &v, self.heads, true));
        let hidden = self.activation.forward(&self.fc1.forward(&self.layer_norm2.forward(&xs)));
        &xs + self.fc2.forward(&hidden)
    }
}
