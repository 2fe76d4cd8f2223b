//! Options by name, as TOML files, records of runs and pages have them, read by the same definitions as the command line's.

use crate::error::{Error, Result};
use crate::plain_text;
use crate::sentence::{flag, option};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How alike (Jaro-Winkler) a name must be to be offered in place of an unknown one.
const ALIKE: f64 = 0.8;
/// As many are offered.
const OFFERED: usize = 3;

/// All options of a job.
pub trait Configuration: Args + FromArgMatches + Serialize {
    /// The words of its command behind the program's name.
    const COMMAND: &'static str;

    /// Its options as clap has them.
    fn command() -> Command {
        Self::augment_args(Command::new(Self::COMMAND).no_binary_name(true).args_override_self(true))
    }

    /// The configuration that `options` stand for, by their names (`lora_r`); what is not among them has its default.
    fn from_map(options: &Map<String, Value>) -> Result<Self> {
        let command = Self::command();
        let flags = flags(&command, options)?;
        Self::from_flags(&flags)
    }

    /// The configuration that `flags`, as on a command line, stand for.
    fn from_flags(flags: &[String]) -> Result<Self> {
        let matches = Self::command().try_get_matches_from(flags);
        matches.and_then(|matches| Self::from_arg_matches(&matches)).map_err(|error| refusal(&error))
    }

    /// The options by name.
    fn to_map(&self) -> Result<Map<String, Value>> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(_) => Err(Error::Internal("options are not written as a map".to_owned())),
            Err(error) => Err(Error::Internal(format!("options cannot be written: {error}"))),
        }
    }
}

/// Makes a type the [`Configuration`] of a command, which serde reads from a map of its options.
macro_rules! configuration {
    ($config:ty, $command:literal) => {
        impl crate::options::reading::Configuration for $config {
            const COMMAND: &'static str = $command;
        }

        impl<'de> serde::Deserialize<'de> for $config {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let options = serde_json::Map::deserialize(deserializer)?;
                crate::options::reading::Configuration::from_map(&options).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use configuration;

/// `options` as flags of `command`. A name is an option's own or another that its flag has, with `_` or `-`; one that is unknown, or a
/// second name of the same option, is refused.
pub fn flags(command: &Command, options: &Map<String, Value>) -> Result<Vec<String>> {
    let (mut flags, mut given) = (Vec::new(), BTreeMap::new());
    for (name, value) in options {
        let arg = argument(command, name).ok_or_else(|| unknown(command, name))?;
        if let Some(other) = given.insert(arg.get_id().as_str(), name) {
            return Err(Error::Usage(format!(
                "{} is given twice, as `{other}` and as `{name}`; leave one of them out",
                option(arg.get_id().as_str())
            )));
        }
        flags.extend(words(arg, value)?);
    }
    Ok(flags)
}

/// The option `name` of `command`.
pub fn argument<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let name = name.replace('-', "_");
    let is_named = |known: &str| known.replace('-', "_") == name;
    command.get_arguments().find(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        is_named(arg.get_id().as_str()) || arg.get_long().into_iter().chain(aliases).any(is_named)
    })
}

/// The refusal of an option that `command` does not have, with those that are called much the same.
fn unknown(command: &Command, name: &str) -> Error {
    let name = plain_text::value(&name.replace('-', "_"));
    if name == "config" {
        return Error::Usage(format!(
            "{} stands in a file that it names itself; write the options of the other file here",
            option(&name)
        ));
    }
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let mut near: Vec<(f64, &str)> = shown
        .map(|arg| arg.get_id().as_str())
        .map(|known| (strsim::jaro_winkler(known, &name), known))
        .filter(|(alike, _)| *alike > ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<String> = near.iter().take(OFFERED).map(|(_, known)| option(known)).collect();
    let cure = match near.is_empty() {
        true => "leave it out".to_owned(),
        false => format!("there is {}", near.join(", ")),
    };
    Error::Usage(format!("{} is no option of `{}`; {cure}", option(&name), command.get_name()))
}

/// One option as words of a command line; none where it says nothing.
fn words(arg: &Arg, value: &Value) -> Result<Vec<String>> {
    let name = arg.get_id().as_str();
    let flag = flag(arg.get_long().unwrap_or(name));
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let text = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Bool(on) if is_switch => return Ok(if *on { vec![flag] } else { Vec::new() }),
        _ if is_switch => {
            return Err(Error::Usage(format!("{} must be true or false, not {}", option(name), shown(value))))
        }
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let words: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            let words = words.ok_or_else(|| Error::Usage(format!("{} must be a list of strings", option(name))))?;
            if matches!(arg.get_action(), ArgAction::Append) && arg.get_value_delimiter().is_none() {
                return Ok(words.iter().map(|word| format!("{flag}={word}")).collect());
            }
            if words.is_empty() {
                return Ok(Vec::new());
            }
            words.join(",")
        }
        // Ranks or alphas by module.
        Value::Object(_) => value.to_string(),
    };
    Ok(vec![format!("{flag}={text}")])
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{}`", plain_text::value(text)),
        other => plain_text::value(&other.to_string()),
    }
}

/// What clap refuses, as a sentence about the option.
fn refusal(error: &clap::Error) -> Error {
    let texts = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.as_str()],
        Some(ContextValue::Strings(texts)) => texts.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let named = |flag: &&str| {
        let flag = flag.split([' ', '=']).next().unwrap_or_default();
        option(&flag.trim_start_matches('-').replace('-', "_"))
    };
    let subject = texts(ContextKind::InvalidArg).first().map(named);
    let value = texts(ContextKind::InvalidValue).first().map(|text| plain_text::value(text)).unwrap_or_default();
    let sentence = match (error.kind(), subject) {
        (ErrorKind::MissingRequiredArgument, Some(subject)) => format!("{subject} is missing"),
        (ErrorKind::InvalidValue, Some(subject)) => {
            let choices = texts(ContextKind::ValidValue).join(", ");
            format!("{subject} is `{value}`; choose one of {choices}")
        }
        (ErrorKind::ValueValidation, Some(subject)) => {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{subject} is `{value}`, which cannot be read: {cause}")
        }
        (ErrorKind::ArgumentConflict, Some(subject)) => {
            let others: Vec<String> = texts(ContextKind::PriorArg).iter().map(named).collect();
            format!("{subject} cannot be given with {}", others.join(" and "))
        }
        _ => {
            let text = error.to_string();
            let first = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
            plain_text::line(first)
        }
    };
    Error::Usage(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::dreambooth::DreamBoothConfig;
    use crate::options::language::LanguageConfig;
    use crate::sentence::subject;
    use serde_json::json;

    fn read(mut options: Value) -> Result<DreamBoothConfig> {
        let all = options.as_object_mut().unwrap();
        for (name, value) in [("model", "m"), ("instance_data_dir", "d"), ("instance_prompt", "-x a, b")] {
            all.entry(name).or_insert(json!(value));
        }
        DreamBoothConfig::from_map(all)
    }

    #[test]
    fn a_map_of_options_is_the_configuration_that_flags_would_be() {
        let config = read(json!({
            "rank": 4, "train-text-encoder": true, "use_dora": false, "cache_latents": true, "lora_init": "gaussian",
            "lora_rank_pattern": { "to_q": 3 }, "lora_modules_to_save": ["conv_in", "conv_out"], "lr": 1e-3,
            "class_prompt": null, "lora_text_encoder_r": 2, "prior_loss_weight": -0.5, "keep_checkpoints": null,
        }))
        .unwrap();
        assert_eq!(
            (config.instance_prompt.as_str(), config.unet.lora_r, config.text_encoder.lora_r),
            ("-x a, b", 4, 2)
        );
        assert_eq!(config.unet.lora_modules_to_save, ["conv_in", "conv_out"]);
        assert_eq!(config.unet.lora_rank_pattern.as_ref().unwrap().0["to_q"], 3);
        assert!(config.train_text_encoder && !config.lora.use_dora && config.class_prompt.is_none());
        assert_eq!((config.learning_rate, config.prior_loss_weight), (1e-3, -0.5));
        assert!(
            config.given.names().any(|name| name == "lora_r") && !config.given.names().any(|name| name == "use_dora")
        );
        // What is written is read again as the same.
        let written = config.to_map().unwrap();
        let again: DreamBoothConfig = serde_json::from_value(Value::Object(written.clone())).unwrap();
        assert_eq!(again.to_map().unwrap(), written);
    }

    #[test]
    fn a_wrong_option_is_refused_by_its_name_and_with_what_to_give() {
        for (options, name, words) in [
            (json!({ "lora_rr": 1 }), "lora_rr", &["⟨lora_r⟩"][..]),
            (json!({ "zzz": 1 }), "zzz", &["no option of `train dreambooth`"]),
            (json!({ "lr": 1, "learning_rate": 2 }), "learning_rate", &["`lr`", "`learning_rate`"]),
            (json!({ "lora_r": "many" }), "lora_r", &["`many`"]),
            (json!({ "lora_r": 1.5 }), "lora_r", &["`1.5`"]),
            (json!({ "train_text_encoder": "yes" }), "train_text_encoder", &["true or false", "`yes`"]),
            (json!({ "cache_latents": "often" }), "cache_latents", &["auto, true, false"]),
            (json!({ "lora_targets": [1, 2] }), "lora_targets", &["list of strings"]),
            (json!({ "lora_rank_pattern": { "to_q": "x" } }), "lora_rank_pattern", &["object of numbers"]),
            (json!({ "config": "other.toml" }), "config", &["other file"]),
            (json!({ "instance_prompt": null }), "instance_prompt", &["is missing"]),
        ] {
            let error = read(options.clone()).expect_err(&options.to_string()).to_string();
            assert_eq!(subject(&error), Some(name), "{error}");
            assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
        }
        let missing = LanguageConfig::from_map(&Map::new()).unwrap_err().to_string();
        assert_eq!(subject(&missing), Some("model"), "{missing}");
    }
}
