//! Tokenizers, tables and batches for language models equal transformers', Python's csv and json, and transformers' collators.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::{made, python, read_json};
use lorabooth::data::language_dataset::{LanguageDataOptions, LanguageDataset, LanguageTask};
use lorabooth::data::prompt_template::PromptTemplate;
use lorabooth::data::records::Records;
use lorabooth::data::tokenizers::LanguageTokenizer;
use lorabooth::error::Result;
use lorabooth::weights::gguf::GgufFile;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

fn file(name: &str) -> PathBuf {
    made("language_data.py", "language", &json!({})).join(name)
}

fn tokenizer(name: &str) -> Result<LanguageTokenizer> {
    match name.starts_with("gguf_") {
        true => LanguageTokenizer::from_gguf(&GgufFile::open(&file(&format!("{name}.gguf")))?),
        false => LanguageTokenizer::from_folder(&file(name)),
    }
}

fn ids(value: &Value) -> Vec<i64> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn ids_and_texts_equal_those_of_transformers_in_every_layout() {
    let texts: Vec<String> = serde_json::from_value(read_json(file("texts.json"))).unwrap();
    let expected = read_json(file("tokenized.json"));
    assert_eq!((texts.len(), expected.as_object().unwrap().len()), (406, 18));
    for (name, expected) in expected.as_object().unwrap() {
        let tokenizer = tokenizer(name).unwrap();
        let special = tokenizer.special_ids();
        assert_eq!(
            json!({ "bos": special.bos, "eos": special.eos, "pad": special.pad, "unk": special.unk }),
            expected["special"],
            "{name}"
        );
        assert_eq!(tokenizer.vocabulary_size(), expected["size"], "{name}");
        if !name.starts_with("gguf_") {
            assert_eq!(tokenizer.pads_left(), expected["pads_left"], "{name}");
        }
        for (index, text) in texts.iter().enumerate() {
            let whole = tokenizer.encode(text, 100_000).unwrap();
            assert_eq!((whole.ids.clone(), whole.cut), (ids(&expected["ids"][index]), 0), "{name}: {text:?}");
            let cut = tokenizer.encode(text, 12).unwrap();
            assert_eq!(cut.ids, ids(&expected["cut"][index]), "{name}: {text:?}");
            assert_eq!(cut.cut, whole.ids.len() - cut.ids.len(), "{name}: {text:?}");
            assert_eq!(tokenizer.encode_bare(text).unwrap(), ids(&expected["bare"][index]), "{name}: {text:?}");
            let decoded = tokenizer.decode(&whole.ids).unwrap();
            assert_eq!(decoded, expected["decoded"][index], "{name}: {text:?}");
            let mut stream = tokenizer.stream();
            let mut streamed: String = whole.ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            streamed += &stream.finish().unwrap();
            // WordPiece's decoder and transformers' clean-up look at more than the tokens just before.
            if !name.starts_with("bert") && name != "t5" {
                assert_eq!(streamed, decoded, "{name}: {text:?}");
            }
        }
    }
    assert_eq!(tokenizer("t5").unwrap().special_ids().decoder_start, Some(0));
}

#[test]
fn a_tokenizer_that_is_missing_broken_or_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refusal = || LanguageTokenizer::from_folder(path).err().unwrap().to_string();
    assert!(
        refusal().contains("neither tokenizer.json, nor vocab.json and merges.txt, nor vocab.txt"),
        "{}",
        refusal()
    );
    fs::write(path.join("spiece.model"), "x").unwrap();
    assert!(refusal().contains("spiece.model alone"), "{}", refusal());
    fs::write(path.join("vocab.txt"), "[PAD]\n[UNK]\na\n").unwrap();
    assert!(refusal().contains("no cls_token `[CLS]`"), "{}", refusal());
    fs::write(path.join("vocab.json"), r#"{"a": 0}"#).unwrap();
    assert!(refusal().contains("merges.txt"), "{}", refusal());
    for (content, says) in
        [("{", "broken JSON"), ("{}", "not a readable tokenizer"), (r#"{"added_tokens": 1}"#, "broken")]
    {
        fs::write(path.join("tokenizer.json"), content).unwrap();
        assert!(refusal().contains(says) && !refusal().contains('\n'), "{}", refusal());
    }
    let opt = tokenizer("opt").unwrap();
    assert!(opt.check_fits(900).is_ok());
    let error = opt.check_fits(899).unwrap_err().to_string();
    assert!(error.contains("900 tokens, but the model embeds 899"), "{error}");

    let gguf = fs::read(file("gguf_smollm.gguf")).unwrap();
    let path = path.join("changed.gguf");
    for (from, to, says) in [
        ("smollm", "smallm", "cuts words as `smallm`"),
        ("gpt2", "bert", "of the kind bert"),
        ("tokenizer.ggml.merges", "tokenizer.ggml.mergez", "no merges"),
        ("tokenizer.ggml.tokens", "tokenizer.ggml.tokenz", "no vocabulary"),
    ] {
        let at = gguf.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut changed = gguf.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, changed).unwrap();
        let error = LanguageTokenizer::from_gguf(&GgufFile::open(&path).unwrap()).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_tokenizer_of_a_gguf_file_is_written_as_transformers_and_we_read_it() {
    let texts: Vec<String> = serde_json::from_value(read_json(file("texts.json"))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let expected = read_json(file("tokenized.json"));
    let names = expected.as_object().unwrap().keys().filter(|name| name.starts_with("gguf_"));
    for name in names.clone() {
        let written = folder.path().join(name);
        tokenizer(name).unwrap().write(&written).unwrap();
        let again = LanguageTokenizer::from_folder(&written).unwrap();
        for (text, expected) in texts.iter().zip(expected[name]["ids"].as_array().unwrap()) {
            assert_eq!(again.encode(text, 100_000).unwrap().ids, ids(expected), "{name}: {text:?}");
        }
        assert_eq!(again.special_ids(), tokenizer(name).unwrap().special_ids(), "{name}");
    }
    let out = folder.path().join("tokenized.json");
    let samples = file("texts.json");
    let given = [out.as_path(), folder.path(), &samples].map(|path| path.to_str().unwrap());
    python("tokenized.py", &given);
    let theirs = read_json(&out);
    for name in names {
        assert_eq!(theirs[name], expected[name]["ids"], "{name}");
    }
}

fn rows(path: &Path, columns: &[&str]) -> Result<Vec<BTreeMap<String, String>>> {
    let records = Records::read(path, columns)?;
    let row = |record: lorabooth::data::records::Record| {
        columns.iter().map(|&name| (name.to_owned(), record.get(name).unwrap().to_owned())).collect()
    };
    Ok(records.iter().map(row).collect())
}

const COLUMNS: [&str; 3] = ["Tweet text", "na\"me", "label"];

#[test]
fn tables_are_read_as_python_reads_them() {
    let expected = read_json(file("tables.json"));
    for name in ["table.csv", "table.tsv", "unix.csv", "unix.tsv", "table.jsonl"] {
        let expected = if name.starts_with("unix") { &expected[name] } else { &expected["rows"] };
        assert_eq!(json!(rows(&file(name), &COLUMNS).unwrap()), *expected, "{name}");
    }
    let numbers = rows(&file("table.jsonl"), &["number", "flag"]).unwrap();
    assert_eq!(json!(numbers[..2]), json!([{ "number": "0.0", "flag": "true" }, { "number": "0.5", "flag": "false" }]));
    let records = Records::read(&file("table.jsonl"), &["label"]).unwrap();
    // A blank line stands behind the first row.
    assert_eq!(records.iter().take(3).map(|record| record.line()).collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn broken_tables_are_refused_with_the_line() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, says) in [
        ("a.csv", &b""[..], "is empty"),
        ("b.csv", b"text,label\n", "has no rows"),
        ("c.csv", b"text,label\na,b\nc\n", "line 3 has 1 field, but the header names 2"),
        ("d.csv", b"text,label\na,b\n\n\xFF,b\n", "line 4 is not UTF-8"),
        ("crlf.csv", b"text,label\r\n\r\na,b\r\n\"c\r\nd\",e\r\nf\r\n", "line 6 has 1 field"),
        ("e.csv", b"text,other\na,b\n", "no column `label`; there are: `text`, `other`"),
        ("f.csv", b"text,label\na,b\nc,\"d\ne,f\n", "opened in line 3 is never closed"),
        ("g.csv", b"text,label,text\na,b,c\n", "two columns `text`"),
        ("h.tsv", b"text,label\na,b\n", "no column `label`; there are: `text,label`"),
        ("a.jsonl", b"", "has no rows"),
        ("b.jsonl", b"{\"text\": \"a\", \"label\": 1}\n\n{\"text\": ", "line 3 is not a JSON object"),
        ("c.jsonl", b"{\"text\": \"a\", \"label\": 1}\n[1]\n", "line 2 is not a JSON object"),
        ("d.jsonl", b"{\"text\": \"a\", \"label\": null}\n", "line 1: `label` is null"),
        ("e.jsonl", b"{\"text\": [\"a\"], \"label\": 1}\n", "line 1: `text` is a list"),
        ("f.jsonl", b"{\"text\": {\"a\": 1}, \"label\": 1}\n", "line 1: `text` is an object"),
        (
            "g.jsonl",
            b"{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\"}\n",
            "line 2 has no column `label`; there are: `text`",
        ),
        ("h.jsonl", b"{\"text\": \"\xFF\", \"label\": 1}\n", "line 1 is not UTF-8"),
        ("i.json", b"[{\"text\": \"a\", \"label\": 1}]", "one JSON list"),
        ("a.parquet", b"", "not a readable Parquet file"),
        ("b.parquet", b"PAR1 and no more PAR1", "not a readable Parquet file"),
        ("a.txt", b"a", "must be .jsonl, .csv, .tsv or .parquet"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = Records::read(&path, &["text", "label"]).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{name}: {error}");
    }
    let quoted = folder.path().join("quoted.csv");
    fs::write(&quoted, "text,label\n5\" nail,\"a \"\"b\"\"\"").unwrap();
    assert_eq!(rows(&quoted, &["text", "label"]).unwrap()[0]["label"], "a \"b\"");
    assert!(Records::read(&folder.path().join("none.csv"), &["text"]).unwrap_err().to_string().contains("cannot"));
}

/// What `pyarrow.parquet.write_table` wrote: two row groups, Zstandard, dictionaries; texts, doubles, int64, uint32, booleans, and
/// columns that are not read: a null, a list, a struct, a timestamp, bytes.
const PYARROW: &[u8] = include_bytes!("../support/table.parquet");

#[test]
fn parquet_columns_are_read_and_others_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    fs::write(&path, PYARROW).unwrap();
    let columns = ["text", "score", "label", "big", "flag"];
    let found = rows(&path, &columns).unwrap();
    let row = |text: &str, score: &str, label: &str, big: &str, flag: &str| {
        let values = [text, score, label, big, flag].map(str::to_owned);
        columns.map(str::to_owned).into_iter().zip(values).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(
        found,
        [
            row("Two things are infinite: ", "1.0", "-1", "4294967295", "true"),
            row("naïve 犬 🐶\n\"quoted\", comma", "-0.25", "9007199254740993", "0", "false"),
            row("", "1e300", "0", "7", "true"),
        ]
    );
    let error = |column: &str| Records::read(&path, &[column]).unwrap_err().to_string();
    for (column, says) in [
        ("nothing", "row 2: `nothing` is null"),
        ("list", "`list` is nested"),
        ("struct", "`struct` is nested"),
        ("when", "neither texts nor numbers"),
        ("bytes", "not UTF-8"),
        ("other", "no column `other`; there are: `text`, `score`"),
    ] {
        assert!(error(column).contains(says), "{column}: {}", error(column));
    }
    // Every cut and every turned byte is an error or other values, never a panic.
    for at in 0..PYARROW.len() {
        fs::write(&path, &PYARROW[..at]).unwrap();
        assert!(Records::read(&path, &columns).is_err(), "cut at {at}");
        let mut turned = PYARROW.to_vec();
        turned[at] ^= 0xFF;
        fs::write(&path, turned).unwrap();
        Records::read(&path, &columns).ok();
    }
}

fn options(task: LanguageTask, label: Option<&str>) -> LanguageDataOptions {
    let prompt = PromptTemplate::parse("Tweet text : {text} Label : ").unwrap();
    LanguageDataOptions { task, prompt, label_column: label.map(str::to_owned), max_length: 24 }
}

fn nested(tensor: &Tensor) -> Value {
    match tensor.dim() {
        1 => json!(Vec::<i64>::try_from(tensor).unwrap()),
        _ => json!(Vec::<Vec<i64>>::try_from(tensor).unwrap()),
    }
}

fn batch(dataset: &LanguageDataset, places: &[usize]) -> Value {
    let batch = dataset.batch(places).unwrap();
    json!({
        "input_ids": nested(&batch.input_ids),
        "attention_mask": nested(&batch.attention_mask),
        "labels": nested(&batch.labels),
    })
}

fn assert_batch(mut actual: Value, expected: &Value, what: &str) {
    for (name, expected) in expected.as_object().unwrap().iter().filter(|(name, _)| *name != "token_type_ids") {
        assert_eq!(actual[name].take(), *expected, "{what}: {name}");
    }
}

#[test]
fn batches_equal_those_of_transformers_collators() {
    let expected = read_json(file("batches.json"));
    let quotes = file("quotes.jsonl");
    for (name, task, label) in [
        ("gpt2", LanguageTask::CausalLm, None),
        ("opt", LanguageTask::CausalLm, None),
        ("t5", LanguageTask::Seq2SeqLm, Some("label")),
        ("bert", LanguageTask::SeqCls, Some("label")),
    ] {
        let mut options = options(task, label);
        if name == "bert" {
            options.prompt = PromptTemplate::column("text");
        }
        let dataset = options.training(&quotes, &tokenizer(name).unwrap()).unwrap();
        let order = dataset.order(6, 7, true).unwrap();
        let epoch: Vec<usize> = (0..order.batches_per_epoch()).flat_map(|index| order.batch(2, index)).collect();
        assert_eq!(json!(epoch), expected["order"]);
        for (index, expected) in expected[name].as_array().unwrap().iter().enumerate() {
            assert_batch(batch(&dataset, &order.batch(2, index)), expected, name);
        }
        assert!(dataset.warnings()[0].contains("longer than ⟨max_seq_length⟩ 24 tokens and are cut"));
        assert_eq!(dataset.longest(), 24);
    }
    for name in ["gpt2", "opt"] {
        let dataset =
            options(LanguageTask::CausalLm, Some("label")).training(&quotes, &tokenizer(name).unwrap()).unwrap();
        let expected = &expected[format!("{name}_answers")];
        assert_eq!(dataset.len(), expected["examples"]);
        let crowded = &dataset.warnings()[1];
        assert!(crowded.contains("have no room for an answer within ⟨max_seq_length⟩"), "{crowded}");
        assert_batch(batch(&dataset, &[0, 1, 2, 3, 4]), &expected["batch"], name);
    }
}

#[test]
fn classes_are_the_sorted_labels_and_unseen_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (training, validation) = (folder.path().join("training.csv"), folder.path().join("validation.csv"));
    fs::write(&training, "text,label\na,10\nb,9\nc,-1\nd,9\n").unwrap();
    fs::write(&validation, "text,label\na,9\nb,11\n").unwrap();
    let (bert, options) = (tokenizer("bert").unwrap(), options(LanguageTask::SeqCls, Some("label")));
    let dataset = options.training(&training, &bert).unwrap();
    assert_eq!(dataset.classes(), ["-1", "9", "10"]);
    assert_eq!(nested(&dataset.batch(&[0, 1, 2]).unwrap().labels), json!([2, 1, 0]));
    assert!(dataset.warnings().is_empty());
    assert_ne!(
        dataset.fingerprint(),
        options.training(&training, &tokenizer("bert_cased").unwrap()).unwrap().fingerprint()
    );
    let error = options.validation(&validation, &bert, &dataset).unwrap_err().to_string();
    assert!(error.contains("line 3: the label `11`") && error.contains("-1, 9, 10"), "{error}");
    for (content, says) in [
        ("text,label\na,9\nb,\n", "line 3: `label` has no label"),
        ("text,label\na,9\n", "the same label in every row"),
    ] {
        fs::write(&training, content).unwrap();
        let error = options.training(&training, &bert).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let unlabelled = LanguageDataOptions { label_column: None, ..options };
    assert!(unlabelled.training(&training, &bert).unwrap_err().to_string().contains("⟨label_column⟩"));
    let short = LanguageDataOptions { max_length: 1, label_column: Some("label".to_owned()), ..unlabelled };
    assert!(short.training(&training, &bert).unwrap_err().to_string().contains("⟨max_seq_length⟩ is 1"));
}
