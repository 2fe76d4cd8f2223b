//! Language models' tokenizers, with the ids of transformers' fast classes: from `tokenizer.json`, from the vocabulary
//! files of GPT-2, OPT, RoBERTa and BERT, or from a GGUF file.

use super::json_files::optional_object;
use super::special_tokens::SpecialTokens;
use super::{gguf, vocabulary_files, TextStream};
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::gguf::GgufFile;
use crate::whole_file::{write_json, write_whole};
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};
use tokenizers::models::ModelWrapper;
use tokenizers::{PaddingDirection, PostProcessor, Tokenizer, TruncationDirection};

/// Ids of tokens with a meaning of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<i64>,
    /// Ends a text.
    pub eos: Option<i64>,
    /// Fills up short texts: the padding token, or as in PEFT's examples the end token where there is none.
    pub pad: Option<i64>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<i64>,
    /// What an encoder-decoder's decoder reads first.
    pub decoder_start: Option<i64>,
}

/// A text's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// With the special tokens that the tokenizer adds.
    pub ids: Vec<i64>,
    /// How many of the text's own tokens were cut off.
    pub cut: usize,
}

/// A language model's tokenizer.
pub struct LanguageTokenizer {
    tokenizer: Tokenizer,
    origin: PathBuf,
    ids: SpecialIds,
    pads_left: bool,
    cuts_left: bool,
    cleans_up: bool,
    /// Of a GGUF file: how transformers makes a text of a conversation.
    chat_template: Option<String>,
}

#[derive(Deserialize)]
struct AddedTokens {
    added_tokens: Option<Vec<Value>>,
}

impl LanguageTokenizer {
    /// Reads the tokenizer in a model's folder: `tokenizer.json`; or `vocab.json` with `merges.txt` (GPT-2, OPT, RoBERTa);
    /// or `vocab.txt` (BERT). Special tokens are those of `tokenizer_config.json` and `special_tokens_map.json`, else those
    /// of `config.json`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let (mut tokenizer, special) = match regular_file::read_if_there(&path, FileKind::TOKENIZER)? {
            Some(bytes) => whole_file(folder, &path, &bytes)?,
            None => vocabulary_files::read(folder)?,
        };
        let sides = Sides::of(&tokenizer, &special);
        // They are asked for by the caller, whatever the file says.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| broken(&path, &error))?;
        let flags = ["add_bos_token", "add_eos_token"].map(|name| special.flag(name));
        if flags.iter().any(Option::is_some) {
            let [bos, eos] = flags.map(|flag| flag == Some(true));
            let before = if bos && special.name("bos_token").is_some() { &["bos_token"][..] } else { &[] };
            let behind = if eos && special.name("eos_token").is_some() { &["eos_token"][..] } else { &[] };
            vocabulary_files::frame(&mut tokenizer, &special, folder, before, behind)?;
        }
        let config = optional_object(&folder.join("config.json"))?;
        let id = |role: &str| special.name(role).and_then(|name| tokenizer.token_to_id(name)).map(i64::from);
        let ids = SpecialIds {
            bos: id("bos_token").or_else(|| configured(&config, "bos_token_id")),
            eos: id("eos_token").or_else(|| configured(&config, "eos_token_id")),
            pad: id("pad_token").or_else(|| configured(&config, "pad_token_id")),
            unk: id("unk_token"),
            decoder_start: configured(&config, "decoder_start_token_id"),
        };
        // transformers' clean-up spoils what byte-level BPE has kept exactly, so it is not done there either.
        let is_bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
        let cleans_up = !is_bpe && special.flag("clean_up_tokenization_spaces").unwrap_or(false);
        Ok(Self::new(tokenizer, folder, ids, sides, cleans_up))
    }

    /// Builds the tokenizer that a GGUF file's metadata describes: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`).
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let (tokenizer, ids) = gguf::read(file)?;
        let chat_template = file.metadata().text("tokenizer.chat_template");
        let chat_template = chat_template.map_err(|cause| Error::file(file.path(), cause))?.map(str::to_owned);
        Ok(Self { chat_template, ..Self::new(tokenizer, file.path(), ids, Sides::default(), false) })
    }

    fn new(tokenizer: Tokenizer, origin: &Path, ids: SpecialIds, sides: Sides, cleans_up: bool) -> Self {
        let ids = SpecialIds { pad: ids.pad.or(ids.eos), ..ids };
        let Sides { pads_left, cuts_left } = sides;
        Self { tokenizer, origin: origin.to_owned(), ids, pads_left, cuts_left, cleans_up, chat_template: None }
    }

    /// Ids of special tokens.
    pub fn special_ids(&self) -> SpecialIds {
        self.ids
    }

    /// The id that ends a text; an error where there is none.
    pub fn eos(&self) -> Result<i64> {
        self.ids.eos.ok_or_else(|| self.lacks("eos_token, which ends a text"))
    }

    /// The id that fills up short texts; an error where there is none.
    pub fn pad(&self) -> Result<i64> {
        self.ids.pad.ok_or_else(|| self.lacks("pad_token and no eos_token, which short texts are filled up with"))
    }

    /// Whether short texts are filled up on the left.
    pub fn pads_left(&self) -> bool {
        self.pads_left
    }

    /// One more than the largest id.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1)
    }

    /// Checks that each id has a row in the model's embedding, which has `rows`.
    pub fn check_fits(&self, rows: i64) -> Result<()> {
        let size = self.vocabulary_size();
        match i64::try_from(size).is_ok_and(|size| size <= rows) {
            true => Ok(()),
            false => Err(Error::file(
                &self.origin,
                format!(
                    "its tokenizer has {size} tokens, but the model embeds {rows}; take the tokenizer of this model"
                ),
            )),
        }
    }

    /// A text's ids between the special tokens that the tokenizer adds, at most `max_length` with them.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Encoded> {
        let failed = |error: tokenizers::Error| Error::invalid(format!("cannot tokenize {text:?}: {error}"));
        let mut encoding = self.tokenizer.encode_fast(text, false).map_err(failed)?;
        let added = self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        let room = max_length.saturating_sub(added);
        let cut = encoding.len().saturating_sub(room);
        if cut > 0 {
            let side = if self.cuts_left { TruncationDirection::Left } else { TruncationDirection::Right };
            encoding.truncate(room, 0, side);
        }
        let whole = self.tokenizer.post_process(encoding, None, true).map_err(failed)?;
        Ok(Encoded { ids: numbers(whole.get_ids()), cut })
    }

    /// The text of the one token that the tokenizer puts before every text, if it does.
    pub fn start(&self) -> Result<Option<String>> {
        const PROBE: &str = "a";
        let (whole, bare) = (self.encode(PROBE, usize::MAX)?.ids, self.encode_bare(PROBE)?);
        let before = whole.windows(bare.len().max(1)).position(|ids| ids == bare);
        let start = before.filter(|&before| before == 1).and_then(|_| u32::try_from(whole[0]).ok());
        Ok(start.and_then(|id| self.tokenizer.id_to_token(id)))
    }

    /// A text's ids without any special token around them.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| Error::invalid(format!("cannot tokenize {text:?}: {error}")))?;
        Ok(numbers(encoding.get_ids()))
    }

    /// The text of ids, without special tokens; what is no id has no text.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        let text = self.tokenizer.decode(&ids, true);
        let text = text.map_err(|error| Error::invalid(format!("cannot decode {} ids: {error}", ids.len())))?;
        Ok(if self.cleans_up { cleaned_up(&text) } else { text })
    }

    /// Writes it to `folder` as transformers' fast classes are saved: `tokenizer.json` and `tokenizer_config.json`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("tokenizer.json");
        let text = self.tokenizer.to_string(false).map_err(|error| broken(&path, &error))?;
        write_whole(&path, text.as_bytes())?;
        let SpecialIds { bos, eos, pad, unk, .. } = self.ids;
        let mut config =
            json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": self.cleans_up });
        for (role, id) in [("bos_token", bos), ("eos_token", eos), ("pad_token", pad), ("unk_token", unk)] {
            if let Some(token) = id.and_then(|id| self.tokenizer.id_to_token(u32::try_from(id).ok()?)) {
                config[role] = json!(token);
            }
        }
        if let Some(template) = &self.chat_template {
            config["chat_template"] = json!(template);
        }
        write_json(&folder.join("tokenizer_config.json"), &config)
    }

    /// Decodes ids as they come.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    fn lacks(&self, what: &str) -> Error {
        Error::file(&self.origin, format!("its tokenizer has no {what}; name one in tokenizer_config.json"))
    }
}

/// At which end texts are filled up and cut.
#[derive(Debug, Clone, Copy, Default)]
struct Sides {
    pads_left: bool,
    cuts_left: bool,
}

impl Sides {
    fn of(tokenizer: &Tokenizer, special: &SpecialTokens) -> Self {
        let padding =
            tokenizer.get_padding().is_some_and(|padding| matches!(padding.direction, PaddingDirection::Left));
        let cut = tokenizer.get_truncation().is_some_and(|cut| matches!(cut.direction, TruncationDirection::Left));
        let left = |name: &str, file: bool| special.text(name).map_or(file, |side| side == "left");
        Self { pads_left: left("padding_side", padding), cuts_left: left("truncation_side", cut) }
    }
}

fn whole_file(folder: &Path, path: &Path, bytes: &[u8]) -> Result<(Tokenizer, SpecialTokens)> {
    let listed: AddedTokens =
        serde_json::from_slice(bytes).map_err(|error| Error::file(path, format!("is broken JSON: {error}")))?;
    let listed = json!({ "added_tokens": listed.added_tokens });
    let special = SpecialTokens::read(folder, Some(&listed), &[])?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| broken(path, &error))?;
    vocabulary_files::add_tokens(&mut tokenizer, &special, folder)?;
    Ok((tokenizer, special))
}

fn broken(path: &Path, error: &tokenizers::Error) -> Error {
    Error::file(path, format!("is not a readable tokenizer: {error}"))
}

/// An id of `config.json`; where it is a list, the first.
fn configured(config: &Map<String, Value>, field: &str) -> Option<i64> {
    let value = config.get(field)?;
    value.as_i64().or_else(|| value.get(0)?.as_i64())
}

fn numbers(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|&id| i64::from(id)).collect()
}

/// transformers' `clean_up_tokenization`.
fn cleaned_up(text: &str) -> String {
    const SPACED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    SPACED.iter().fold(text.to_owned(), |text, (spaced, close)| text.replace(spaced, close))
}
