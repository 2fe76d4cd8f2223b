//! GGUF, the weight files of llama.cpp: quantised tensors behind metadata that says what model they are.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod encoding;
mod file;
mod header;
mod k_quants;
mod llama;
mod metadata;
mod rope;

pub use file::GgufFile;
pub use llama::GgufLanguageModel;
pub use metadata::{Metadata, MetadataValue};

use std::path::Path;

/// Whether `path` is named as a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "gguf")
}
