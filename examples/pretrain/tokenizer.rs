//! Trains CLIP's tokenizer: byte-level BPE over words, in the layout `vocab.json` and `merges.txt`.

use lorabooth::error::{Error, Result};
use lorabooth::whole_file::write_json;
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::models::bpe::{BpeTrainer, BPE};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, Trainer};

/// Tokens, start and end of text included.
pub const VOCABULARY: usize = 2048;
/// Tokens of a prompt, start and end included.
pub const LONGEST_PROMPT: usize = 16;

/// Trains on the texts in `words` and writes the vocabulary into `folder`.
pub fn train_tokenizer(words: &Path, folder: &Path) -> Result<()> {
    let failed = |error: tokenizers::Error| Error::file(words, format!("no tokenizer can be trained on it: {error}"));
    let text = std::fs::read_to_string(words).map_err(|error| Error::io("read", words, error))?.to_lowercase();
    // Each byte once as a word of its own, so that no text is without tokens.
    let bytes: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    let words = text.split(|c: char| !c.is_ascii_lowercase()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.chain(bytes.iter().map(String::as_str)).collect();

    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY - 2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .end_of_word_suffix("</w>".to_owned())
        .show_progress(false)
        .build();
    trainer.feed(words.into_iter(), |word| Ok(vec![word.to_owned()])).map_err(failed)?;
    let mut bpe = BPE::default();
    trainer.train(&mut bpe).map_err(failed)?;
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    bpe.save(folder, None).map_err(failed)?;

    let mut by_id: Vec<(String, u32)> = bpe.get_vocab().into_iter().collect();
    by_id.sort_by_key(|(_, id)| *id);
    let special = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    let tokens = by_id.into_iter().map(|(token, _)| token).chain(special);
    let vocabulary: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, Value::from(id))).collect();
    if vocabulary.len() != VOCABULARY {
        return Err(Error::invalid(format!("the texts give {} tokens, not {VOCABULARY}", vocabulary.len())));
    }
    write_json(&folder.join("vocab.json"), &vocabulary)
}
