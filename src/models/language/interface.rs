//! What recipes and text generation see of a language model.
//!
//! Shapes: b batch, t length of the text, p what is in the cache, d width, v vocabulary.

use crate::nn::{AttentionMask, CausalMask, Embedding, KeyValueCache};
use tch::{Device, Kind, Tensor};

/// A text: token ids, or what stands in their place.
#[derive(Clone, Copy)]
pub enum Tokens<'a> {
    /// int64 `[b, t]`.
    Ids(&'a Tensor),
    /// `[b, t, w]` in the model's dtype: embeddings of ids with trained ones among them (prompt tuning). w is the width
    /// of [`CausalLm::embed`]'s.
    Embeddings(&'a Tensor),
}

impl Tokens<'_> {
    /// Length of the text.
    pub fn length(&self) -> i64 {
        self.tensor().size()[1]
    }

    /// Number of texts.
    pub fn batch(&self) -> i64 {
        self.tensor().size()[0]
    }

    pub(super) fn device(&self) -> Device {
        self.tensor().device()
    }

    /// `[b, t, w]`
    pub(super) fn embedded(&self, table: &Embedding) -> Tensor {
        match self {
            Self::Ids(ids) => table.forward(ids),
            Self::Embeddings(embeddings) => embeddings.shallow_clone(),
        }
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Self::Ids(tensor) | Self::Embeddings(tensor) => tensor,
        }
    }
}

/// What a decoder reads.
pub struct DecoderInputs<'a> {
    /// The text.
    pub tokens: Tokens<'a>,
    /// int64 `[b, p + t]`: 1 at tokens, 0 at padding; none: all are tokens. Where a text is padded on the right, none
    /// gives the same at each of its tokens, with quicker kernels.
    pub attention_mask: Option<&'a Tensor>,
    /// int64 `[b, t]`; none: as transformers' forward has them (counted from p on; OPT's and BLOOM's are counted by the
    /// mask). Models without positions of tokens ignore them.
    pub position_ids: Option<&'a Tensor>,
    /// What came before the text; the text's keys and values are added to it.
    pub cache: Option<&'a mut KeyValueCache>,
    /// Each block's activations are computed again in backward. The cache is read then, and nothing is added to it.
    pub checkpointing: bool,
}

impl<'a> DecoderInputs<'a> {
    /// A whole text.
    pub fn new(tokens: Tokens<'a>) -> Self {
        Self { tokens, attention_mask: None, position_ids: None, cache: None, checkpointing: false }
    }

    pub(super) fn past(&self) -> i64 {
        self.cache.as_ref().map_or(0, |cache| cache.length())
    }

    /// The positions that were given, or those counted from p on: `[b or 1, t]`.
    pub(super) fn positions(&self) -> Tensor {
        let (past, options) = (self.past(), (Kind::Int64, self.tokens.device()));
        self.position_ids.map_or_else(
            || Tensor::arange_start(past, past + self.tokens.length(), options).unsqueeze(0),
            Tensor::shallow_clone,
        )
    }

    /// What a mask of 1 and 0 over all keys counts up to before each of them: `[b, p + t]`, -1 or 0 (`at_padding`) at
    /// padding.
    pub(super) fn counted_positions(&self, at_padding: i64) -> Option<Tensor> {
        let mask = self.attention_mask?.to_kind(Kind::Int64);
        Some((mask.cumsum(1, Kind::Int64) - 1) * &mask + (1 - &mask) * at_padding)
    }

    /// Each token sees what is before it, at most `window` tokens where there is one.
    pub(super) fn causal_mask(&self, window: Option<i64>) -> AttentionMask {
        let (queries, device) = (self.tokens.length(), self.tokens.device());
        CausalMask { queries, past: self.past(), window, device }.mask(self.attention_mask)
    }
}

/// The sizes of a model, or of its decoder, which trained prefixes and prompts must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformerShape {
    /// Transformer blocks.
    pub blocks: i64,
    /// Heads of queries.
    pub heads: i64,
    /// Heads of keys and values.
    pub key_value_heads: i64,
    /// Width of a head.
    pub head_width: i64,
    /// Width of the hidden states.
    pub width: i64,
    /// Number of token ids.
    pub vocabulary: i64,
    /// Most tokens that there are positions for; none: as many as memory holds.
    pub longest: Option<i64>,
}

/// A decoder that predicts a text's next token.
pub trait CausalLm {
    /// Its sizes.
    fn shape(&self) -> TransformerShape;

    /// The embeddings of ids, before positions are added: int64 `[b, t] -> [b, t, w]`.
    fn embed(&self, ids: &Tensor) -> Tensor;

    /// The hidden states that logits are made of: `[b, t, d]`.
    fn forward(&self, inputs: DecoderInputs) -> Tensor;

    /// `[.., d] -> [.., v]`; of the states that are needed, as logits are the largest tensor of all.
    fn logits(&self, hidden: &Tensor) -> Tensor;
}

/// An encoder's output, as its decoder sees it.
#[derive(Clone, Copy)]
pub struct Encoded<'a> {
    /// `[b, s, d]`
    pub hidden: &'a Tensor,
    /// int64 `[b, s]`: 1 at tokens, 0 at padding; none: all are tokens.
    pub attention_mask: Option<&'a Tensor>,
}

/// An encoder that reads a text, and a decoder that writes another.
pub trait EncoderDecoder {
    /// The decoder's sizes.
    fn shape(&self) -> TransformerShape;

    /// Transformer blocks of the encoder.
    fn encoder_blocks(&self) -> i64;

    /// The embeddings of ids: int64 `[b, t] -> [b, t, d]`.
    fn embed(&self, ids: &Tensor) -> Tensor;

    /// Hidden states of the text that is read: `[b, s, d]`. With `checkpointing` each block's activations are computed
    /// again in backward.
    fn encode(&self, tokens: Tokens, attention_mask: Option<&Tensor>, checkpointing: bool) -> Tensor;

    /// Hidden states of the text that is written: `[b, t, d]`.
    fn decode(&self, inputs: DecoderInputs, encoded: Encoded) -> Tensor;

    /// `[.., d] -> [.., v]`
    fn logits(&self, hidden: &Tensor) -> Tensor;

    /// The token that a text which is written starts with.
    fn decoder_start_token_id(&self) -> i64;
}

/// What a classifier reads.
pub struct ClassifierInputs<'a> {
    /// The text.
    pub tokens: Tokens<'a>,
    /// int64 `[b, p + t]`: 1 at tokens, 0 at padding; none: all are tokens.
    pub attention_mask: Option<&'a Tensor>,
    /// All padding of the mask stands behind the texts. Where tokens see what is before them alone, it takes no part in attention then.
    pub padded_behind: bool,
    /// int64 `[b, t]`: which of two texts a token is of; none: all of the first.
    pub token_type_ids: Option<&'a Tensor>,
    /// What every token sees beside the text, as if it stood before it; the text's keys and values are added to it.
    pub cache: Option<&'a mut KeyValueCache>,
    /// Each block's activations are computed again in backward. The cache is read then, and nothing is added to it.
    pub checkpointing: bool,
}

impl<'a> ClassifierInputs<'a> {
    /// A whole text.
    pub fn new(tokens: Tokens<'a>) -> Self {
        Self {
            tokens,
            attention_mask: None,
            padded_behind: false,
            token_type_ids: None,
            cache: None,
            checkpointing: false,
        }
    }

    pub(super) fn past(&self) -> i64 {
        self.cache.as_ref().map_or(0, |cache| cache.length())
    }
}

/// An encoder that sorts texts into classes.
pub trait SequenceClassifier {
    /// Its sizes.
    fn shape(&self) -> TransformerShape;

    /// Number of classes.
    fn labels(&self) -> i64;

    /// The embeddings of ids: int64 `[b, t] -> [b, t, d]`.
    fn embed(&self, ids: &Tensor) -> Tensor;

    /// A logit for each class: `[b, labels]`.
    fn classify(&self, inputs: ClassifierInputs) -> Tensor;
}

/// A language model by what it does.
pub enum LanguageModel {
    /// Continues a text.
    Causal(Box<dyn CausalLm>),
    /// Writes a text for a text.
    EncoderDecoder(Box<dyn EncoderDecoder>),
    /// Sorts texts into classes.
    Classifier(Box<dyn SequenceClassifier>),
}

impl LanguageModel {
    /// Its sizes, or those of its decoder.
    pub fn shape(&self) -> TransformerShape {
        match self {
            Self::Causal(model) => model.shape(),
            Self::EncoderDecoder(model) => model.shape(),
            Self::Classifier(model) => model.shape(),
        }
    }

    /// The embeddings of ids, before positions are added: int64 `[b, t] -> [b, t, w]`.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        match self {
            Self::Causal(model) => model.embed(ids),
            Self::EncoderDecoder(model) => model.embed(ids),
            Self::Classifier(model) => model.embed(ids),
        }
    }
}
