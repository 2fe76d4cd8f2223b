//! Which of PEFT's methods trains, and the options of those that put something in front of texts.

use super::checks::{counted, dropout, refuse};
use super::values::{self, name_of};
use crate::adapters::{
    PTuningOptions, PrefixTuningOptions, PromptConfig, PromptTuningInit, PromptTuningOptions, Reparameterization,
};
use crate::error::{Error, Result};
use crate::sentence::option;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::Path;

/// Rows of the longest prompt: no model has positions for more.
const MAX_VIRTUAL_TOKENS: u64 = 100_000;
/// The widest and the deepest encoder.
const MAX_WIDTH: u64 = 65_536;
const MAX_LAYERS: u64 = 64;

/// `--peft-method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeftMethod {
    /// Low-rank changes of projections.
    Lora,
    /// Embeddings of virtual tokens before the text.
    PromptTuning,
    /// Keys and values of virtual tokens in every block.
    PrefixTuning,
    /// Embeddings of virtual tokens, from an encoder.
    PTuning,
}

impl PeftMethod {
    /// PEFT's `peft_type`.
    pub fn peft_type(self) -> &'static str {
        match self {
            Self::Lora => "LORA",
            Self::PromptTuning => "PROMPT_TUNING",
            Self::PrefixTuning => "PREFIX_TUNING",
            Self::PTuning => "P_TUNING",
        }
    }

    /// The methods that the option `name` (`lora_r`) belongs to; none: it is no method's own.
    fn owners(name: &str) -> &'static [Self] {
        match name {
            "num_virtual_tokens" => &[Self::PromptTuning, Self::PrefixTuning, Self::PTuning],
            "prompt_tuning_init" | "prompt_tuning_init_text" => &[Self::PromptTuning],
            "prefix_projection" => &[Self::PrefixTuning],
            "encoder_hidden_size" => &[Self::PrefixTuning, Self::PTuning],
            "encoder_reparameterization_type" | "encoder_num_layers" | "encoder_dropout" => &[Self::PTuning],
            "use_rslora" | "use_dora" => &[Self::Lora],
            _ if name.starts_with("lora_") => &[Self::Lora],
            _ => &[],
        }
    }

    /// Refuses the options `given`, by name (`lora_r`), that belong to other methods.
    pub(crate) fn check_given<'a>(self, given: impl Iterator<Item = &'a str>) -> Result<()> {
        let foreign = |(_, owners): &(&str, &[Self])| !owners.is_empty() && !owners.contains(&self);
        match given.map(|name| (name, Self::owners(name))).find(foreign) {
            Some((name, owners)) => {
                let theirs: Vec<String> = owners.iter().map(values::name).collect();
                Err(Error::Usage(format!(
                    "{} belongs to ⟨peft_method⟩ {}, and this run's is {}; leave one of them out",
                    option(name),
                    theirs.join(" and "),
                    values::name(&self)
                )))
            }
            None => Ok(()),
        }
    }
}

/// The field of PEFT's configuration that a flag of a prompt stands for.
pub(crate) fn prompt_field(option: &str) -> Option<&'static str> {
    const FIELDS: &[&str] = &[
        "num_virtual_tokens",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "prefix_projection",
        "encoder_hidden_size",
        "encoder_reparameterization_type",
        "encoder_num_layers",
        "encoder_dropout",
    ];
    FIELDS.iter().copied().find(|field| *field == option)
}

/// Options of prompt tuning, prefix tuning and P-tuning.
#[derive(Debug, Clone, Args, Serialize)]
pub struct PromptArgs {
    /// Number of virtual tokens before each text (prompt tuning, prefix tuning, P-tuning)
    #[arg(long, default_value_t = 20, help_heading = "Adapter")]
    pub num_virtual_tokens: u64,
    /// Initialization of prompt tuning: random, or the embeddings of a text
    #[arg(long, value_enum, ignore_case = true, default_value_t = PromptTuningInit::Random, help_heading = "Adapter")]
    #[serde(serialize_with = "name_of")]
    pub prompt_tuning_init: PromptTuningInit,
    /// The text for --prompt-tuning-init text, truncated or repeated to the number of virtual tokens
    #[arg(long, value_name = "TEXT", help_heading = "Adapter")]
    pub prompt_tuning_init_text: Option<String>,
    /// Train the prefix through a two-layer MLP (prefix tuning)
    #[arg(long, help_heading = "Adapter")]
    pub prefix_projection: bool,
    /// Hidden size of the prefix projection or of P-tuning's encoder; by default that of a virtual token
    #[arg(long, value_name = "WIDTH", help_heading = "Adapter")]
    pub encoder_hidden_size: Option<u64>,
    /// Architecture of P-tuning's encoder
    #[arg(long, value_enum, ignore_case = true, default_value_t = Reparameterization::Mlp, help_heading = "Adapter")]
    #[serde(serialize_with = "name_of")]
    pub encoder_reparameterization_type: Reparameterization,
    /// Number of layers of P-tuning's LSTM [default: 2]
    #[arg(long, value_name = "LAYERS", help_heading = "Adapter")]
    pub encoder_num_layers: Option<u64>,
    /// Dropout between the layers of P-tuning's LSTM [default: 0]
    #[arg(long, value_name = "RATE", help_heading = "Adapter")]
    pub encoder_dropout: Option<f64>,
}

impl PromptArgs {
    /// Refuses options that cannot be meant with `method`.
    pub(crate) fn check(&self, method: PeftMethod) -> Result<()> {
        counted("⟨num_virtual_tokens⟩", self.num_virtual_tokens, 1, MAX_VIRTUAL_TOKENS)?;
        counted("⟨encoder_hidden_size⟩", self.encoder_hidden_size.unwrap_or(1), 1, MAX_WIDTH)?;
        counted("⟨encoder_num_layers⟩", self.encoder_num_layers.unwrap_or(1), 1, MAX_LAYERS)?;
        dropout("⟨encoder_dropout⟩", self.encoder_dropout.unwrap_or(0.0))?;
        let starts_as_text = self.prompt_tuning_init == PromptTuningInit::Text;
        match &self.prompt_tuning_init_text {
            None if starts_as_text => {
                return refuse(
                    "⟨prompt_tuning_init⟩ text needs ⟨prompt_tuning_init_text⟩, the text to start from".into(),
                )
            }
            Some(_) if !starts_as_text => {
                return refuse("⟨prompt_tuning_init_text⟩ is used with ⟨prompt_tuning_init⟩ text; add it".into())
            }
            _ => {}
        }
        if method == PeftMethod::PrefixTuning && self.encoder_hidden_size.is_some() && !self.prefix_projection {
            return refuse("⟨encoder_hidden_size⟩ is the width of ⟨prefix_projection⟩; add it".into());
        }
        let is_mlp = self.encoder_reparameterization_type == Reparameterization::Mlp;
        let of_lstm = [
            ("⟨encoder_num_layers⟩", self.encoder_num_layers.is_some()),
            ("⟨encoder_dropout⟩", self.encoder_dropout.is_some()),
        ];
        match of_lstm.iter().find(|(_, given)| *given && is_mlp) {
            Some((flag, _)) => {
                refuse(format!("{flag} is the LSTM's; add ⟨encoder_reparameterization_type⟩ lstm, or leave it out"))
            }
            None => Ok(()),
        }
    }

    /// The prompt that the options ask for, of `method`, for the model in `model`; none for LoRA.
    pub(crate) fn config(&self, method: PeftMethod, model: &Path) -> Result<Option<PromptConfig>> {
        let (name, tokens) = (method.peft_type(), self.num_virtual_tokens as i64);
        match method {
            PeftMethod::Lora => Ok(None),
            PeftMethod::PromptTuning => PromptConfig::new(name, tokens, &self.prompt_tuning(model)).map(Some),
            PeftMethod::PrefixTuning => PromptConfig::new(name, tokens, &self.prefix_tuning()).map(Some),
            PeftMethod::PTuning => PromptConfig::new(name, tokens, &self.p_tuning()).map(Some),
        }
    }

    fn prompt_tuning(&self, model: &Path) -> PromptTuningOptions {
        let text = self.prompt_tuning_init_text.clone();
        PromptTuningOptions {
            prompt_tuning_init: self.prompt_tuning_init,
            tokenizer_name_or_path: text.is_some().then(|| model.display().to_string()),
            prompt_tuning_init_text: text,
            tokenizer_kwargs: None,
        }
    }

    fn prefix_tuning(&self) -> PrefixTuningOptions {
        PrefixTuningOptions {
            prefix_projection: self.prefix_projection,
            encoder_hidden_size: self.hidden_size(),
            init_weights: None,
        }
    }

    fn p_tuning(&self) -> PTuningOptions {
        let default = PTuningOptions::default();
        PTuningOptions {
            encoder_reparameterization_type: self.encoder_reparameterization_type,
            encoder_hidden_size: self.hidden_size(),
            encoder_num_layers: self.encoder_num_layers.map_or(default.encoder_num_layers, |layers| layers as i64),
            encoder_dropout: self.encoder_dropout.unwrap_or(default.encoder_dropout),
        }
    }

    fn hidden_size(&self) -> Option<i64> {
        self.encoder_hidden_size.map(|width| width as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_another_method_is_refused_with_its_own() {
        let refused = |method: PeftMethod, name: &str| {
            method.check_given([name].into_iter()).err().map(|error| error.to_string())
        };
        let message = refused(PeftMethod::PrefixTuning, "lora_r").unwrap();
        assert!(message.contains("⟨lora_r⟩") && message.contains("prefix-tuning"), "{message}");
        let message = refused(PeftMethod::Lora, "encoder_hidden_size").unwrap();
        assert!(message.contains("prefix-tuning and p-tuning"), "{message}");
        assert_eq!(refused(PeftMethod::PTuning, "encoder_dropout"), None);
        assert_eq!(refused(PeftMethod::PTuning, "learning_rate"), None);
    }

    #[test]
    fn every_option_of_a_prompt_has_its_methods_and_its_field() {
        let command = PromptArgs::augment_args(clap::Command::new("prompts"));
        for argument in command.get_arguments() {
            let name = argument.get_id().as_str();
            assert!(!PeftMethod::owners(name).is_empty() && prompt_field(name) == Some(name), "{name}");
        }
    }
}
