//! CLIP's byte-level BPE tokenizer, with the ids of transformers' `CLIPTokenizer`.
//!
//! As there, the pipeline is always CLIP's own: from `tokenizer.json` only vocabulary, merges and added tokens are
//! taken. Reference: transformers `tokenization_clip.py`.

use crate::error::{Error, Result};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tokenizers::models::bpe::{Merges, Vocab, BPE};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, Sequence as Normalizers, NFC};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Positions of CLIP's text encoder, where the configuration names no length.
const DEFAULT_MAX_LENGTH: usize = 77;
/// Transformers writes 1e30 for "no limit".
const LARGEST_MAX_LENGTH: f64 = 1e6;
/// Start, end and unknown tokens where the configuration names none; padding is with the end token.
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Words, contractions, single digits, runs of anything else that is no space.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A model's CLIP tokenizer. Texts are padded and cut to one length, as for training.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    end_id: i64,
    pad_id: i64,
}

impl ClipTokenizer {
    /// Reads a `tokenizer` folder: `tokenizer.json`, or `vocab.json` with `merges.txt`; with
    /// `tokenizer_config.json` and `special_tokens_map.json` where they are.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let whole = optional_json(&folder.join("tokenizer.json"))?;
        let special = SpecialTokens::read(folder, whole.as_ref())?;
        let max_length = special.max_length;
        if max_length < 2 {
            return Err(Error::file(folder, format!("model_max_length is {max_length}; it must be at least 2")));
        }
        let failed = |error: tokenizers::Error| Error::file(folder, format!("is no CLIP tokenizer: {error}"));
        let bpe = match whole {
            Some(whole) => bpe_of_tokenizer_json(folder, whole, special.name("unk_token"))?,
            None => bpe_of_vocabulary(folder, special.name("unk_token"))?,
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
            let name = special.name(role);
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

    /// How many of a text's tokens [`ClipTokenizer::encode`] cuts off.
    pub fn cut_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.all_ids(text)?.len().saturating_sub(self.max_length))
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
        let encoding = encoding.map_err(|error| Error::invalid(format!("cannot tokenize {text:?}: {error}")))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}

/// What a tokenizer's small files say.
struct SpecialTokens {
    /// `bos_token`, `eos_token`, … to the token's text.
    names: BTreeMap<&'static str, String>,
    /// Tokens that are found in a text before it is split into words; a later one replaces an earlier one.
    added: Vec<AddedToken>,
    max_length: usize,
}

impl SpecialTokens {
    /// In the order in which transformers adds them, with CLIP's defaults.
    const ROLES: [(&'static str, Option<&'static str>); 7] = [
        ("bos_token", Some(START)),
        ("eos_token", Some(END)),
        ("unk_token", Some(END)),
        ("sep_token", None),
        ("pad_token", Some(END)),
        ("cls_token", None),
        ("mask_token", None),
    ];

    fn read(folder: &Path, whole: Option<&Value>) -> Result<Self> {
        let mut config = optional_object(&folder.join("tokenizer_config.json"))?;
        // Token texts by id: from the configuration, or in older folders from the other files.
        let mut by_id = BTreeMap::new();
        if let Some(tokens) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            by_id.extend(tokens.iter().filter_map(|(id, token)| Some((id.parse::<u64>().ok()?, added(token, false)?))));
        } else {
            let map = optional_object(&folder.join("special_tokens_map.json"))?;
            for (role, token) in map {
                config.insert(role, mark_special(token));
            }
            let older = optional_object(&folder.join("added_tokens.json"))?;
            let named =
                |text: &str| Self::ROLES.iter().any(|(role, _)| config.get(*role).and_then(text_of) == Some(text));
            by_id.extend(
                older
                    .iter()
                    .filter_map(|(text, id)| Some((id.as_u64()?, AddedToken::from(text.as_str(), named(text))))),
            );
            let listed = whole.and_then(|whole| whole.get("added_tokens")).and_then(Value::as_array);
            by_id.extend(
                listed
                    .into_iter()
                    .flatten()
                    .filter_map(|token| Some((token.get("id")?.as_u64()?, added(token, false)?))),
            );
        }
        let mut added_tokens: Vec<AddedToken> = by_id.into_values().collect();
        let listed: Vec<String> = added_tokens.iter().map(|token| token.content.clone()).collect();
        let mut names = BTreeMap::new();
        for (role, default) in Self::ROLES {
            let token = config.get(role).and_then(|token| added(token, true));
            let Some(token) = token.or_else(|| default.map(|text| AddedToken::from(text, true))) else { continue };
            names.insert(role, token.content.clone());
            if !listed.contains(&token.content) {
                added_tokens.push(token);
            }
        }
        let further = config.get("additional_special_tokens").or_else(|| config.get("extra_special_tokens"));
        for token in further.and_then(Value::as_array).into_iter().flatten().filter_map(|token| added(token, true)) {
            if !listed.contains(&token.content) {
                added_tokens.push(token);
            }
        }
        let max_length = config.get("model_max_length").and_then(Value::as_f64);
        let max_length = max_length.filter(|&length| (0.0..=LARGEST_MAX_LENGTH).contains(&length));
        Ok(Self {
            names,
            added: added_tokens,
            max_length: max_length.map_or(DEFAULT_MAX_LENGTH, |length| length as usize),
        })
    }

    fn name(&self, role: &str) -> &str {
        self.names.get(role).map_or(END, String::as_str)
    }
}

/// A token of a JSON file: its text, or an object with `content` and flags. A bare text is `special`; an object
/// without `normalized` is normalized where it is not special.
fn added(token: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = token.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |name: &str| token.get(name).and_then(Value::as_bool);
    let token = AddedToken::from(text_of(token)?, flag("special").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// An object of `special_tokens_map.json` is special whatever it says.
fn mark_special(mut token: Value) -> Value {
    if let Some(object) = token.as_object_mut() {
        object.insert("special".to_owned(), Value::Bool(true));
    }
    token
}

fn into_object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// The fields of a JSON file; none where there is no such file.
fn optional_object(path: &Path) -> Result<Map<String, Value>> {
    match optional_json(path)? {
        None => Ok(Map::new()),
        Some(Value::Object(fields)) => Ok(fields),
        Some(_) => Err(Error::file(path, "is no JSON object")),
    }
}

/// A JSON file, or none where there is no such file.
fn optional_json(path: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io("read", path, source)),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| Error::file(path, format!("is broken JSON: {error}")))
}

fn bpe_of_tokenizer_json(folder: &Path, mut whole: Value, unknown: &str) -> Result<BPE> {
    let path = folder.join("tokenizer.json");
    let model = whole.get_mut("model").map(Value::take).and_then(into_object);
    let (vocabulary, merges) = match model {
        Some(mut model) => (model.remove("vocab"), model.remove("merges")),
        None => (None, None),
    };
    let (Some(vocabulary), Some(merges)) = (vocabulary, merges) else {
        return Err(Error::file(path, "has no BPE vocabulary and merges; is it a CLIP tokenizer?"));
    };
    bpe(&path, vocabulary, merges, unknown)
}

fn bpe_of_vocabulary(folder: &Path, unknown: &str) -> Result<BPE> {
    let (vocabulary_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let Some(vocabulary) = optional_json(&vocabulary_path)? else {
        return Err(Error::file(folder, "has neither tokenizer.json nor vocab.json and merges.txt"));
    };
    let text = fs::read_to_string(&merges_path).map_err(|source| Error::io("read", &merges_path, source))?;
    let merges: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    bpe(&vocabulary_path, vocabulary, json!(merges), unknown)
}

fn bpe(path: &Path, vocabulary: Value, merges: Value, unknown: &str) -> Result<BPE> {
    let misfit = |cause: String| Error::file(path, format!("its vocabulary and merges do not fit together: {cause}"));
    let vocabulary: BTreeMap<String, u32> = serde_json::from_value(vocabulary).map_err(|e| misfit(e.to_string()))?;
    let pairs: Option<Merges> = merges.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(pair).collect();
    BPE::builder()
        .vocab_and_merges(
            vocabulary.into_iter().collect::<Vocab>(),
            pairs.ok_or_else(|| misfit("a merge is no pair".into()))?,
        )
        .unk_token(unknown.to_owned())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .fuse_unk(false)
        .build()
        .map_err(|error| misfit(error.to_string()))
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
