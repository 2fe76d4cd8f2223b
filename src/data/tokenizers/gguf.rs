//! The tokenizer that a GGUF file's metadata describes (`tokenizer.ggml.*`).
//! Pre-tokenizers: llama.cpp `llama-vocab.cpp`; what `llama` is made of: transformers `tokenization_llama.py`.

use super::bpe_files::BpeFiles;
use super::language::SpecialIds;
use crate::error::{Error, Result};
use crate::weights::gguf::{GgufFile, Metadata};
use std::collections::HashMap;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::Merges;
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// `tokenizer.ggml.token_type` of special tokens, and of others that are found in a text as they are.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
/// SentencePiece's space.
const SPACE: char = '▁';

/// How a text is cut before byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// GPT-2's pattern.
    Gpt2,
    /// The same, behind a cut around each digit.
    Digits,
    /// A pattern of its own, with at most so many digits together; `whole` words of the vocabulary are not merged.
    Pattern { digits: &'static str, whole: bool },
}

const LLAMA3: Words = Words::Pattern { digits: "{1,3}", whole: true };
const QWEN2: Words = Words::Pattern { digits: "", whole: false };

/// By `tokenizer.ggml.pre`.
const WORDS: [(&str, Words); 14] = [
    ("gpt-2", Words::Gpt2),
    ("olmo", Words::Gpt2),
    ("smollm", Words::Digits),
    ("starcoder", Words::Digits),
    ("command-r", Words::Digits),
    ("refact", Words::Digits),
    ("codeshell", Words::Digits),
    ("llama3", LLAMA3),
    ("llama-v3", LLAMA3),
    ("llama-bpe", LLAMA3),
    ("falcon3", LLAMA3),
    ("qwen2", QWEN2),
    ("deepseek-r1-qwen", QWEN2),
    ("megrez", QWEN2),
];

/// The tokenizer and its special ids.
pub(super) fn read(file: &GgufFile) -> Result<(Tokenizer, SpecialIds)> {
    let refuse = |cause: String| Error::file(file.path(), cause);
    let vocabulary = Vocabulary::read(file.metadata()).map_err(refuse)?;
    let mut tokenizer = vocabulary.tokenizer(file)?;
    let added = vocabulary.added();
    tokenizer.add_tokens(added).map_err(|error| refuse(format!("its tokenizer cannot be used: {error}")))?;
    if let Some(frame) = vocabulary.frame().map_err(refuse)? {
        tokenizer.with_post_processor(Some(frame));
    }
    Ok((tokenizer, vocabulary.ids))
}

struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
    ids: SpecialIds,
    /// How words are cut; none: SentencePiece's.
    words: Option<Words>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> std::result::Result<Self, String> {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        if tokens.is_empty() {
            return Err("has no vocabulary (`tokenizer.ggml.tokens`)".to_owned());
        }
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.integer(&key)? {
                Some(id) if usize::try_from(id).is_ok_and(|id| id < tokens.len()) => Ok(Some(id)),
                Some(id) => Err(format!("has a `{key}` of {id}, but {} tokens", tokens.len())),
                None => Ok(None),
            }
        };
        let ids = SpecialIds {
            bos: id("bos")?,
            eos: id("eos")?,
            pad: id("padding")?,
            unk: id("unknown")?,
            decoder_start: None,
        };
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        Ok(Self { metadata, types, ids, words: words(metadata)?, tokens })
    }

    fn tokenizer(&self, file: &GgufFile) -> Result<Tokenizer> {
        let refuse = |cause: String| Error::file(file.path(), cause);
        let vocabulary = self.tokens.iter().zip(0u32..).map(|(token, id)| ((*token).to_owned(), id)).collect();
        let merges = self.merges().map_err(refuse)?;
        let files = BpeFiles { vocabulary, merges };
        let unusable = |error: tokenizers::Error| refuse(format!("its tokenizer cannot be used: {error}"));
        match self.words {
            Some(words) => {
                let whole = matches!(words, Words::Pattern { whole: true, .. });
                let model = files.build(file.path(), |builder| builder.ignore_merges(whole))?;
                let mut tokenizer = Tokenizer::new(model);
                tokenizer.with_pre_tokenizer(Some(words.pre_tokenizer().map_err(unusable)?));
                tokenizer.with_decoder(Some(ByteLevel::default()));
                Ok(tokenizer)
            }
            None => {
                let unknown = self.ids.unk.and_then(|id| self.tokens.get(usize::try_from(id).ok()?));
                let unknown = (*unknown.unwrap_or(&"<unk>")).to_owned();
                let model = files
                    .build(file.path(), |builder| builder.unk_token(unknown).fuse_unk(true).byte_fallback(true))?;
                let spaced = self.metadata.flag("tokenizer.ggml.add_space_prefix").map_err(refuse)?.unwrap_or(true);
                let mut tokenizer = Tokenizer::new(model);
                let scheme = if spaced { PrependScheme::First } else { PrependScheme::Never };
                tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, false)));
                tokenizer.with_decoder(Some(sentence_piece_decoder(spaced).map_err(unusable)?));
                Ok(tokenizer)
            }
        }
    }

    /// The merges that the file lists, or for SentencePiece those that its scores stand for.
    fn merges(&self) -> std::result::Result<Merges, String> {
        const SCORES: &str = "tokenizer.ggml.scores";
        if let Some(listed) = self.metadata.texts("tokenizer.ggml.merges")? {
            let pair = |merge: &str| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
            let merges: Option<Merges> = listed.into_iter().map(pair).collect();
            return merges.ok_or_else(|| "has a merge in `tokenizer.ggml.merges` that is not a pair".to_owned());
        }
        match (self.words, self.metadata.floats(SCORES)?) {
            (None, Some(scores)) if scores.len() == self.tokens.len() => Ok(scored_merges(&self.tokens, &scores)),
            (None, _) => Err(format!("needs a score for each token (`{SCORES}`)")),
            (Some(_), _) => Err("has no merges (`tokenizer.ggml.merges`)".to_owned()),
        }
    }

    fn added(&self) -> Vec<AddedToken> {
        let added = |(token, kind): (&&str, &i64)| {
            let special = *kind == CONTROL;
            (special || *kind == USER_DEFINED).then(|| AddedToken::from(*token, special).normalized(false))
        };
        self.tokens.iter().zip(&self.types).filter_map(added).collect()
    }

    /// What stands before and behind each text.
    fn frame(&self) -> std::result::Result<Option<TemplateProcessing>, String> {
        // llama.cpp's defaults for files without the flag.
        let begins = matches!(self.words, None | Some(LLAMA3));
        let begins = self.metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
        let ends = self.metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let mut template = vec!["$A"];
        let mut tokens = Vec::new();
        for (wanted, name, id) in [(begins, "bos", self.ids.bos), (ends, "eos", self.ids.eos)] {
            let Some(id) = id.filter(|_| wanted) else { continue };
            let text = self.tokens.get(id as usize).copied().unwrap_or_default();
            let token = SpecialToken::new(name.to_owned(), vec![id as u32], vec![text.to_owned()]);
            tokens.push(token.map_err(|error| error.to_string())?);
            template.insert(if name == "bos" { 0 } else { template.len() }, name);
        }
        if tokens.is_empty() {
            return Ok(None);
        }
        let builder = TemplateProcessing::builder().try_single(template.join(" "))?.special_tokens(tokens).build();
        builder.map(Some).map_err(|error| error.to_string())
    }
}

fn words(metadata: &Metadata) -> std::result::Result<Option<Words>, String> {
    const CURE: &str = "take the model's tokenizer.json instead";
    match metadata.text("tokenizer.ggml.model")? {
        Some("llama") => return Ok(None),
        Some("gpt2") => {}
        other => {
            let name = other.unwrap_or("unknown");
            return Err(format!("has a tokenizer of the kind {name}; gpt2 and llama are read: {CURE}"));
        }
    }
    let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let words = WORDS.iter().find(|(known, _)| *known == name).map(|(_, words)| Some(*words));
    words.ok_or_else(|| {
        let known = WORDS.map(|(known, _)| known).join(", ");
        format!("cuts words as `{name}` (`tokenizer.ggml.pre`), which is not read; these are: {known}; else {CURE}")
    })
}

impl Words {
    fn pre_tokenizer(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let bytes = |use_regex: bool| ByteLevel::new(false, true, use_regex);
        Ok(match self {
            Self::Gpt2 => bytes(true).into(),
            Self::Digits => PreTokenizers::new(vec![Digits::new(true).into(), bytes(true).into()]).into(),
            Self::Pattern { digits, .. } => {
                let pattern = format!(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                );
                let split = Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false)?;
                PreTokenizers::new(vec![split.into(), bytes(false).into()]).into()
            }
        })
    }
}

fn sentence_piece_decoder(spaced: bool) -> tokenizers::Result<Decoders> {
    let mut decoders =
        vec![Replace::new(SPACE.to_string(), " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if spaced {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Decoders::new(decoders))
}

/// Each way to make a token of two others, the token with the highest score first, and for one token the way with the longest
/// first part: the order in which SentencePiece merges.
fn scored_merges(tokens: &[&str], scores: &[f32]) -> Merges {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let mut ways: Vec<(&str, &str)> = token.char_indices().skip(1).map(|(at, _)| token.split_at(at)).collect();
        ways.retain(|(left, right)| ids.contains_key(left) && ids.contains_key(right));
        ways.sort_by_key(|(left, right)| (ids[left], ids[right]));
        merges.extend(ways.into_iter().map(|way| (score, way)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|(a, left), (b, right)| {
        let key = |way: &(&str, &str)| (length(way.0), length(way.1));
        b.total_cmp(a).then_with(|| key(right).cmp(&key(left)))
    });
    merges.into_iter().map(|(_, (left, right))| (left.to_owned(), right.to_owned())).collect()
}
