//! The options of a job as a form shows them, made from the definitions of the command line.

use super::{hub, ranks};
use crate::sentence::option;
use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command};
use serde::Serialize;
use serde_json::Value;
use std::any::TypeId;
use std::path::PathBuf;

/// Options under one heading.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// The heading.
    pub title: String,
    /// The options.
    pub fields: Vec<Field>,
}

/// One option.
#[derive(Debug, Clone, Serialize)]
pub struct Field {
    /// Its name, such as `lora_r`.
    pub name: String,
    /// The same for people.
    pub label: String,
    /// What it takes.
    pub kind: FieldKind,
    /// Its value where none is given; null for none.
    pub default: Value,
    /// What can be chosen.
    pub choices: Vec<Choice>,
    /// What it does: a sentence, with other options as [`crate::sentence`] has them.
    pub help: Option<String>,
}

/// What an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldKind {
    /// Text, which can be a path.
    Text,
    /// A number.
    Number,
    /// A whole number.
    Integer,
    /// True or false.
    Flag,
    /// One of its choices.
    Choice,
    /// Texts.
    List,
    /// Numbers by name.
    Map,
}

/// One value of several.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// The value.
    pub value: String,
    /// What it means.
    pub help: Option<String>,
}

/// The options of `command` that are shown, in the groups and the order of its help.
pub fn form(command: &Command) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let is_elsewhere = |heading: &str| [hub::HEADING, ranks::HEADING].contains(&heading);
    let is_shown = |arg: &&Arg| {
        !arg.is_hide_set() && arg.get_long().is_some() && !arg.get_help_heading().is_some_and(is_elsewhere)
    };
    for arg in command.get_arguments().filter(is_shown) {
        let (title, field) = (arg.get_help_heading().unwrap_or("Options"), field(arg));
        match groups.iter_mut().find(|group| group.title == title) {
            Some(group) => group.fields.push(field),
            None => groups.push(Group { title: title.to_owned(), fields: vec![field] }),
        }
    }
    groups
}

fn field(arg: &Arg) -> Field {
    let (name, kind) = (arg.get_id().to_string(), kind(arg));
    let choices = if kind == FieldKind::Choice { arg.get_possible_values() } else { Vec::new() };
    let choice = |value: &PossibleValue| Choice {
        value: value.get_name().to_owned(),
        help: value.get_help().map(|help| without_flags(&help.to_string())),
    };
    Field {
        label: label(&name),
        kind,
        default: default(arg, kind),
        choices: choices.iter().filter(|value| !value.is_hide_set()).map(choice).collect(),
        help: arg.get_help().map(|help| without_flags(&help.to_string())),
        name,
    }
}

fn kind(arg: &Arg) -> FieldKind {
    let parser = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|one| parser == *one);
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        FieldKind::Flag
    } else if !arg.get_possible_values().is_empty() {
        FieldKind::Choice
    } else if arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append) {
        FieldKind::List
    } else if is(&[TypeId::of::<f64>()]) {
        FieldKind::Number
    } else if is(&[TypeId::of::<u64>(), TypeId::of::<usize>(), TypeId::of::<i64>(), TypeId::of::<u32>()]) {
        FieldKind::Integer
    } else if is(&[TypeId::of::<String>(), TypeId::of::<PathBuf>()]) {
        FieldKind::Text
    } else {
        FieldKind::Map
    }
}

fn default(arg: &Arg, kind: FieldKind) -> Value {
    let text = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    match (kind, text) {
        (FieldKind::Flag, _) => Value::Bool(false),
        (_, None) => Value::Null,
        (FieldKind::Number | FieldKind::Integer, Some(text)) => {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        }
        (_, Some(text)) => Value::String(text),
    }
}

/// A help text, in which other options are flags, as [`crate::sentence`] has them.
fn without_flags(help: &str) -> String {
    let (mut text, mut rest) = (String::with_capacity(help.len()), help);
    while let Some((before, after)) = rest.split_once("--") {
        text.push_str(before);
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let (name, behind) = after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len()));
        match name.is_empty() {
            true => text.push_str("--"),
            false => text.push_str(&option(&name.replace('-', "_"))),
        }
        rest = behind;
    }
    text + rest
}

/// The option `name` for people: `lora_r` is "LoRA rank".
pub fn label(name: &str) -> String {
    let word = |word: &str| match word {
        "lora" => "LoRA".to_owned(),
        "unet" => "UNet".to_owned(),
        "snr" => "SNR".to_owned(),
        "vae" => "VAE".to_owned(),
        "lr" => "learning rate".to_owned(),
        "dora" => "DoRA".to_owned(),
        "peft" => "PEFT".to_owned(),
        "rslora" => "rank-stabilized LoRA".to_owned(),
        "num" => "number of".to_owned(),
        "r" => "rank".to_owned(),
        "adam" => "Adam".to_owned(),
        "beta1" => "β₁".to_owned(),
        "beta2" => "β₂".to_owned(),
        "8bit" => "8 bits".to_owned(),
        other => other.to_owned(),
    };
    let text = name.split('_').map(word).collect::<Vec<_>>().join(" ");
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::dreambooth::DreamBoothConfig;
    use crate::options::reading::Configuration;
    use serde_json::json;

    #[test]
    fn a_form_has_every_option_that_help_shows_and_what_it_takes() {
        let groups = form(&DreamBoothConfig::command());
        let titles: Vec<&str> = groups.iter().map(|group| group.title.as_str()).collect();
        assert_eq!(titles, ["Model", "Data", "Adapter", "Training", "Memory", "Output"]);
        let fields: Vec<&Field> = groups.iter().flat_map(|group| &group.fields).collect();
        let of = |name: &str| *fields.iter().find(|field| field.name == name).unwrap();
        assert_eq!((of("lora_r").kind, &of("lora_r").default), (FieldKind::Integer, &json!(8)));
        assert_eq!(of("lora_text_encoder_r").label, "LoRA text encoder rank");
        for (name, kind) in [
            ("learning_rate", FieldKind::Number),
            ("use_dora", FieldKind::Flag),
            ("lora_rank_pattern", FieldKind::Map),
            ("lora_modules_to_save", FieldKind::List),
            ("mixed_precision", FieldKind::Choice),
            ("instance_data_dir", FieldKind::Text),
            ("resolution", FieldKind::Integer),
        ] {
            assert_eq!(of(name).kind, kind, "{name}");
        }
        let choices: Vec<&str> = of("cache_latents").choices.iter().map(|choice| choice.value.as_str()).collect();
        assert_eq!((choices, &of("cache_latents").default), (vec!["auto", "true", "false"], &json!("auto")));
        assert!(of("lora_text_encoder_rank_pattern")
            .help
            .as_ref()
            .unwrap()
            .ends_with("the form of ⟨lora_rank_pattern⟩"));
        assert!(fields.iter().all(|field| field.help.is_some() && field.name != "push_to_hub"));
    }
}
