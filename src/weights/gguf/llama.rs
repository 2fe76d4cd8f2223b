//! A LLaMA or Qwen2 in a GGUF file as transformers has it: its `config.json`, and its weights under transformers' keys.

use super::file::GgufFile;
use super::metadata::Metadata;
use super::rope;
use crate::error::{Error, Result};
use crate::weights::weight_set::Part;
use crate::weights::WeightSet;
use serde_json::{json, Map, Value};
use std::path::Path;
use std::sync::Arc;

/// One architecture that is read.
struct Family {
    /// `general.architecture`, which is also transformers' `model_type`.
    name: &'static str,
    class: &'static str,
    /// Whether llama.cpp puts the rows of queries and keys in the order of its rotary positions.
    permuted: bool,
}

const FAMILIES: [Family; 2] = [
    Family { name: "llama", class: "LlamaForCausalLM", permuted: true },
    Family { name: "qwen2", class: "Qwen2ForCausalLM", permuted: false },
];

/// Settings that change what a model computes in a way that none of the families here does.
const NOT_COMPUTED: [&str; 5] =
    ["expert_count", "attention.sliding_window", "logit_scale", "embedding_scale", "residual_scale"];

/// A language model in one GGUF file. Nothing but its header is read before it is loaded.
pub struct GgufLanguageModel {
    file: Arc<GgufFile>,
    family: &'static Family,
    config: Value,
    heads: i64,
    key_value_heads: i64,
}

impl GgufLanguageModel {
    /// Opens `path`; an architecture or a setting that would be computed otherwise than its file says is an error.
    pub fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let refuse = |cause: String| Error::file(path, cause);
        let family = family(file.metadata()).map_err(refuse)?;
        let sizes = Sizes::read(&file, family).map_err(refuse)?;
        let scaling = rope::scaling(&file, family.name, sizes.rope_theta, sizes.head_width)?.map_err(refuse)?;
        let config = sizes.config(&file, family, scaling).map_err(refuse)?;
        let model =
            Self { file: Arc::new(file), family, config, heads: sizes.heads, key_value_heads: sizes.key_value_heads };
        model.check_tensors(sizes.head_width).map_err(refuse)?;
        Ok(model)
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// What transformers' `config.json` would say.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weights under transformers' keys, dequantised one by one as they are loaded.
    pub fn weights(&self) -> WeightSet {
        let weight = |name: &str| {
            let (key, projection) = key_of(name)?;
            let part = match projection {
                "attn_q" if self.family.permuted => Part::RotaryPairs { heads: self.heads },
                "attn_k" if self.family.permuted => Part::RotaryPairs { heads: self.key_value_heads },
                _ => Part::Whole,
            };
            Some((key, name.to_owned(), part))
        };
        WeightSet::of_file(self.file.clone(), self.file.names().filter_map(weight))
    }

    fn check_tensors(&self, head_width: i64) -> std::result::Result<(), String> {
        for name in self.file.names() {
            let Some((_, projection)) = key_of(name) else {
                if name == rope::FACTORS {
                    continue;
                }
                return Err(format!("has a tensor `{name}`, which a {} model does not have", self.family.name));
            };
            let heads = match projection {
                "attn_q" => self.heads,
                "attn_k" | "attn_v" => self.key_value_heads,
                _ => continue,
            };
            let rows = self.file.shape(name).and_then(|shape| shape.first()).copied();
            if rows != Some(heads * head_width) {
                return Err(format!("has a tensor `{name}` that is not of {heads} heads of {head_width} rows"));
            }
        }
        Ok(())
    }
}

fn family(metadata: &Metadata) -> std::result::Result<&'static Family, String> {
    const KEY: &str = "general.architecture";
    let name = Metadata::required(KEY, metadata.text(KEY))?;
    let family = FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| {
        let known = FAMILIES.map(|family| family.name).join(", ");
        format!("holds a model of the architecture {name}; in GGUF these are read: {known}")
    })?;
    if metadata.integer("split.count")?.is_some_and(|parts| parts > 1) {
        return Err("is one part of a model in several files; join them with llama.cpp's gguf-split".to_owned());
    }
    for setting in NOT_COMPUTED {
        let key = format!("{name}.{setting}");
        if metadata.number(&key)?.is_some_and(|value| value != 0.0) {
            return Err(format!("has `{key}`, which is not supported"));
        }
    }
    Ok(family)
}

/// What other numbers are made of.
struct Sizes {
    width: i64,
    heads: i64,
    key_value_heads: i64,
    head_width: i64,
    rope_theta: f64,
}

impl Sizes {
    fn read(file: &GgufFile, family: &Family) -> std::result::Result<Self, String> {
        let metadata = file.metadata();
        let key = |name: &str| format!("{}.{name}", family.name);
        let size = |name: &str| {
            let found = Metadata::required(&key(name), metadata.integer(&key(name)))?;
            (1..1 << 20).contains(&found).then_some(found).ok_or_else(|| format!("has a `{}` of {found}", key(name)))
        };
        let width = size("embedding_length")?;
        let heads = size("attention.head_count")?;
        let key_value_heads = metadata.integer(&key("attention.head_count_kv"))?.unwrap_or(heads);
        if !(1..=heads).contains(&key_value_heads) || heads % key_value_heads != 0 {
            return Err(format!("has {heads} heads that cannot share {key_value_heads} of keys and values"));
        }
        let head_width = metadata.integer(&key("attention.key_length"))?.unwrap_or(width / heads);
        for other in ["attention.value_length", "rope.dimension_count"] {
            if metadata.integer(&key(other))?.is_some_and(|found| found != head_width) {
                return Err(format!("has a `{}` that is not the heads' width {head_width}", key(other)));
            }
        }
        let rope_theta = metadata.number(&key("rope.freq_base"))?.unwrap_or(10000.0);
        Ok(Self { width, heads, key_value_heads, head_width, rope_theta })
    }

    fn config(&self, file: &GgufFile, family: &Family, scaling: Value) -> std::result::Result<Value, String> {
        let metadata = file.metadata();
        let key = |name: &str| format!("{}.{name}", family.name);
        let size = |name: &str| Metadata::required(&key(name), metadata.integer(&key(name)));
        let epsilon = key("attention.layer_norm_rms_epsilon");
        let vocabulary = file.shape("token_embd.weight").and_then(|shape| shape.first());
        let vocabulary = vocabulary.ok_or("has no tensor `token_embd.weight`; is the file complete?")?;
        let has = |name: &str| file.shape(name).is_some();
        let mut config = json!({
            "architectures": [family.class],
            "model_type": family.name,
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "intermediate_size": size("feed_forward_length")?,
            "num_hidden_layers": size("block_count")?,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": size("context_length")?,
            "rms_norm_eps": Metadata::required(&epsilon, metadata.number(&epsilon))?,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": !has("output.weight"),
            "attention_bias": has("blk.0.attn_q.bias"),
            "mlp_bias": has("blk.0.ffn_up.bias"),
        });
        if let Some(fields) = config.as_object_mut() {
            special_ids(metadata, fields)?;
        }
        Ok(config)
    }
}

fn special_ids(metadata: &Metadata, fields: &mut Map<String, Value>) -> std::result::Result<(), String> {
    for (name, field) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        let id = metadata.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
        fields.insert(field.to_owned(), json!(id));
    }
    Ok(())
}

/// transformers' key of a tensor, and the name of the projection in llama.cpp.
fn key_of(name: &str) -> Option<(String, &str)> {
    let (module, parameter) = name.rsplit_once('.')?;
    let whole = match module {
        "token_embd" => "model.embed_tokens",
        "output_norm" => "model.norm",
        "output" => "lm_head",
        _ => "",
    };
    if !matches!(parameter, "weight" | "bias") {
        return None;
    }
    if !whole.is_empty() {
        return Some((format!("{whole}.{parameter}"), module));
    }
    let (layer, projection) = module.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let path = match projection {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some((format!("model.layers.{layer}.{path}.{parameter}"), projection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_transformers_keys() {
        let key = |name| key_of(name).map(|(key, _)| key);
        assert_eq!(key("blk.12.ffn_gate.weight").as_deref(), Some("model.layers.12.mlp.gate_proj.weight"));
        assert_eq!(key("blk.0.attn_q.bias").as_deref(), Some("model.layers.0.self_attn.q_proj.bias"));
        assert_eq!(key("output.weight").as_deref(), Some("lm_head.weight"));
        assert_eq!(key("blk.0.ffn_gate_exps.weight"), None);
        assert_eq!(key("blk.x.attn_q.weight"), None);
        assert_eq!(key("rope_freqs.weight"), None);
    }
}
