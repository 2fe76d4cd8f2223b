//! What can be said of a job: the options of the recipes as JSON, in requests and in forms.

use super::failure::{of_option, Answer, Failure};
use super::models::{Model, ModelKind, DEMO};
use super::schema::{list_of, map, object, or_null, text, word};
use super::App;
use crate::options::form::{form, Choice, Field, Group};
use clap::Command;
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

    /// Takes the model, which must be of `kind`; the one inside the binary where none is named and it is.
    pub fn model(&mut self, app: &App, kind: ModelKind) -> Answer<Model> {
        let named = self.text("model")?;
        let wanted = match (named, kind) {
            (Some(named), _) => named,
            (None, ModelKind::StableDiffusion) => DEMO.to_owned(),
            (None, ModelKind::Language) => return Err(Failure::field("model", "choose a language model")),
        };
        let model = app.models.find(&wanted, app.limits.is_some())?;
        let refusal = match kind {
            // Of one that is not here yet, nothing but the name is known.
            _ if model.kind == kind || !model.is_here() => return Ok(model),
            ModelKind::StableDiffusion => "draws no pictures; choose a Stable Diffusion model",
            ModelKind::Language => "writes no texts; choose a language model",
        };
        Err(Failure::field("model", format!("{} {refusal}", model.name)))
    }

    /// What is left: options of `command`, of which those `filled_in` are nobody's to say. Those that say nothing are left out.
    pub fn rest(self, command: &Command, filled_in: &[&str]) -> Answer<Map<String, Value>> {
        let is_free = |name: &str| {
            let arg = command.get_arguments().find(|arg| arg.get_id() == name);
            arg.is_some_and(|arg| !arg.is_hide_set()) && !filled_in.contains(&name)
        };
        let mut rest = self.left;
        rest.retain(|_, value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Bool(_) | Value::Number(_) => true,
        });
        for (name, value) in &rest {
            if !is_free(name) {
                return Err(Failure::field(name, format!("there is no option `{}`", crate::plain_text::value(name))));
            }
            let bytes = value.as_str().map_or_else(|| value.to_string().len(), str::len);
            if bytes > MAX_VALUE {
                return Err(too_long(name));
            }
        }
        Ok(rest)
    }
}

/// The refusal of a longer text.
pub fn too_long(name: &str) -> Failure {
    Failure::field(name, format!("{name} has more than {MAX_VALUE} bytes; shorten it"))
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

/// Options as a form needs them, with settings to start from.
pub fn schema() -> Value {
    let choice = object([("value", text()), ("help", or_null(text()))]);
    let field = object([
        ("name", text()),
        ("label", text()),
        ("kind", word(&["text", "number", "integer", "flag", "choice", "list", "map"])),
        ("default", json!({})),
        ("choices", list_of(choice)),
        ("help", or_null(text())),
    ]);
    let preset = object([
        ("name", text()),
        ("title", text()),
        ("model", or_null(text())),
        ("values", map()),
        ("sentence", text()),
    ]);
    object([("groups", list_of(object([("title", text()), ("fields", list_of(field))]))), ("presets", list_of(preset))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::dreambooth::DreamBoothConfig;
    use crate::options::reading::Configuration;
    use crate::server::training::{dreambooth_command, FILLED_IN};

    fn read(options: Value) -> Answer<DreamBoothConfig> {
        let mut rest = Asked::new(options.as_object().unwrap()).rest(&dreambooth_command(), FILLED_IN)?;
        rest.insert("model".to_owned(), json!("m"));
        rest.insert("instance_data_dir".to_owned(), json!("d"));
        Ok(DreamBoothConfig::from_map(&rest)?)
    }

    #[test]
    fn what_says_nothing_is_as_if_it_was_not_there() {
        let config = read(json!({
            "instance_prompt": "p", "class_prompt": "", "lora_rank_pattern": {}, "lora_modules_to_save": [], "lora_r": null,
        }))
        .unwrap();
        assert!(config.class_prompt.is_none() && config.unet.lora_rank_pattern.is_none() && config.unet.lora_r == 8);
        let unsaid = ["class_prompt", "lora_rank_pattern", "lora_modules_to_save", "lora_r"];
        assert!(config.given.names().all(|name| !unsaid.contains(&name)));
    }

    #[test]
    fn paths_unknown_names_and_wrong_kinds_are_refused_by_their_field() {
        for (options, field) in [
            (json!({ "output_dir": "/etc" }), "output_dir"),
            (json!({ "no_such": 1 }), "no_such"),
            // Another name of an option would slip past what is checked of it.
            (json!({ "steps": 1 }), "steps"),
            (json!({ "train_text_encoder": "yes", "instance_prompt": "p" }), "train_text_encoder"),
            (json!({ "push_to_hub": true }), "push_to_hub"),
            (json!({ "instance_prompt": "x".repeat(30_000) }), "instance_prompt"),
            (json!({ "lora_modules_to_save": ["x".repeat(30_000)] }), "lora_modules_to_save"),
        ] {
            assert_eq!(read(options).unwrap_err().field.as_deref(), Some(field));
        }
        let failure = read(json!({ "lora_r": "many", "instance_prompt": "p" })).unwrap_err();
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
