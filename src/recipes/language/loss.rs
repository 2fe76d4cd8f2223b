//! What a language model minimises.
//!
//! Shapes: b texts, t and u tokens, d width, v vocabulary, n labels that are learnt.

use super::prompted_text::PromptedText;
use crate::adapters::Prompt;
use crate::data::language_batch::{LanguageBatch, IGNORED};
use crate::error::Result;
use crate::libtorch::upload::upload;
use crate::models::language::{ClassifierInputs, DecoderInputs, Encoded, LanguageModel, Tokens};
use crate::train::head_loss::mean_cross_entropy;
use tch::{Device, Kind, Tensor};

/// How a batch is learnt.
#[derive(Clone, Copy)]
pub struct LossOptions<'a> {
    /// What stands before each text.
    pub prompt: Option<&'a Prompt>,
    /// The token that fills up what a decoder reads.
    pub pad: i64,
    /// Where the model is.
    pub device: Device,
    /// Each block's activations are computed again in backward.
    pub checkpointing: bool,
}

/// Mean cross entropy of some labels, in float32.
pub struct LanguageLoss {
    /// The mean.
    pub mean: Tensor,
    /// The number of labels.
    pub labels: i64,
    /// A classifier's logits, float32 `[b, classes]`.
    pub classes: Option<Tensor>,
}

/// The loss of a batch's labels. Logits, the largest tensor of all, are made for learnt labels alone.
pub fn language_loss(model: &LanguageModel, batch: &LanguageBatch, options: LossOptions) -> Result<LanguageLoss> {
    let LossOptions { device, checkpointing, .. } = options;
    let on_device = |tensor: &Tensor| upload(tensor, device);
    // On the host, where it is known which of them are learnt.
    let labels = &batch.labels;
    let mask = needs_mask(&batch.attention_mask, model).then(|| on_device(&batch.attention_mask));
    let mut text = PromptedText::new(model, options.prompt, on_device(&batch.input_ids), mask)?;
    let (mut cache, before) = (text.cache.take(), text.tokens_before());
    let (tokens, attention_mask, cache) = (text.tokens(), text.attention_mask.as_ref(), cache.as_mut());
    Ok(match model {
        LanguageModel::Causal(model) => {
            let inputs = DecoderInputs { attention_mask, checkpointing, cache, ..DecoderInputs::new(tokens) };
            let hidden = model.forward(inputs);
            // A virtual token is no label, and the last of them predicts the text's first token.
            let labels = labels.pad([before, 0], "constant", IGNORED as f64);
            let length = labels.size()[1] - 1;
            cross_entropy(&hidden.narrow(1, 0, length), &labels.narrow(1, 1, length), |rows| model.logits(rows))?
        }
        LanguageModel::EncoderDecoder(model) => {
            let read = model.encode(tokens, attention_mask, checkpointing);
            let written = on_device(&batch.decoder_input_ids(model.decoder_start_token_id(), options.pad)?);
            let inputs = DecoderInputs { checkpointing, cache, ..DecoderInputs::new(Tokens::Ids(&written)) };
            let hidden = model.decode(inputs, Encoded { hidden: &read, attention_mask });
            cross_entropy(&hidden, labels, |rows| model.logits(rows))?
        }
        LanguageModel::Classifier(model) => {
            let padded_behind = !has_token_behind_padding(&batch.attention_mask);
            let inputs = ClassifierInputs {
                padded_behind,
                attention_mask,
                checkpointing,
                cache,
                ..ClassifierInputs::new(tokens)
            };
            let logits = model.classify(inputs).to_kind(Kind::Float);
            let mean = logits.cross_entropy_for_logits(&on_device(labels));
            LanguageLoss { mean, labels: labels.size()[0], classes: Some(logits.detach()) }
        }
    })
}

/// Whether `mask` `[b, t]` on the host changes what is learnt. A decoder's tokens do not see what fills up the end behind them.
fn needs_mask(mask: &Tensor, model: &LanguageModel) -> bool {
    match model {
        LanguageModel::Causal(_) => has_token_behind_padding(mask),
        _ => mask.eq(0).any().int64_value(&[]) != 0,
    }
}

/// Whether a text of `mask` `[b, t]` on the host has padding before a token.
fn has_token_behind_padding(mask: &Tensor) -> bool {
    let length = mask.size()[1];
    let found = || mask.narrow(1, 1, length - 1).gt_tensor(&mask.narrow(1, 0, length - 1)).any();
    length > 1 && found().int64_value(&[]) != 0
}

/// Of labels `[b, t]` on the host after hidden states `[b, t, d]`, through `logits` `[n, d] -> [n, v]`.
fn cross_entropy(hidden: &Tensor, labels: &Tensor, logits: impl Fn(&Tensor) -> Tensor) -> Result<LanguageLoss> {
    let width = hidden.size()[2];
    let labels = labels.flatten(0, -1);
    let learnt = labels.ne(IGNORED).nonzero().squeeze_dim(1);
    let on_device = |tensor: &Tensor| upload(tensor, hidden.device());
    let rows = hidden.reshape([-1, width]).index_select(0, &on_device(&learnt));
    let mean = mean_cross_entropy(&rows, &on_device(&labels.index_select(0, &learnt)), logits)?;
    Ok(LanguageLoss { mean, labels: learnt.size()[0], classes: None })
}
