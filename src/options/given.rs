//! Which options a user gave, as apart from those that have their defaults, and those of them that an adapter's files settle.

use crate::error::{Error, Result};
use crate::sentence;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, Id};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// Heads of classifiers, by the names that PEFT looks for.
pub(crate) const HEADS: &[&str] = &["classifier", "score"];

/// The names (`lora_r`) of the options that were given. Among a command's options it stands first: each takes its value
/// out of what was given.
#[derive(Debug, Clone, Default)]
pub struct GivenFlags(Vec<String>);

impl GivenFlags {
    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Refuses those for which the adapter in `folder`, of the configuration `found`, has another value than `wanted`, the
    /// configuration that they ask for. `field` is the field that an option stands for; none: it is not of this adapter.
    pub(crate) fn check_settled(
        &self,
        field: impl Fn(&str) -> Option<&'static str>,
        wanted: &impl Serialize,
        found: &impl Serialize,
        folder: &Path,
    ) -> Result<()> {
        let [wanted, found] = [serde_json::to_value(wanted), serde_json::to_value(found)]
            .map(|config| config.map_err(|error| Error::Internal(format!("an adapter's configuration: {error}"))));
        let (wanted, found) = (wanted?, found?);
        for (option, name) in self.names().filter_map(|option| field(option).map(|name| (option, name))) {
            let [asked, has] = [&wanted, &found].map(|config| plain(config[name].clone()));
            if asked != has {
                return Err(Error::Usage(format!(
                    "{} is {}, but ⟨init_adapter⟩ {} has {}, which stays; leave the flag out",
                    sentence::option(option),
                    in_words(&asked),
                    folder.display(),
                    in_words(&has)
                )));
            }
        }
        Ok(())
    }
}

impl FromArgMatches for GivenFlags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let is_given = |id: &&Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Self(matches.ids().filter(is_given).map(Id::to_string).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for GivenFlags {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

/// The field of PEFT's `LoraConfig` that a flag of LoRA stands for.
pub(crate) fn lora_field(option: &str) -> Option<&'static str> {
    Some(match option {
        "lora_r" => "r",
        "lora_alpha" => "lora_alpha",
        "lora_dropout" => "lora_dropout",
        "lora_bias" => "bias",
        "lora_targets" => "target_modules",
        "lora_rank_pattern" => "rank_pattern",
        "lora_alpha_pattern" => "alpha_pattern",
        "lora_exclude_modules" => "exclude_modules",
        "lora_modules_to_save" => "modules_to_save",
        "lora_init" => "init_lora_weights",
        "use_rslora" => "use_rslora",
        "use_dora" => "use_dora",
        _ => return None,
    })
}

/// `value` as it compares: names in any order, a classifier's head aside, nothing for an empty one, numbers as such.
fn plain(value: Value) -> Value {
    match value {
        Value::Array(mut list) => {
            list.retain(|name| !name.as_str().is_some_and(|name| HEADS.contains(&name)));
            list.sort_by_key(Value::to_string);
            list.dedup();
            if list.is_empty() {
                Value::Null
            } else {
                Value::Array(list)
            }
        }
        Value::Object(map) if map.is_empty() => Value::Null,
        Value::Number(number) => number.as_f64().into(),
        other => other,
    }
}

/// An option's value as a user writes it.
pub(crate) fn in_words(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().unwrap_or_default().to_string(),
        Value::Array(list) => list.iter().map(in_words).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_flag_may_say_what_the_adapter_has_and_nothing_else() {
        let found = json!({ "r": 8, "lora_alpha": 16.0, "target_modules": ["v", "q"], "rank_pattern": {}, "use_dora": false,
            "modules_to_save": ["classifier", "score"] });
        let refused = |option: &str, wanted: Value| {
            let given = GivenFlags(vec![option.to_owned()]);
            given.check_settled(lora_field, &wanted, &found, Path::new("start")).err().map(|error| error.to_string())
        };
        assert_eq!(refused("lora_r", json!({ "r": 8 })), None);
        assert_eq!(refused("lora_alpha", json!({ "lora_alpha": 16 })), None);
        assert_eq!(refused("lora_targets", json!({ "target_modules": ["q", "v"] })), None);
        assert_eq!(refused("lora_rank_pattern", json!({ "rank_pattern": null })), None);
        assert_eq!(refused("lora_modules_to_save", json!({ "modules_to_save": ["classifier"] })), None);
        assert_eq!(refused("learning_rate", json!({})), None);
        let message = "⟨lora_r⟩ is 4, but ⟨init_adapter⟩ start has 8, which stays; leave the flag out";
        assert_eq!(refused("lora_r", json!({ "r": 4 })).as_deref(), Some(message));
        let message = refused("lora_targets", json!({ "target_modules": ["q", "k"] })).unwrap();
        assert!(message.contains("⟨lora_targets⟩ is k,q") && message.contains("has q,v"), "{message}");
        let message = refused("use_dora", json!({ "use_dora": true })).unwrap();
        assert!(message.contains("⟨use_dora⟩ is true") && message.contains("has false"), "{message}");
    }
}
