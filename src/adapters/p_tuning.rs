//! P-tuning: the embeddings of virtual tokens come from an encoder, which is trained (arXiv 2103.10385). Reference: peft
//! `tuners/p_tuning`.
//!
//! Shapes: n rows of virtual tokens, w width of the embeddings, e width of the encoder.

use super::prompt::{EncoderTensors, Projection, PromptEncoder, PromptMethod, PromptPlace};
use super::prompt_config::PromptConfig;
use crate::error::{Error, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub(super) const METHOD: PromptMethod =
    PromptMethod { peft_type: "P_TUNING", name: "P-tuning", place: PromptPlace::Embeddings, make };

/// The encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub enum Reparameterization {
    /// Three projections.
    #[default]
    Mlp,
    /// An LSTM in both directions, and two projections.
    Lstm,
}

/// Fields of `PromptEncoderConfig`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct PTuningOptions {
    /// The encoder.
    pub encoder_reparameterization_type: Reparameterization,
    /// Its width; as wide as the embeddings where not given.
    pub encoder_hidden_size: Option<i64>,
    /// Layers of the LSTM.
    pub encoder_num_layers: i64,
    /// Dropout between its layers.
    pub encoder_dropout: f64,
}

impl Default for PTuningOptions {
    fn default() -> Self {
        Self {
            encoder_reparameterization_type: Reparameterization::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
        }
    }
}

fn make(config: &PromptConfig, tensors: &mut EncoderTensors) -> Result<Box<dyn PromptEncoder>> {
    let options: PTuningOptions = config.options()?;
    let width = config.sizes()?.token_dim;
    let hidden = options.encoder_hidden_size.unwrap_or(width);
    if hidden < 1 || options.encoder_num_layers < 1 || !(0.0..1.0).contains(&options.encoder_dropout) {
        return Err(Error::invalid(
            "the encoder's width and layers must be at least 1, and its dropout at least 0 and below 1",
        ));
    }
    let embedding = tensors.table(config.rows(), width)?;
    Ok(match options.encoder_reparameterization_type {
        Reparameterization::Mlp => Box::new(Mlp {
            embedding,
            layers: [
                tensors.projection("mlp_head.0", width, hidden)?,
                tensors.projection("mlp_head.2", hidden, hidden)?,
                tensors.projection("mlp_head.4", hidden, width)?,
            ],
        }),
        Reparameterization::Lstm => Box::new(LstmEncoder {
            embedding,
            lstm: Lstm::new(tensors, width, hidden, &options)?,
            inner: tensors.projection("mlp_head.0", 2 * hidden, 2 * hidden)?,
            outer: tensors.projection("mlp_head.2", 2 * hidden, width)?,
        }),
    })
}

struct Mlp {
    /// `[n, w]`
    embedding: Tensor,
    layers: [Projection; 3],
}

impl PromptEncoder for Mlp {
    fn forward(&self, _training: bool) -> Tensor {
        let [first, second, third] = &self.layers;
        third.forward(&second.forward(&first.forward(&self.embedding).relu()).relu())
    }
}

struct LstmEncoder {
    /// `[n, w]`
    embedding: Tensor,
    lstm: Lstm,
    inner: Projection,
    outer: Projection,
}

impl PromptEncoder for LstmEncoder {
    fn forward(&self, training: bool) -> Tensor {
        let read = self.lstm.forward(&self.embedding, training); // [n, 2e]
        self.outer.forward(&self.inner.forward(&read).relu())
    }
}

/// A long short-term memory in both directions, as `torch.nn.LSTM` keeps it.
struct Lstm {
    /// By layer and direction: weights of inputs and of states, their biases.
    weights: Vec<Tensor>,
    hidden: i64,
    layers: i64,
    dropout: f64,
}

impl Lstm {
    fn new(tensors: &mut EncoderTensors, width: i64, hidden: i64, options: &PTuningOptions) -> Result<Self> {
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut weights = Vec::new();
        for layer in 0..options.encoder_num_layers {
            let inputs = if layer == 0 { width } else { 2 * hidden };
            for direction in ["", "_reverse"] {
                let gates = 4 * hidden;
                let mut draw = |name: &str, shape: &[i64]| {
                    tensors.uniform(&format!("lstm_head.{name}_l{layer}{direction}"), shape, bound)
                };
                weights.push(draw("weight_ih", &[gates, inputs])?);
                weights.push(draw("weight_hh", &[gates, hidden])?);
                weights.push(draw("bias_ih", &[gates])?);
                weights.push(draw("bias_hh", &[gates])?);
            }
        }
        Ok(Self { weights, hidden, layers: options.encoder_num_layers, dropout: options.encoder_dropout })
    }

    /// `[n, w] -> [n, 2e]`
    fn forward(&self, xs: &Tensor, training: bool) -> Tensor {
        let start = Tensor::zeros([2 * self.layers, 1, self.hidden], (xs.kind(), xs.device()));
        let states = [&start, &start];
        let weights: Vec<&Tensor> = self.weights.iter().collect();
        let (ys, _, _) = xs.unsqueeze(0).lstm(&states, &weights, true, self.layers, self.dropout, training, true, true);
        ys.squeeze_dim(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{Init, Prompt, PromptSizes, Sites};
    use crate::libtorch::random::Generator;
    use tch::Device;

    fn prompt(options: PTuningOptions) -> Prompt {
        let sizes = PromptSizes { token_dim: 6, num_transformer_submodules: 2, num_attention_heads: 3, num_layers: 2 };
        let config = PromptConfig::new(METHOD.peft_type, 3, &options).unwrap().fitted(sizes).unwrap();
        Prompt::attach(&Sites::new(), Device::Cpu, config, Init::Draw(&mut Generator::new(1))).unwrap()
    }

    #[test]
    fn an_lstm_of_three_layers_learns_with_dropout_only_while_it_trains() {
        let lstm = PTuningOptions {
            encoder_reparameterization_type: Reparameterization::Lstm,
            encoder_hidden_size: Some(5),
            encoder_num_layers: 3,
            encoder_dropout: 0.5,
        };
        let prompt = prompt(lstm);
        let once = prompt.embeddings();
        assert_eq!(once.size(), [6, 6]);
        assert_eq!(once, prompt.embeddings());
        once.sum(tch::Kind::Float).backward();
        for (name, param) in &prompt.params {
            assert!(param.grad().abs().max().double_value(&[]) > 0.0, "{name} does not learn");
        }
        // Table, 3 layers of 2 directions of 4 tensors, two projections.
        assert_eq!(prompt.params.len(), 1 + 3 * 2 * 4 + 4);
    }

    #[test]
    fn an_encoder_as_wide_as_the_embeddings_is_the_default() {
        assert_eq!(prompt(PTuningOptions::default()).params["prompt_encoder.mlp_head.2.weight"].size(), [6, 6]);
    }
}
