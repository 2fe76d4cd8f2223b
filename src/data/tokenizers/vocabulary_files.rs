//! Tokenizers of folders that have a vocabulary but no `tokenizer.json`, put together as transformers' classes do:
//! GPT-2's byte-level BPE (OPT too), RoBERTa's, BERT's WordPiece.
//! Reference: transformers `tokenization_gpt2.py`, `tokenization_roberta.py`, `tokenization_bert.py`.

use super::bpe_files::{self, BpeFiles};
use super::json_files::optional_object;
use super::special_tokens::SpecialTokens;
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use serde_json::Value;
use std::path::Path;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::Tokenizer;

const GPT2_TOKENS: [(&str, &str); 3] =
    [("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];
const ROBERTA_TOKENS: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const BERT_TOKENS: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
const BERT_VOCABULARY: &str = "vocab.txt";

/// The tokenizer of `vocab.json` with `merges.txt`, or of `vocab.txt`, in `folder`, and its special tokens.
pub(super) fn read(folder: &Path) -> Result<(Tokenizer, SpecialTokens)> {
    if let Some(files) = BpeFiles::read(folder)? {
        return byte_level(folder, files);
    }
    if folder.join(BERT_VOCABULARY).exists() {
        return word_piece(folder);
    }
    let sentence_piece = ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"];
    Err(match sentence_piece.into_iter().find(|name| folder.join(name).exists()) {
        Some(name) => Error::file(
            folder,
            format!(
                "has its tokenizer in {name} alone, which is not read; make tokenizer.json of it: in Python, \
                 transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            ),
        ),
        None => Error::file(
            folder,
            "has no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt, nor vocab.txt; copy the model's own there",
        ),
    })
}

fn byte_level(folder: &Path, files: BpeFiles) -> Result<(Tokenizer, SpecialTokens)> {
    let is_roberta = is_roberta(folder)?;
    let defaults = if is_roberta { &ROBERTA_TOKENS[..] } else { &GPT2_TOKENS };
    let special = SpecialTokens::read(folder, None, defaults)?;
    let spaced = special.flag("add_prefix_space").unwrap_or(false);
    let mut tokenizer = Tokenizer::new(files.build(&folder.join(bpe_files::VOCABULARY), |builder| builder)?);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(spaced, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    add_tokens(&mut tokenizer, &special, folder)?;
    if is_roberta {
        frame(&mut tokenizer, &special, folder, &["cls_token"], &["sep_token"])?;
    }
    Ok((tokenizer, special))
}

fn is_roberta(folder: &Path) -> Result<bool> {
    let class = optional_object(&folder.join("tokenizer_config.json"))?.remove("tokenizer_class");
    let model_type = optional_object(&folder.join("config.json"))?.remove("model_type");
    let name = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_lowercase));
    Ok(name(class).or(name(model_type)).is_some_and(|name| name.contains("roberta")))
}

fn word_piece(folder: &Path) -> Result<(Tokenizer, SpecialTokens)> {
    let special = SpecialTokens::read(folder, None, &BERT_TOKENS)?;
    let path = folder.join(BERT_VOCABULARY);
    let text = regular_file::read_text(&path, FileKind::TOKENIZER)?;
    let vocabulary: Vocab = text.lines().zip(0u32..).map(|(token, id)| (token.to_owned(), id)).collect();
    let unknown = special.name("unk_token").unwrap_or_default().to_owned();
    let model = WordPiece::builder().vocab(vocabulary);
    let model = model.unk_token(unknown).build().map_err(|error| failed(folder, &error))?;
    let normalizer = BertNormalizer::new(
        true,
        special.flag("tokenize_chinese_chars").unwrap_or(true),
        special.flag("strip_accents"),
        special.flag("do_lower_case").unwrap_or(true),
    );
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|error| failed(folder, &error))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    add_tokens(&mut tokenizer, &special, folder)?;
    frame(&mut tokenizer, &special, folder, &["cls_token"], &["sep_token"])?;
    Ok((tokenizer, special))
}

/// Lets the special tokens be found in texts. Those that are named but have no id would get one that the model has no
/// embedding for: they are left out.
pub(super) fn add_tokens(tokenizer: &mut Tokenizer, special: &SpecialTokens, origin: &Path) -> Result<()> {
    let (listed, named) = special.added.split_at(special.listed);
    let known: Vec<_> = named.iter().filter(|token| tokenizer.token_to_id(&token.content).is_some()).collect();
    let tokens = listed.iter().chain(known).cloned();
    tokenizer.add_tokens(tokens).map(drop).map_err(|error| failed(origin, &error))
}

/// Puts the tokens of roles before and behind each text.
pub(super) fn frame(
    tokenizer: &mut Tokenizer,
    special: &SpecialTokens,
    origin: &Path,
    before: &[&str],
    behind: &[&str],
) -> Result<()> {
    let token = |role: &&str| {
        let name =
            special.name(role).ok_or_else(|| Error::file(origin, format!("names no {role} for its tokenizer")))?;
        let id = tokenizer.token_to_id(name);
        let id = id.ok_or_else(|| Error::file(origin, format!("its vocabulary has no {role} `{name}`")))?;
        SpecialToken::new((*role).to_owned(), vec![id], vec![name.to_owned()]).map_err(|error| failed(origin, &error))
    };
    let tokens = before.iter().chain(behind).map(token).collect::<Result<Vec<_>>>()?;
    let template = [before, &["$A"], behind].concat().join(" ");
    let processing = TemplateProcessing::builder()
        .try_single(template)
        .map_err(|error| Error::file(origin, error))?
        .special_tokens(tokens)
        .build()
        .map_err(|error| Error::file(origin, error.to_string()))?;
    tokenizer.with_post_processor(Some(processing));
    Ok(())
}

fn failed(origin: &Path, error: &tokenizers::Error) -> Error {
    Error::file(origin, format!("its tokenizer cannot be used: {error}"))
}
