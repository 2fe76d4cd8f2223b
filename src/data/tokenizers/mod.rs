//! From text to token ids, and back.

mod bpe_files;
pub mod clip;
mod gguf;
pub(crate) mod json_files;
pub mod language;
mod prompt;
mod special_tokens;
mod text_stream;
mod vocabulary_files;

pub use clip::ClipTokenizer;
pub use language::LanguageTokenizer;
pub use prompt::PromptTokenizers;
pub use text_stream::TextStream;
