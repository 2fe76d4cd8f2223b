//! What can be said of a job: the options of the recipes as JSON, both ways, from the same definitions as the command line's.

use super::failure::{of_option, Answer, Failure};
use crate::options::form::{form, Choice, Field, Group};
use crate::options::reading::Configuration;
use clap::{Arg, ArgAction, Command};
use serde_json::{json, Map, Value};

/// Bytes of one value: a prompt is shorter, and a list of patterns too.
pub const MAX_VALUE: usize = 20_000;

/// Options of a request that are taken one by one; what is left over is the recipe's.
pub struct Asked {
    left: Map<String, Value>,
}

impl Asked {
    /// All of `options`.
    pub fn new(options: &Map<String, Value>) -> Self {
        Self { left: options.clone() }
    }

    /// Takes the text `name`.
    pub fn text(&mut self, name: &str) -> Answer<Option<String>> {
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.len() <= MAX_VALUE => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(Value::String(_)) => Err(too_long(name)),
            Some(_) => Err(Failure::field(name, format!("{name} must be a text"))),
        }
    }

    /// Takes the whole number `name`.
    pub fn integer(&mut self, name: &str) -> Answer<Option<i64>> {
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_i64()
                .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))
                .map(Some)
                .ok_or_else(|| Failure::field(name, format!("{name} must be a whole number"))),
        }
    }

    /// What is left as flags of `command`, of which those `filled_in` are nobody's to say.
    pub fn flags(self, command: &Command, filled_in: &[&str]) -> Answer<Vec<String>> {
        let mut flags = Vec::new();
        for (name, value) in self.left {
            let arg = command.get_arguments().find(|arg| arg.get_id() == name.as_str());
            let Some(arg) = arg.filter(|arg| !arg.is_hide_set() && !filled_in.contains(&name.as_str())) else {
                return Err(Failure::field(&name, format!("there is no option `{}`", crate::plain_text::value(&name))));
            };
            flags.extend(flag(arg, &name, value)?);
        }
        Ok(flags)
    }
}

/// The refusal of a longer text.
pub fn too_long(name: &str) -> Failure {
    Failure::field(name, format!("{name} has more than {MAX_VALUE} bytes; shorten it"))
}

/// One option as a flag; none where it says nothing.
fn flag(arg: &Arg, name: &str, value: Value) -> Answer<Option<String>> {
    let long = arg.get_long().unwrap_or(name);
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let text = match value {
        Value::Null => return Ok(None),
        Value::Bool(on) if is_switch => return Ok(on.then(|| format!("--{long}"))),
        _ if is_switch => return Err(Failure::field(name, format!("{name} must be true or false"))),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text,
        Value::Array(list) => {
            let words: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            let words = words.ok_or_else(|| Failure::field(name, format!("{name} must be a list of texts")))?;
            match words.is_empty() {
                true => return Ok(None),
                false => words.join(","),
            }
        }
        Value::Object(map) if map.is_empty() => return Ok(None),
        Value::Object(map) => Value::Object(map).to_string(),
    };
    match text.len() <= MAX_VALUE {
        true => Ok(Some(format!("--{long}={text}"))),
        false => Err(too_long(name)),
    }
}

/// The number that `flags` give for the flag `name`.
pub fn number_of(flags: &[String], name: &str) -> Option<f64> {
    flags.iter().rev().find_map(|flag| flag.split_once('=').filter(|(found, _)| *found == name)?.1.parse().ok())
}

/// The seed of a training, as a form needs it: on the command line it is a flag of every command.
pub fn with_seed(mut groups: Value) -> Value {
    let seed = json!({
        "name": "seed", "label": "Seed", "kind": "integer", "default": 0, "choices": [],
        "help": "Seed of all draws: the same seed trains the same adapter",
    });
    if let Some(fields) = groups.as_array_mut().and_then(|groups| {
        groups.iter_mut().find(|group| group["title"] == "Training").and_then(|group| group["fields"].as_array_mut())
    }) {
        fields.push(seed);
    }
    groups
}

/// The configuration that `flags` stand for.
pub fn parsed<T: Configuration>(flags: &[String]) -> Answer<T> {
    T::from_flags(flags).map_err(Failure::from)
}

/// The options of `command` in the groups of its help, as a form needs them, without those `filled_in`.
pub fn described(command: &Command, filled_in: &[&str]) -> Value {
    let plain = |help: Option<String>| help.map(|help| of_option(&help).0);
    let groups = form(command).into_iter().map(|group| Group {
        fields: group
            .fields
            .into_iter()
            .filter(|field| !filled_in.contains(&field.name.as_str()))
            .map(|field| Field {
                help: plain(field.help),
                choices: field
                    .choices
                    .into_iter()
                    .map(|choice| Choice { help: plain(choice.help), ..choice })
                    .collect(),
                ..field
            })
            .collect(),
        ..group
    });
    json!(groups.filter(|group| !group.fields.is_empty()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::dreambooth::DreamBoothConfig;
    use crate::server::training::{dreambooth_command, FILLED_IN};

    fn flags(options: Value) -> Answer<Vec<String>> {
        Asked::new(options.as_object().unwrap()).flags(&dreambooth_command(), FILLED_IN)
    }

    #[test]
    fn json_becomes_the_configuration_that_flags_would() {
        let mut flags = flags(json!({
            "instance_prompt": "-x a, b", "lora_r": 4, "train_text_encoder": true, "use_dora": false, "cache_latents": "true",
            "lora_rank_pattern": { "to_q": 3 }, "lora_modules_to_save": ["conv_in", "conv_out"], "learning_rate": 1e-3, "class_prompt": null,
        }))
        .unwrap();
        flags.extend(["--model=m".to_owned(), "--instance-data-dir=d".to_owned()]);
        let config: DreamBoothConfig = parsed(&flags).unwrap();
        assert_eq!(
            (config.instance_prompt.as_str(), config.unet.lora_r, config.train_text_encoder),
            ("-x a, b", 4, true)
        );
        assert_eq!(config.unet.lora_modules_to_save, ["conv_in", "conv_out"]);
        assert!(!config.lora.use_dora && config.class_prompt.is_none() && config.learning_rate == 1e-3);
        assert_eq!(config.unet.lora_rank_pattern.unwrap().0["to_q"], 3);
    }

    #[test]
    fn paths_unknown_names_and_wrong_kinds_are_refused_by_their_field() {
        for (options, field) in [
            (json!({ "output_dir": "/etc" }), "output_dir"),
            (json!({ "no_such": 1 }), "no_such"),
            (json!({ "train_text_encoder": "yes" }), "train_text_encoder"),
            (json!({ "push_to_hub": true }), "push_to_hub"),
            (json!({ "instance_prompt": "x".repeat(30_000) }), "instance_prompt"),
        ] {
            assert_eq!(flags(options).unwrap_err().field.as_deref(), Some(field));
        }
        let flags = flags(json!({ "lora_r": "many", "instance_prompt": "p" })).unwrap();
        let failure = parsed::<DreamBoothConfig>(&flags).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("lora_r"));
        assert!(failure.sentence.contains("many") && !failure.sentence.contains("--"), "{}", failure.sentence);
    }

    #[test]
    fn every_option_of_the_command_line_is_in_the_form_but_paths() {
        let groups = described(&dreambooth_command(), FILLED_IN);
        let fields: Vec<&Value> =
            groups.as_array().unwrap().iter().flat_map(|group| group["fields"].as_array().unwrap()).collect();
        let of = |name: &str| fields.iter().find(|field| field["name"] == name).unwrap();
        assert_eq!((&of("lora_r")["kind"], &of("lora_r")["default"]), (&json!("integer"), &json!(8)));
        assert_eq!(of("learning_rate")["kind"], "number");
        assert_eq!(of("use_dora")["kind"], "flag");
        assert_eq!(of("lora_rank_pattern")["kind"], "map");
        assert_eq!(of("lora_modules_to_save")["kind"], "list");
        assert_eq!(of("mixed_precision")["kind"], "choice");
        assert!(fields
            .iter()
            .all(|field| field["help"].is_string() && !FILLED_IN.contains(&field["name"].as_str().unwrap())));
    }
}
