//! Language models: decoders that continue a text or classify it, encoder-decoders that answer one, encoders that classify one.
//!
//! Every one is a file with its blocks and a row in [`ARCHITECTURES`]; the modules' paths are those of transformers'
//! models, which PEFT's rules for targets are written for.

mod architectures;
mod bert;
mod bert_config;
mod bert_layer;
mod blocks;
mod bloom;
mod decoder_classifier;
mod folder;
mod gpt2;
mod interface;
mod llama;
mod llama_config;
mod opt;
mod outline;
mod rope;
mod t5;
mod t5_block;
mod t5_config;

pub use architectures::{Architecture, ARCHITECTURES};
pub use folder::{HeadOptions, LanguageModelFiles};
pub use interface::{
    CausalLm, ClassifierInputs, DecoderInputs, Encoded, EncoderDecoder, LanguageModel, SequenceClassifier, Tokens,
    TransformerShape,
};
pub use outline::{HeadOutline, Outline};
