//! CLIP's byte-level BPE tokenizer, with the ids of transformers' `CLIPTokenizer`.
//!
//! As there, the pipeline is always CLIP's own: from `tokenizer.json` only vocabulary, merges and added tokens are
//! taken. Reference: transformers `tokenization_clip.py`.

use super::bpe_files::{self, BpeFiles};
use super::json_files::optional_json;
use super::special_tokens::SpecialTokens;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, Sequence as Normalizers, NFC};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

/// Positions of CLIP's text encoder, where the configuration names no length.
const DEFAULT_MAX_LENGTH: usize = 77;
/// Start, end and unknown tokens where the configuration names none; padding is with the end token.
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const DEFAULT_TOKENS: [(&str, &str); 4] =
    [("bos_token", START), ("eos_token", END), ("unk_token", END), ("pad_token", END)];
/// Words, contractions, single digits, runs of anything else that is no space.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A model's CLIP tokenizer. Texts are padded and cut to one length, as for training.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    end_id: i64,
    pad_id: i64,
}

/// The end of a text that is too long for the text encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of the whole text.
    pub tokens: usize,
    /// Tokens that are read, from the first.
    pub room: usize,
    /// The text from the first token on that is not read.
    pub lost: String,
}

impl ClipTokenizer {
    /// Reads a `tokenizer` folder: `tokenizer.json`, or `vocab.json` with `merges.txt`; with
    /// `tokenizer_config.json` and `special_tokens_map.json` where they are.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let whole = optional_json(&folder.join("tokenizer.json"))?;
        let special = SpecialTokens::read(folder, whole.as_ref(), &DEFAULT_TOKENS)?;
        let max_length = special.max_length.unwrap_or(DEFAULT_MAX_LENGTH);
        if max_length < 2 {
            return Err(Error::file(folder, format!("model_max_length is {max_length}; it must be at least 2")));
        }
        let failed = |error: tokenizers::Error| Error::file(folder, format!("is not a CLIP tokenizer: {error}"));
        let bpe = match whole {
            Some(whole) => bpe_of_tokenizer_json(folder, whole, special.name("unk_token").unwrap_or(END))?,
            None => bpe_of_vocabulary(folder, special.name("unk_token").unwrap_or(END))?,
        };
        let mut tokenizer = Tokenizer::new(bpe);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(failed)?;
        let normalizers = Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        tokenizer.with_normalizer(Some(normalizers)).map_err(failed)?;
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true);
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.map_err(failed)?.into(), bytes.into()])));
        tokenizer.add_tokens(special.added.iter().cloned()).map_err(failed)?;

        let token = |role: &str| {
            let name = special.name(role).unwrap_or(END);
            let id = tokenizer.token_to_id(name);
            id.map(|id| (name.to_owned(), id))
                .ok_or_else(|| Error::file(folder, format!("its vocabulary has no {role} `{name}`")))
        };
        let (start, end, (_, pad)) = (token("bos_token")?, token("eos_token")?, token("pad_token")?);
        let (end_id, pad_id) = (i64::from(end.1), i64::from(pad));
        let frame = RobertaProcessing::new(end, start).trim_offsets(false).add_prefix_space(false);
        tokenizer.with_post_processor(Some(frame));
        Ok(Self { tokenizer, max_length, end_id, pad_id })
    }

    /// The same with texts padded with `token`, where the vocabulary has it.
    pub fn padded_with(self, token: &str) -> Self {
        let pad_id = self.tokenizer.token_to_id(token).map_or(self.pad_id, i64::from);
        Self { pad_id, ..self }
    }

    /// A text's ids between the start and end tokens, padded and cut to [`ClipTokenizer::max_length`].
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let mut ids = self.all_ids(text)?;
        if ids.len() > self.max_length {
            ids.truncate(self.max_length - 1);
            ids.push(self.end_id);
        }
        ids.resize(self.max_length, self.pad_id);
        Ok(ids)
    }

    /// What [`ClipTokenizer::encode`] cuts off a text, where it does.
    pub fn cut(&self, text: &str) -> Result<Option<Cut>> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| untokenized(text, &error))?;
        let (tokens, room) = (encoding.len(), self.max_length - 2);
        let Some(&(start, _)) = encoding.get_offsets().get(room) else { return Ok(None) };
        let lost = text.get(start..).unwrap_or_default().trim().to_owned();
        Ok(Some(Cut { tokens, room, lost }))
    }

    /// The number of ids of each encoded text: 77 for Stable Diffusion.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id that short texts are filled with: the end token's in Stable Diffusion 1.x, 0 (`!`) in 2.x.
    pub fn pad_id(&self) -> i64 {
        self.pad_id
    }

    /// A text's ids between the start and end tokens, however many.
    fn all_ids(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode_fast(text, true);
        let encoding = encoding.map_err(|error| untokenized(text, &error))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}

fn untokenized(text: &str, error: &tokenizers::Error) -> Error {
    Error::invalid(format!("cannot tokenize {text:?}: {error}"))
}

fn bpe_of_tokenizer_json(folder: &Path, mut whole: Value, unknown: &str) -> Result<BPE> {
    let path = folder.join("tokenizer.json");
    let (vocabulary, merges) = match whole.get_mut("model").and_then(Value::as_object_mut) {
        Some(model) => (take(model, "vocab"), take(model, "merges")),
        None => (None, None),
    };
    let (Some(vocabulary), Some(merges)) = (vocabulary, merges) else {
        return Err(Error::file(path, "has no BPE vocabulary and merges; is it a CLIP tokenizer?"));
    };
    bpe(BpeFiles::parse(&path, vocabulary, merges)?, &path, unknown)
}

fn take(model: &mut Map<String, Value>, field: &str) -> Option<Value> {
    model.get_mut(field).map(Value::take).filter(|value| !value.is_null())
}

fn bpe_of_vocabulary(folder: &Path, unknown: &str) -> Result<BPE> {
    match BpeFiles::read(folder)? {
        Some(files) => bpe(files, &folder.join(bpe_files::VOCABULARY), unknown),
        None => Err(Error::file(folder, "has neither tokenizer.json nor vocab.json and merges.txt")),
    }
}

fn bpe(files: BpeFiles, path: &Path, unknown: &str) -> Result<BPE> {
    files.build(path, |builder| builder.unk_token(unknown.to_owned()).end_of_word_suffix("</w>".to_owned()))
}
