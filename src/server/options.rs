//! What can be said of a job: the options of the recipes as JSON, both ways, from the same definitions as the command line's.

use super::failure::{of_option, Answer, Failure};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command, FromArgMatches};
use serde_json::{json, Map, Value};
use std::any::TypeId;
use std::path::PathBuf;

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

/// `command` with the path `name` empty where it is not given: a plan needs none.
pub fn without_need(command: Command, name: &'static str) -> Command {
    let parser = OsStringValueParser::new().map(PathBuf::from);
    command.mut_arg(name, |arg| arg.required(false).default_value("").value_parser(parser))
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
pub fn parsed<T: FromArgMatches>(command: Command, flags: &[String]) -> Answer<T> {
    let matches = command.try_get_matches_from(flags).and_then(|matches| T::from_arg_matches(&matches));
    matches.map_err(|error| {
        let field = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(flag)) => of_option(flag).1,
            Some(ContextValue::Strings(flags)) => flags.first().and_then(|flag| of_option(flag).1),
            _ => None,
        };
        let text = error.to_string();
        let first = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let sentence = first.split_whitespace().collect::<Vec<_>>().join(" ");
        Failure { field, ..Failure::field("", of_option(&sentence).0) }
    })
}

/// The options of `command` in the groups of its help, as a form needs them, without those `filled_in`.
pub fn described(command: &Command, filled_in: &[&str]) -> Value {
    let mut groups: Vec<(String, Vec<Value>)> = Vec::new();
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && !filled_in.contains(&arg.get_id().as_str()) && arg.get_long().is_some();
    for arg in command.get_arguments().filter(shown) {
        let title = arg.get_help_heading().unwrap_or("Options").to_owned();
        match groups.iter_mut().find(|(found, _)| *found == title) {
            Some((_, fields)) => fields.push(field(arg)),
            None => groups.push((title, vec![field(arg)])),
        }
    }
    groups.into_iter().map(|(title, fields)| json!({ "title": title, "fields": fields })).collect()
}

fn field(arg: &Arg) -> Value {
    let name = arg.get_id().to_string();
    let parser = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|one| parser == *one);
    let choices: Vec<Value> = match matches!(arg.get_action(), ArgAction::SetTrue) {
        true => Vec::new(),
        false => arg.get_possible_values().iter().filter(|value| !value.is_hide_set()).map(choice).collect(),
    };
    let kind = if matches!(arg.get_action(), ArgAction::SetTrue) {
        "flag"
    } else if !choices.is_empty() {
        "choice"
    } else if arg.get_value_delimiter().is_some() {
        "list"
    } else if is(&[TypeId::of::<f64>()]) {
        "number"
    } else if is(&[TypeId::of::<u64>(), TypeId::of::<usize>(), TypeId::of::<i64>(), TypeId::of::<u32>()]) {
        "integer"
    } else if is(&[TypeId::of::<String>(), TypeId::of::<PathBuf>()]) {
        "text"
    } else {
        "map"
    };
    let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let default = match (kind, default) {
        ("flag", _) => Value::Bool(false),
        (_, None) => Value::Null,
        ("number" | "integer", Some(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        (_, Some(text)) => Value::String(text),
    };
    let help = arg.get_help().map(|help| of_option(&help.to_string()).0);
    json!({ "name": name, "label": label(&name), "kind": kind, "default": default, "choices": choices, "help": help })
}

fn choice(value: &clap::builder::PossibleValue) -> Value {
    json!({ "value": value.get_name(), "help": value.get_help().map(ToString::to_string) })
}

/// A name for people: `lora_r` is "LoRA r".
pub fn label(name: &str) -> String {
    let word = |word: &str| match word {
        "lora" => "LoRA".to_owned(),
        "snr" => "SNR".to_owned(),
        "lr" => "learning rate".to_owned(),
        "dora" => "DoRA".to_owned(),
        "rslora" => "rank-stabilized LoRA".to_owned(),
        "num" => "number of".to_owned(),
        "r" => "rank".to_owned(),
        "adam" => "Adam".to_owned(),
        "beta1" => "β₁".to_owned(),
        "beta2" => "β₂".to_owned(),
        "8bit" => "8-bit".to_owned(),
        "int8" => "int8".to_owned(),
        other => other.to_owned(),
    };
    let text = name.split('_').map(word).collect::<Vec<_>>().join(" ");
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::dreambooth_config::DreamBoothConfig;
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
        let config: DreamBoothConfig = parsed(dreambooth_command(), &flags).unwrap();
        assert_eq!((config.instance_prompt.as_str(), config.lora_r, config.train_text_encoder), ("-x a, b", 4, true));
        assert_eq!(config.lora_modules_to_save, ["conv_in", "conv_out"]);
        assert!(!config.use_dora && config.class_prompt.is_none() && config.learning_rate == 1e-3);
        assert_eq!(config.lora_rank_pattern.unwrap().0["to_q"], 3);
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
        let failure = parsed::<DreamBoothConfig>(dreambooth_command(), &flags).unwrap_err();
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
