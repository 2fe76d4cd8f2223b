//! A decoder as a classifier of texts, by the hidden state of each text's last token.
//! Reference: transformers `modeling_layers.py` (`GenericForSequenceClassification`).
//!
//! Shapes: b batch, t length, p what is in the cache, d width.

use super::interface::{CausalLm, ClassifierInputs, DecoderInputs, SequenceClassifier, Tokens, TransformerShape};
use tch::{Kind, Tensor};

/// A decoder whose logits are those of classes.
pub(super) struct DecoderClassifier {
    pub(super) decoder: Box<dyn CausalLm>,
    pub(super) labels: i64,
    /// The token that is no text's last.
    pub(super) padding: Option<i64>,
}

impl DecoderClassifier {
    /// Place of each text's last token: int64 `[b]`. Told by the ids where they can tell, as transformers does; else by the mask,
    /// which is all that embeddings have.
    fn last(&self, tokens: Tokens, attention_mask: Option<&Tensor>) -> Tensor {
        let (length, options) = (tokens.length(), (Kind::Int64, tokens.device()));
        let are_tokens = match (tokens, self.padding) {
            (Tokens::Ids(ids), Some(padding)) => Some(ids.ne(padding).to_kind(Kind::Int64)),
            // What a mask says of the cache comes before the text.
            _ => attention_mask.map(|mask| mask.narrow(1, mask.size()[1] - length, length).to_kind(Kind::Int64)),
        };
        match are_tokens {
            Some(are_tokens) => (are_tokens * Tensor::arange(length, options)).argmax(1, false),
            None => Tensor::full([tokens.batch()], length - 1, options),
        }
    }
}

impl SequenceClassifier for DecoderClassifier {
    fn shape(&self) -> TransformerShape {
        self.decoder.shape()
    }

    fn labels(&self) -> i64 {
        self.labels
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        self.decoder.embed(ids)
    }

    fn classify(&self, inputs: ClassifierInputs) -> Tensor {
        let ClassifierInputs { tokens, attention_mask, padded_behind, cache, checkpointing, .. } = inputs;
        let last = self.last(tokens, attention_mask);
        let attention_mask = attention_mask.filter(|_| !padded_behind);
        let hidden =
            self.decoder.forward(DecoderInputs { attention_mask, cache, checkpointing, ..DecoderInputs::new(tokens) });
        let width = hidden.size()[2];
        let places = last.view([-1, 1, 1]).expand([-1, 1, width], false);
        self.decoder.logits(&hidden.gather(1, &places, false).squeeze_dim(1)) // [b, labels]
    }
}
