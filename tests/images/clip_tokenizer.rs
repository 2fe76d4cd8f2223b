//! Token ids equal transformers' `CLIPTokenizer`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support;
use lorabooth::data::tokenizers::ClipTokenizer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn ids_equal_those_of_transformers_in_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    support::python("clip_tokenizer.py", &[folder.path().to_str().unwrap()]);
    let texts: Vec<String> = serde_json::from_value(read(&folder.path().join("texts.json"))).unwrap();
    let expected: BTreeMap<String, Vec<Vec<i64>>> =
        serde_json::from_value(read(&folder.path().join("ids.json"))).unwrap();
    assert_eq!(expected.keys().collect::<Vec<_>>(), ["bare", "sd1", "sd1_saved", "sd2", "sd2_saved"]);
    for (layout, expected) in expected {
        let tokenizer = ClipTokenizer::from_folder(&folder.path().join(&layout)).unwrap();
        assert_eq!(tokenizer.max_length(), 77);
        assert_eq!(tokenizer.pad_id(), if layout.starts_with("sd2") { 0 } else { 49407 });
        for (text, expected) in texts.iter().zip(expected) {
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{layout}: {text:?}");
        }
    }
    a_folder_with_absurd_or_broken_files(folder.path());
}

/// In the same test, because making the vocabulary takes Python's start-up.
fn a_folder_with_absurd_or_broken_files(folder: &Path) {
    let bare = folder.join("bare");
    fs::write(bare.join("tokenizer_config.json"), r#"{"model_max_length": 1000000000000000019884624838656}"#).unwrap();
    let tokenizer = ClipTokenizer::from_folder(&bare).unwrap();
    assert_eq!(tokenizer.encode("a photo of sks dog").unwrap().len(), 77);
    assert_eq!(tokenizer.cut("a photo of sks dog").unwrap(), None);
    assert_eq!(tokenizer.cut(&"dog ".repeat(75)).unwrap(), None);
    let text = format!("{}Élan, the CAT  sat ", "dog ".repeat(75));
    let cut = tokenizer.cut(&text).unwrap().unwrap();
    assert_eq!((cut.room, cut.lost.as_str()), (75, "Élan, the CAT  sat"));
    assert_eq!(tokenizer.cut(&"dog ".repeat(80)).unwrap().unwrap().tokens, 80);

    for (file, content, says) in [
        ("tokenizer_config.json", "{", "broken JSON"),
        ("tokenizer_config.json", r#"{"model_max_length": 1}"#, "at least 2"),
        ("tokenizer_config.json", "{}", ""),
        ("merges.txt", "zzzzz qqqqq", "do not fit together"),
        ("vocab.json", "[]", "do not fit together"),
        ("vocab.json", r#"{"a": 0}"#, "do not fit together"),
        ("tokenizer.json", r#"{"model": {"type": "Unigram", "vocab": []}}"#, "no BPE vocabulary"),
    ] {
        fs::write(bare.join(file), content).unwrap();
        match ClipTokenizer::from_folder(&bare) {
            Ok(_) => assert_eq!(says, "", "{file}: {content}"),
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{error}"),
        }
    }
    let error = ClipTokenizer::from_folder(&folder.join("nothing")).err().unwrap();
    assert!(error.to_string().contains("neither tokenizer.json nor vocab.json"), "{error}");
}
