//! A language model on disk with its tokenizer.

use crate::data::tokenizers::LanguageTokenizer;
use crate::error::Result;
use crate::models::language::LanguageModelFiles;
use serde_json::Value;
use std::path::Path;

/// A model's files and its tokenizer.
pub struct LanguageBase {
    /// The model, not loaded yet.
    pub files: LanguageModelFiles,
    /// Its tokenizer.
    pub tokenizer: LanguageTokenizer,
}

impl LanguageBase {
    /// Opens a folder in the transformers layout, or a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        let files = LanguageModelFiles::open(path)?;
        let tokenizer = match files.gguf() {
            Some(model) => LanguageTokenizer::from_gguf(model.file())?,
            None => LanguageTokenizer::from_folder(path)?,
        };
        Ok(Self { files, tokenizer })
    }

    /// Tokens that end a text: the tokenizer's, and those of the model's configuration.
    pub fn ends(&self) -> Vec<i64> {
        let of_config = match self.files.config().get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
            Some(id) => id.as_i64().into_iter().collect(),
            None => Vec::new(),
        };
        let mut ends: Vec<i64> = self.tokenizer.special_ids().eos.into_iter().chain(of_config).collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}
