//! Texts as a model reads them behind a prompt: virtual tokens among the embeddings, or keys and values before them.
//!
//! Shapes: b texts, t tokens, n virtual tokens, w width of the embeddings.

use crate::adapters::{Prompt, VirtualTokens};
use crate::error::Result;
use crate::models::language::{LanguageModel, Tokens};
use crate::nn::KeyValueCache;
use tch::Tensor;

/// Texts behind a prompt, or texts alone.
pub struct PromptedText {
    ids: Tensor,
    /// `[b, n + t, w]`, where virtual tokens stand among the embeddings.
    embeddings: Option<Tensor>,
    /// int64 over all that is read: 1 at tokens, virtual ones included.
    pub attention_mask: Option<Tensor>,
    /// What the model, or its decoder, starts from: the keys and values of virtual tokens.
    pub cache: Option<KeyValueCache>,
}

impl PromptedText {
    /// The texts `ids` int64 `[b, t]` with their `attention_mask` of the same shape, behind `prompt`, for `model`.
    pub fn new(
        model: &LanguageModel,
        prompt: Option<&Prompt>,
        ids: Tensor,
        attention_mask: Option<Tensor>,
    ) -> Result<Self> {
        let mut text = Self { ids, embeddings: None, attention_mask, cache: None };
        let Some(prompt) = prompt else { return Ok(text) };
        let batch = text.ids.size()[0];
        let embedded = model.embed(&text.ids);
        match prompt.virtual_tokens(embedded.kind())? {
            VirtualTokens::Embeddings(tokens) => {
                let width = tokens.size()[1];
                let tokens = tokens.unsqueeze(0).expand([batch, prompt.length(), width], false);
                text.embeddings = Some(Tensor::cat(&[tokens, embedded], 1));
                text.lengthen_mask(prompt.length());
            }
            VirtualTokens::KeyValues(blocks) => {
                let for_all = |xs: Tensor| xs.expand([batch, -1, -1, -1], false);
                let blocks = blocks.into_iter().map(|(keys, values)| (for_all(keys), for_all(values)));
                text.cache = Some(KeyValueCache::of(blocks.collect()));
                // An encoder-decoder's prefix is its decoder's, and the mask that of what the encoder reads.
                if !matches!(model, LanguageModel::EncoderDecoder(_)) {
                    text.lengthen_mask(prompt.length());
                }
            }
        }
        Ok(text)
    }

    /// What the model is given.
    pub fn tokens(&self) -> Tokens<'_> {
        self.embeddings.as_ref().map_or(Tokens::Ids(&self.ids), Tokens::Embeddings)
    }

    /// How many tokens stand before the text among those that the model gives hidden states for.
    pub fn tokens_before(&self) -> i64 {
        self.tokens().length() - self.ids.size()[1]
    }

    fn lengthen_mask(&mut self, tokens: i64) {
        if let Some(mask) = &self.attention_mask {
            let ones = Tensor::ones([mask.size()[0], tokens], (mask.kind(), mask.device()));
            self.attention_mask = Some(Tensor::cat(&[&ones, mask], 1));
        }
    }
}
