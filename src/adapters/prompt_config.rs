//! `adapter_config.json` of a prompt: PEFT's `PromptLearningConfig`, read and written as PEFT does.

use super::prompt::{PromptMethod, PROMPT_METHODS};
use crate::error::{Error, Result};
use crate::weights::json_fields;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

/// More virtual tokens than any model has positions for.
const MAX_TOKENS: i64 = 1_000_000;

/// PEFT's configuration of a prompt. Fields of one method alone, and those that are not used here, are in `own`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptConfig {
    /// `PROMPT_TUNING`, `PREFIX_TUNING` or `P_TUNING`.
    pub peft_type: String,
    /// `CAUSAL_LM` and so on.
    pub task_type: Option<String>,
    /// The model that the prompt is for.
    pub base_model_name_or_path: Option<String>,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Virtual tokens before a text.
    pub num_virtual_tokens: i64,
    /// The model's sizes; none where the model is not known yet.
    #[serde(flatten)]
    pub sizes: SizeFields,
    /// All other fields.
    #[serde(flatten)]
    pub own: Map<String, Value>,
}

/// [`PromptSizes`] as files have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SizeFields {
    token_dim: Option<i64>,
    num_transformer_submodules: Option<i64>,
    num_attention_heads: Option<i64>,
    num_layers: Option<i64>,
}

/// The sizes of a model that a prompt must have, by PEFT's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSizes {
    /// Width of a virtual token: of the embeddings, or of all heads of keys together.
    pub token_dim: i64,
    /// 2 for an encoder-decoder, else 1.
    pub num_transformer_submodules: i64,
    /// Heads of attention, or of keys and values.
    pub num_attention_heads: i64,
    /// Transformer blocks.
    pub num_layers: i64,
}

impl PromptConfig {
    /// A configuration of the method `peft_type`, with its own fields `options`.
    pub fn new(peft_type: &str, num_virtual_tokens: i64, options: &impl Serialize) -> Result<Self> {
        let own = match serde_json::to_value(options) {
            Ok(Value::Object(own)) => own,
            _ => return Err(Error::Internal("the prompt's options are not an object".into())),
        };
        Ok(Self { peft_type: peft_type.to_owned(), num_virtual_tokens, own, ..Self::default() })
    }

    /// A configuration from JSON.
    pub fn from_json(value: &Value) -> Result<Self> {
        let config: Self = json_fields::parse(value)
            .map_err(|error| Error::invalid(format!("not a prompt's configuration: {error}")))?;
        config.method()?;
        match (1..=MAX_TOKENS).contains(&config.num_virtual_tokens) {
            true => Ok(config),
            false => Err(Error::invalid(format!(
                "`num_virtual_tokens` is {}; it must be 1 to {MAX_TOKENS}",
                config.num_virtual_tokens
            ))),
        }
    }

    /// Its method.
    pub fn method(&self) -> Result<&'static PromptMethod> {
        PromptMethod::of(&self.peft_type).ok_or_else(|| {
            let known: Vec<&str> = PROMPT_METHODS.iter().map(|method| method.peft_type).collect();
            Error::invalid(format!(
                "{} is not a supported prompt method; supported are {}",
                self.peft_type,
                known.join(", ")
            ))
        })
    }

    /// The same for a model of `sizes`, which it must have if it has any.
    pub fn fitted(mut self, sizes: PromptSizes) -> Result<Self> {
        let fields = &mut self.sizes;
        for (name, field, size) in [
            ("token_dim", &mut fields.token_dim, sizes.token_dim),
            ("num_attention_heads", &mut fields.num_attention_heads, sizes.num_attention_heads),
            ("num_layers", &mut fields.num_layers, sizes.num_layers),
        ] {
            let given = *field.get_or_insert(size);
            if given != size {
                return Err(Error::invalid(format!(
                    "the adapter does not fit this model: its `{name}` is {given}, the model's {size}"
                )));
            }
        }
        let submodules = *fields.num_transformer_submodules.get_or_insert(sizes.num_transformer_submodules);
        if !(1..=sizes.num_transformer_submodules).contains(&submodules) {
            return Err(Error::invalid(format!(
                "the adapter does not fit this model: its `num_transformer_submodules` is {submodules}, the model's {}",
                sizes.num_transformer_submodules
            )));
        }
        // PEFT's default.
        if let Some(width @ Value::Null) = self.own.get_mut("encoder_hidden_size") {
            *width = json!(sizes.token_dim);
        }
        Ok(self)
    }

    /// The sizes of the model that it was fitted to.
    pub fn sizes(&self) -> Result<PromptSizes> {
        let lacks = |name: &str| Error::invalid(format!("the prompt's configuration has no `{name}`"));
        let SizeFields { token_dim, num_transformer_submodules, num_attention_heads, num_layers } = self.sizes;
        Ok(PromptSizes {
            token_dim: token_dim.ok_or_else(|| lacks("token_dim"))?,
            num_transformer_submodules: num_transformer_submodules
                .ok_or_else(|| lacks("num_transformer_submodules"))?,
            num_attention_heads: num_attention_heads.ok_or_else(|| lacks("num_attention_heads"))?,
            num_layers: num_layers.ok_or_else(|| lacks("num_layers"))?,
        })
    }

    /// Rows of a prompt among the embeddings: PEFT trains some for each part of a model.
    pub fn rows(&self) -> i64 {
        self.num_virtual_tokens * self.sizes.num_transformer_submodules.unwrap_or(1)
    }

    /// The fields of its method.
    pub(super) fn options<T: DeserializeOwned>(&self) -> Result<T> {
        json_fields::parse(&Value::Object(self.own.clone()))
            .map_err(|error| Error::invalid(format!("the prompt's configuration: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: PromptSizes =
        PromptSizes { token_dim: 24, num_transformer_submodules: 1, num_attention_heads: 3, num_layers: 2 };

    fn read(fields: Value) -> std::result::Result<PromptConfig, String> {
        PromptConfig::from_json(&fields).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_keeps_the_fields_that_are_not_used_here() {
        let config = read(json!({ "peft_type": "P_TUNING", "num_virtual_tokens": 4, "of_tomorrow": 1 })).unwrap();
        assert_eq!((config.num_virtual_tokens, config.own.get("of_tomorrow")), (4, Some(&json!(1))));
    }

    #[test]
    fn what_is_no_prompt_is_told_with_what_is() {
        let message = read(json!({ "peft_type": "LORA", "num_virtual_tokens": 4 })).unwrap_err();
        assert!(message.contains("LORA") && message.contains("PREFIX_TUNING"), "{message}");
        let message = read(json!({ "peft_type": "P_TUNING" })).unwrap_err();
        assert!(message.contains("num_virtual_tokens"), "{message}");
    }

    #[test]
    fn sizes_that_are_not_given_are_the_models_and_others_must_be() {
        let config =
            read(json!({ "peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": null })).unwrap();
        let fitted = config.fitted(SIZES).unwrap();
        assert_eq!((fitted.sizes().unwrap(), &fitted.own["encoder_hidden_size"]), (SIZES, &json!(24)));
        let message = fitted.fitted(PromptSizes { num_layers: 3, ..SIZES }).unwrap_err().to_string();
        assert!(message.contains("`num_layers` is 2, the model's 3"), "{message}");
    }
}
