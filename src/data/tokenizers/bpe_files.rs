//! A BPE vocabulary and its merges, from `vocab.json` and `merges.txt` or the same in other files.

use super::json_files::optional_json;
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::models::bpe::{BpeBuilder, Merges, Vocab, BPE};

/// The vocabulary's file.
pub(super) const VOCABULARY: &str = "vocab.json";

/// Tokens by id, and pairs that become one token, the first pair first.
pub(super) struct BpeFiles {
    pub(super) vocabulary: Vocab,
    pub(super) merges: Merges,
}

impl BpeFiles {
    /// Reads `vocab.json` and `merges.txt` in `folder`; none where there is no vocabulary.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        let (vocabulary_path, merges_path) = (folder.join(VOCABULARY), folder.join("merges.txt"));
        let Some(vocabulary) = optional_json(&vocabulary_path)? else { return Ok(None) };
        let text = regular_file::read_text(&merges_path, FileKind::TOKENIZER)?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
        let merges = lines.map(|line| Value::String(line.to_owned())).collect();
        Self::parse(&vocabulary_path, vocabulary, merges).map(Some)
    }

    /// `vocab` and `merges` of the file `path`.
    pub(super) fn parse(path: &Path, vocabulary: Value, merges: Value) -> Result<Self> {
        let vocabulary: BTreeMap<String, u32> =
            serde_json::from_value(vocabulary).map_err(|error| misfit(path, &error.to_string()))?;
        let merges = merges.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(pair).collect::<Option<_>>();
        let merges = merges.ok_or_else(|| misfit(path, "a merge is not a pair"))?;
        Ok(Self { vocabulary: vocabulary.into_iter().collect(), merges })
    }

    /// The model of them, with what `more` sets; `path` is the file at fault where they do not fit together.
    pub(super) fn build(self, path: &Path, more: impl FnOnce(BpeBuilder) -> BpeBuilder) -> Result<BPE> {
        let builder = BPE::builder().vocab_and_merges(self.vocabulary, self.merges);
        let builder = builder.continuing_subword_prefix(String::new()).fuse_unk(false);
        more(builder).build().map_err(|error| misfit(path, &error.to_string()))
    }
}

fn misfit(path: &Path, cause: &str) -> Error {
    Error::file(path, format!("its vocabulary and merges do not fit together: {cause}"))
}

/// A merge is `"a b"` in older files and `["a", "b"]` in newer ones.
fn pair(merge: &Value) -> Option<(String, String)> {
    let (first, second) = match merge {
        Value::String(text) => text.split_once(' ')?,
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(first), Value::String(second)] => (first.as_str(), second.as_str()),
            _ => return None,
        },
        _ => return None,
    };
    Some((first.to_owned(), second.to_owned()))
}
