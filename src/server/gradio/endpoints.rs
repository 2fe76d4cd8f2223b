//! What can be called, as `/config` and `/gradio_api/info` describe it, and what a call is given.

use super::super::failure::{Answer, Failure};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Map, Value};

/// The version of gradio whose protocol this is; clients leave out what older ones cannot do.
const VERSION: &str = "6.31.0";

/// Something that can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Trains an adapter on files.
    Train,
    /// Follows a run that is there.
    Follow,
    /// Stops a run.
    Stop,
    /// Lists runs.
    Runs,
    /// Draws pictures.
    Generate,
    /// Continues, answers or classifies a text.
    Complete,
}

/// What a value is, by the component that gradio would show it in.
#[derive(Debug, Clone, Copy)]
enum Component {
    Files,
    Text,
    Number,
    Json,
    Gallery,
}

impl Component {
    /// Its name, its JSON schema, and its type in Python.
    fn described(self) -> (&'static str, Value, &'static str) {
        let file = json!({ "title": "FileData", "type": "object" });
        match self {
            Self::Files => ("File", json!({ "type": "array", "items": file }), "list[filepath]"),
            Self::Text => ("Textbox", json!({ "type": "string" }), "str"),
            Self::Number => ("Number", json!({ "type": "number" }), "float"),
            Self::Json => ("JSON", json!({}), "dict"),
            Self::Gallery => {
                let item = json!({ "type": "object", "properties": { "image": file, "caption": { "type": ["string", "null"] } } });
                (
                    "Gallery",
                    json!({ "type": "array", "items": item }),
                    "list[dict(image: filepath, caption: str | None)]",
                )
            }
        }
    }
}

/// A value that a call takes.
struct Parameter {
    name: &'static str,
    component: Component,
    help: &'static str,
    /// What it is where nothing is given; none where something must be.
    default: Option<Value>,
}

fn needed(name: &'static str, component: Component, help: &'static str) -> Parameter {
    Parameter { name, component, help, default: None }
}

fn optional(name: &'static str, component: Component, help: &'static str, default: Value) -> Parameter {
    Parameter { name, component, help, default: Some(default) }
}

impl Endpoint {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 6] = [Self::Train, Self::Follow, Self::Stop, Self::Runs, Self::Generate, Self::Complete];

    /// Its name, without the slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Follow => "follow",
            Self::Stop => "stop",
            Self::Runs => "runs",
            Self::Generate => "generate",
            Self::Complete => "complete",
        }
    }

    /// That of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.name() == name)
    }

    /// That of a number.
    pub fn numbered(number: usize) -> Option<Self> {
        Self::ALL.get(number).copied()
    }

    fn parameters(self) -> Vec<Parameter> {
        use Component::{Files, Json, Number, Text};
        let model = || {
            optional("model", Text, "A model of this server, or of the hub by its id; null for the first", Value::Null)
        };
        let more = |of: &'static str| optional("options", Json, of, Value::Null);
        match self {
            Self::Train => vec![
                needed("files", Files, "Photos, zip files of photos and .txt captions; or one file of records for a language model"),
                optional("instance_prompt", Text, "What the photos show, with a rare word: a photo of sks dog", json!("")),
                optional("steps", Number, "Optimizer steps; null for the usual number", Value::Null),
                model(),
                more("Every other option of a training by its name, as /api/options/dreambooth and /api/options/llm list them"),
            ],
            Self::Follow => vec![optional("run", Text, "A run's name; empty for the newest", json!(""))],
            Self::Stop => vec![needed("run", Text, "A run's name")],
            Self::Runs => Vec::new(),
            Self::Generate => vec![
                needed("prompt", Text, "What to draw"),
                optional("adapter", Text, "A run or an uploaded adapter by its name; empty for none", json!("")),
                optional("strength", Number, "How strong the adapter is; 1 as it was trained", json!(1.0)),
                optional("negative_prompt", Text, "What to keep out", json!("")),
                optional("steps", Number, "Sampling steps; null for the usual number", Value::Null),
                optional("guidance", Number, "Guidance scale; null for the usual one", Value::Null),
                optional("seed", Number, "Seed; null for a random one", Value::Null),
                optional("number", Number, "Pictures", json!(1)),
                model(),
                more("Every other option by its name, as /api/options/generate lists them"),
            ],
            Self::Complete => vec![
                needed("prompt", Text, "A text to continue, answer or classify"),
                model(),
                optional("adapter", Text, "A run or an uploaded adapter by its name; empty for none", json!("")),
                optional("max_new_tokens", Number, "Most tokens to write; null for the usual number", Value::Null),
                more("Every other option by its name, as /api/options/complete lists them"),
            ],
        }
    }

    /// Name and component of each value that a call gives.
    fn outputs(self) -> &'static [(&'static str, Component)] {
        use Component::{Files, Gallery, Json, Text};
        match self {
            Self::Train | Self::Follow => &[("run", Text), ("state", Json), ("files", Files), ("pictures", Gallery)],
            Self::Stop => &[("state", Json)],
            Self::Runs => &[("runs", Json)],
            Self::Generate => &[("pictures", Gallery), ("state", Json)],
            Self::Complete => &[("text", Text), ("state", Json)],
        }
    }

    /// What is given for each parameter, by its name: values that are missing at the end have their defaults.
    pub fn arguments(self, data: Vec<Value>) -> Answer<Arguments> {
        let parameters = self.parameters();
        if data.len() > parameters.len() {
            let sentence = format!("/{} takes {} values and was given {}", self.name(), parameters.len(), data.len());
            return Err(Failure::bad(sentence));
        }
        let mut data = data.into_iter();
        let mut named = Map::new();
        for parameter in parameters {
            let value = match (data.next(), parameter.default) {
                (None, None) => return Err(Failure::field(parameter.name, format!("{} is missing", parameter.name))),
                (Some(value), _) if !value.is_null() => value,
                (_, default) => default.unwrap_or(Value::Null),
            };
            named.insert(parameter.name.to_owned(), value);
        }
        Ok(Arguments(named))
    }
}

/// What a call was given, by names.
#[derive(Debug)]
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// Takes what is given as `name`, as it came.
    pub fn take(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or(Value::Null)
    }

    /// A text; empty where there is none.
    pub fn text(&mut self, name: &'static str) -> Answer<String> {
        match self.take(name) {
            Value::String(text) => Ok(text),
            Value::Null => Ok(String::new()),
            _ => Err(Failure::field(name, format!("{name} must be a text"))),
        }
    }

    /// A number that is whole, as an integer, or any; null where there is none.
    pub fn number(&mut self, name: &'static str) -> Answer<Value> {
        let wrong = || Failure::field(name, format!("{name} must be a number"));
        let number = match self.take(name) {
            Value::Null => return Ok(Value::Null),
            Value::Number(number) => number.as_f64().ok_or_else(wrong)?,
            Value::String(text) => text.trim().parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        // JavaScript and gradio's Number have no integers.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        Ok(match number.fract() == 0.0 && number.abs() < EXACT {
            true => json!(number as i64),
            false => json!(number),
        })
    }

    /// The further options: an object, or one as a text.
    pub fn options(&mut self) -> Answer<Map<String, Value>> {
        let wrong = || Failure::field("options", "options must be a JSON object with options by their names");
        match self.take("options") {
            Value::Null => Ok(Map::new()),
            Value::Object(options) => Ok(options),
            Value::String(text) if text.trim().is_empty() => Ok(Map::new()),
            Value::String(text) => serde_json::from_str(&text).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

/// `GET /config`. There is no `root`: clients then go on asking where they were told to.
pub async fn config() -> Response {
    let mut components = Vec::new();
    let mut add = |component: Component, label: &str| {
        let id = components.len() + 1;
        components
            .push(json!({ "id": id, "type": component.described().0.to_lowercase(), "props": { "label": label } }));
        id
    };
    let mut dependencies = Vec::new();
    for (number, endpoint) in Endpoint::ALL.into_iter().enumerate() {
        let inputs: Vec<usize> =
            endpoint.parameters().iter().map(|parameter| add(parameter.component, parameter.name)).collect();
        let outputs: Vec<usize> = endpoint.outputs().iter().map(|(name, component)| add(*component, name)).collect();
        let is_long = !matches!(endpoint, Endpoint::Stop | Endpoint::Runs);
        dependencies.push(json!({
            "id": number, "api_name": endpoint.name(), "inputs": inputs, "outputs": outputs, "backend_fn": true, "queue": true,
            "api_visibility": "public", "types": { "generator": is_long, "cancel": false },
        }));
    }
    Json(json!({
        "version": VERSION, "protocol": "sse_v3", "api_prefix": "/gradio_api", "connect_heartbeat": false, "enable_queue": true,
        "run_history": false, "components": components, "dependencies": dependencies,
    }))
    .into_response()
}

/// `GET /gradio_api/info`.
pub async fn info() -> Response {
    let mut named = Map::new();
    for endpoint in Endpoint::ALL {
        let parameters: Vec<Value> = endpoint
            .parameters()
            .into_iter()
            .map(|parameter| {
                let (component, schema, python) = parameter.component.described();
                json!({
                    "label": parameter.help, "parameter_name": parameter.name, "parameter_has_default": parameter.default.is_some(),
                    "parameter_default": parameter.default, "type": schema, "python_type": { "type": python, "description": parameter.help },
                    "component": component,
                })
            })
            .collect();
        let returns: Vec<Value> = endpoint
            .outputs()
            .iter()
            .map(|(name, component)| {
                let (component, schema, python) = component.described();
                json!({ "label": name, "type": schema, "python_type": { "type": python, "description": "" }, "component": component })
            })
            .collect();
        named.insert(
            format!("/{}", endpoint.name()),
            json!({ "parameters": parameters, "returns": returns, "api_visibility": "public" }),
        );
    }
    Json(json!({ "named_endpoints": named, "unnamed_endpoints": {} })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_given_by_position_and_the_rest_are_defaults() {
        let mut given = Endpoint::Generate.arguments(vec![json!("a bird"), Value::Null, json!(0.5)]).unwrap();
        assert_eq!(
            (given.text("prompt").unwrap(), given.text("adapter").unwrap()),
            ("a bird".to_owned(), String::new())
        );
        assert_eq!((given.number("strength").unwrap(), given.number("number").unwrap()), (json!(0.5), json!(1)));
        assert!(Endpoint::Generate.arguments(Vec::new()).is_err() && Endpoint::Runs.arguments(vec![json!(1)]).is_err());
    }

    #[test]
    fn whole_numbers_are_integers_and_options_may_be_a_text() {
        let data = vec![json!([]), json!("p"), json!(40.0), Value::Null, json!("{\"lora_r\": 2}")];
        let mut given = Endpoint::Train.arguments(data).unwrap();
        assert_eq!((given.number("steps").unwrap(), given.options().unwrap()["lora_r"].clone()), (json!(40), json!(2)));
        let mut wrong =
            Endpoint::Train.arguments(vec![json!([]), json!(1), json!("many"), Value::Null, json!([])]).unwrap();
        assert!(wrong.text("instance_prompt").is_err() && wrong.number("steps").is_err() && wrong.options().is_err());
    }
}
