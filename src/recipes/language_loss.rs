//! What a language model minimises.
//!
//! Shapes: b texts, t and u tokens, d width, v vocabulary, n labels that are learnt.

use crate::data::language_batch::{LanguageBatch, IGNORED};
use crate::error::Result;
use crate::models::language::{ClassifierInputs, DecoderInputs, Encoded, LanguageModel, Tokens};
use tch::{Device, Kind, Tensor};

/// Mean cross entropy of a batch's labels, in float32, and the number of labels. Logits, the largest tensor of all, are made for
/// learnt labels alone.
pub fn language_loss(
    model: &LanguageModel,
    batch: &LanguageBatch,
    pad: i64,
    device: Device,
    checkpointing: bool,
) -> Result<Tensor> {
    let on_device = |tensor: &Tensor| tensor.to_device(device);
    let (ids, mask, labels) = (on_device(&batch.input_ids), on_device(&batch.attention_mask), on_device(&batch.labels));
    Ok(match model {
        LanguageModel::Causal(model) => {
            let inputs =
                DecoderInputs { attention_mask: Some(&mask), checkpointing, ..DecoderInputs::new(Tokens::Ids(&ids)) };
            let hidden = model.forward(inputs);
            let (before, length) = (hidden.narrow(1, 0, hidden.size()[1] - 1), labels.size()[1]);
            cross_entropy(&before, &labels.narrow(1, 1, length - 1), |rows| model.logits(rows))
        }
        LanguageModel::EncoderDecoder(model) => {
            let read = model.encode(Tokens::Ids(&ids), Some(&mask), checkpointing);
            let written = on_device(&batch.decoder_input_ids(model.decoder_start_token_id(), pad)?);
            let inputs = DecoderInputs { checkpointing, ..DecoderInputs::new(Tokens::Ids(&written)) };
            let hidden = model.decode(inputs, Encoded { hidden: &read, attention_mask: Some(&mask) });
            cross_entropy(&hidden, &labels, |rows| model.logits(rows))
        }
        LanguageModel::Classifier(model) => {
            let logits = model.classify(ClassifierInputs {
                tokens: Tokens::Ids(&ids),
                attention_mask: Some(&mask),
                token_type_ids: None,
                checkpointing,
            });
            logits.to_kind(Kind::Float).cross_entropy_for_logits(&labels)
        }
    })
}

/// Of labels `[b, t]` after hidden states `[b, t, d]`, through `logits` `[n, d] -> [n, v]`.
fn cross_entropy(hidden: &Tensor, labels: &Tensor, logits: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let width = hidden.size()[2];
    let labels = labels.flatten(0, -1);
    let learnt = labels.ne(IGNORED).nonzero().squeeze_dim(1);
    let rows = hidden.reshape([-1, width]).index_select(0, &learnt);
    logits(&rows).to_kind(Kind::Float).cross_entropy_for_logits(&labels.index_select(0, &learnt))
}
