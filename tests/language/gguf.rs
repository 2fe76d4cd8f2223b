//! GGUF files give the weights, metadata and configurations that gguf and transformers read in them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::{made, read, read_json};
use lorabooth::weights::gguf::{GgufFile, GgufLanguageModel, MetadataValue};
use lorabooth::weights::{Placement, WeightSet};
use serde_json::{json, Value};
use std::fs;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

fn file(name: &str) -> PathBuf {
    made("gguf_files.py", "gguf", &json!({})).join(name)
}

/// Equal to the last bit: a NaN or a -0 would tell.
fn same_bits(actual: &Tensor, expected: &Tensor) -> bool {
    let bits = |tensor: &Tensor| tensor.contiguous().view_dtype(Kind::Int);
    actual.size() == expected.size() && actual.kind() == expected.kind() && bits(actual).equal(&bits(expected))
}

#[test]
fn every_encoding_is_read_to_the_last_bit() {
    let gguf = GgufFile::open(&file("encodings.gguf")).unwrap();
    let expected = read(file("encodings.safetensors"));
    assert_eq!(gguf.names().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert_eq!(expected.len(), 8 * 5 + 5 * 4);
    for (name, expected) in &expected {
        let tensor = gguf.tensor(name).unwrap();
        let kind = match name.split('.').next() {
            Some("F16") => Kind::Half,
            Some("BF16") => Kind::BFloat16,
            _ => Kind::Float,
        };
        assert_eq!(tensor.kind(), kind, "{name}");
        assert!(same_bits(&tensor.to_kind(Kind::Float), expected), "{name}");
    }
}

#[test]
fn an_encoding_that_is_not_read_is_refused_by_name() {
    for encoding in ["IQ4_NL", "IQ2_XXS", "TQ1_0"] {
        let error = GgufFile::open(&file(&format!("refused-{encoding}.gguf"))).err().unwrap().to_string();
        assert!(error.contains(&format!("`w` is encoded as {encoding},")), "{error}");
        assert!(error.contains("F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K"), "{error}");
    }
}

/// A value as Python writes it.
fn as_json(value: &MetadataValue) -> Value {
    match value {
        MetadataValue::Unsigned(number) => json!(number),
        MetadataValue::Signed(number) => json!(number),
        MetadataValue::F32(number) => json!(f64::from(*number)),
        MetadataValue::F64(number) => json!(number),
        MetadataValue::Bool(flag) => json!(flag),
        MetadataValue::Text(text) => json!(text),
        MetadataValue::Array(elements) => elements.iter().map(as_json).collect(),
    }
}

fn family(value: &MetadataValue) -> &'static str {
    match value {
        MetadataValue::Unsigned(_) => "UINT",
        MetadataValue::Signed(_) => "INT",
        MetadataValue::F32(_) => "FLOAT32",
        MetadataValue::F64(_) => "FLOAT64",
        MetadataValue::Bool(_) => "BOOL",
        MetadataValue::Text(_) => "STRING",
        MetadataValue::Array(_) => "ARRAY",
    }
}

#[test]
fn metadata_of_every_type_is_read_in_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("version2.gguf");
    let mut bytes = fs::read(file("metadata.gguf")).unwrap();
    assert_eq!(bytes[4], 3);
    bytes[4] = 2;
    fs::write(&second, bytes).unwrap();
    let expected = read_json(file("metadata.json"));
    for path in [file("metadata.gguf"), second] {
        let gguf = GgufFile::open(&path).unwrap();
        for (key, expected) in expected.as_object().unwrap() {
            let value = gguf.metadata().get(key).unwrap();
            assert!(expected[0].as_str().unwrap().starts_with(family(value)), "{key}");
            assert_eq!(as_json(value), expected[1], "{key}");
        }
        assert_eq!(gguf.metadata().integer("u32"), Ok(Some((1 << 32) - 1)));
        assert!(gguf.metadata().integer("u64").is_err());
        assert_eq!(gguf.metadata().number("f32"), Ok(Some(1e-5)));
        let values = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4]);
        assert!(same_bits(&gguf.tensor("w").unwrap(), &values));
    }
}

fn loaded(weights: &WeightSet, key: &str, kind: Kind) -> Tensor {
    weights.load(key, &weights.shape(key).unwrap(), Placement { device: Device::Cpu, kind }).unwrap()
}

#[test]
fn language_models_have_transformers_weights_and_configuration() {
    let encodings = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];
    let encodings = encodings.map(|encoding| format!("llama-{encoding}"));
    for name in encodings.iter().map(String::as_str).chain(["llama-3", "qwen2"]) {
        let model = GgufLanguageModel::open(&file(&format!("{name}.gguf"))).unwrap();
        let (weights, expected) = (model.weights(), read(file(&format!("{name}.safetensors"))));
        assert_eq!(weights.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (key, expected) in &expected {
            assert!(same_bits(&loaded(&weights, key, Kind::Float), expected), "{name}: {key}");
            assert_eq!(loaded(&weights, key, Kind::BFloat16), expected.to_kind(Kind::BFloat16), "{name}: {key}");
        }
        let reference = read_json(file(&format!("{name}.json")));
        let config = model.config().as_object().unwrap();
        for (field, value) in config {
            match field.as_str() {
                "rope_theta" => assert_eq!(*value, reference["rope_parameters"]["rope_theta"], "{name}"),
                "rope_scaling" if value.is_null() => {
                    assert_eq!(reference["rope_parameters"]["rope_type"], "default", "{name}");
                }
                "rope_scaling" => {
                    for (field, value) in value.as_object().unwrap() {
                        assert_eq!(*value, reference["rope_parameters"][field], "{name}: {field}");
                    }
                }
                // Qwen2's are in its code.
                "head_dim" | "attention_bias" | "mlp_bias" if name == "qwen2" => {}
                _ => assert_eq!(*value, reference[field], "{name}: {field}"),
            }
        }
    }
}

#[test]
fn broken_files_are_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    let refusal = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = GgufLanguageModel::open(&path).err().map(|error| error.to_string());
        assert!(error.as_ref().is_none_or(|error| !error.contains('\n')), "{error:?}");
        error
    };
    let whole = fs::read(file("llama-Q4_1.gguf")).unwrap();
    assert_eq!(refusal(&whole), None);
    assert!(refusal(b"").is_some() && refusal(b"GGUF").is_some());
    // Every cut, and every byte of the header turned.
    let header = 4096.min(whole.len());
    for length in (0..header).chain((header..whole.len()).step_by(997)) {
        assert!(refusal(&whole[..length]).is_some(), "cut at {length}");
    }
    for at in 0..header {
        let mut turned = whole.clone();
        turned[at] ^= 0xFF;
        refusal(&turned);
    }
    for (from, to, says) in [
        ("llama.block_count", "llama.block_cnt__", "no `llama.block_count`"),
        ("blk.1.attn_q.weight", "blk.1.attn_x.weight", "`blk.1.attn_x.weight`, which a llama model does not have"),
        ("token_embd.weight", "token_embx.weight", "`token_embd.weight`; is the file complete?"),
    ] {
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut renamed = whole.clone();
        renamed[at..at + to.len()].copy_from_slice(to.as_bytes());
        let error = refusal(&renamed).unwrap();
        assert!(error.contains(says), "{error}");
    }
    let error = GgufLanguageModel::open(&file("metadata.gguf")).err().unwrap().to_string();
    assert!(error.contains("architecture test") && error.contains("llama, qwen2"), "{error}");
    let error = GgufFile::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("must be a .gguf file"), "{error}");
}
