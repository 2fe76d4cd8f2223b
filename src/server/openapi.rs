//! The description of the API at `/openapi.json`, made from the table that makes the router.

use super::schema::named;
use super::state::{JobKind, Progress};
use super::{events, failure, jobs, library, models, options, plan, routes, sets, App};
use axum::routing::MethodRouter;
use serde_json::{json, Map, Value};

/// What an address answers with.
enum Sent {
    /// No body.
    Nothing,
    /// JSON that fits a schema.
    Json(Value),
    /// One of these media types.
    Bytes(&'static [&'static str]),
}

/// One address with one method.
pub struct Endpoint {
    method: &'static str,
    /// The address, with `{names}` for ids.
    pub path: &'static str,
    summary: &'static str,
    body: Option<Value>,
    needs_body: bool,
    files: Option<&'static str>,
    query: Vec<(&'static str, &'static str)>,
    answer: Sent,
    /// What answers.
    pub handler: MethodRouter<App>,
}

impl Endpoint {
    /// `method` in lower case.
    pub fn new(method: &'static str, path: &'static str, summary: &'static str, handler: MethodRouter<App>) -> Self {
        Self {
            method,
            path,
            summary,
            body: None,
            needs_body: true,
            files: None,
            query: Vec::new(),
            answer: Sent::Nothing,
            handler,
        }
    }

    /// It takes JSON that fits `schema`.
    pub fn body(self, schema: Value) -> Self {
        Self { body: Some(schema), ..self }
    }

    /// It takes JSON that fits `schema`, or none.
    pub fn optional_body(self, schema: Value) -> Self {
        Self { body: Some(schema), needs_body: false, ..self }
    }

    /// It takes a form with files in the field `name`.
    pub fn files(self, name: &'static str) -> Self {
        Self { files: Some(name), ..self }
    }

    /// It answers with JSON that fits `schema`.
    pub fn answers(self, schema: Value) -> Self {
        Self { answer: Sent::Json(schema), ..self }
    }

    /// It answers with what the schema `name` of the document says.
    pub fn answers_with(self, name: &str) -> Self {
        self.answers(named(name))
    }

    /// It answers with bytes of one of these media types.
    pub fn sends(self, kinds: &'static [&'static str]) -> Self {
        Self { answer: Sent::Bytes(kinds), ..self }
    }

    /// It heeds a parameter behind `?`.
    pub fn query(mut self, name: &'static str, kind: &'static str) -> Self {
        self.query.push((name, kind));
        self
    }

    fn description(&self) -> Value {
        let in_path = self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        parameters.extend(
            self.query.iter().map(|(name, kind)| json!({ "name": name, "in": "query", "schema": { "type": kind } })),
        );
        let mut description = json!({
            "summary": self.summary,
            "parameters": parameters,
            "responses": {
                "default": {
                    "description": "A refusal",
                    "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Failure" } } },
                },
                "2XX": { "description": "Done" },
            },
        });
        match &self.answer {
            Sent::Nothing => {}
            Sent::Json(schema) => {
                description["responses"]["2XX"]["content"] = json!({ "application/json": { "schema": schema } });
            }
            Sent::Bytes(kinds) => {
                let kinds: Map<_, _> = kinds.iter().map(|kind| ((*kind).to_owned(), json!({}))).collect();
                description["responses"]["2XX"]["content"] = Value::Object(kinds);
            }
        }
        let file = |name: &str| {
            json!({
                "type": "object",
                "properties": { name: { "type": "array", "items": { "type": "string", "format": "binary" } } },
            })
        };
        let content = match (&self.body, self.files) {
            (Some(schema), _) => json!({ "application/json": { "schema": schema } }),
            (None, Some(name)) => json!({ "multipart/form-data": { "schema": file(name) } }),
            (None, None) => return description,
        };
        description["requestBody"] = json!({ "required": self.needs_body, "content": content });
        description
    }
}

/// The body of a new job.
pub fn new_job() -> Value {
    // A push has an address of its own.
    let kinds: Vec<&str> = JobKind::NAMES.iter().copied().filter(|name| *name != JobKind::Push.name()).collect();
    json!({
        "type": "object", "required": ["kind"], "additionalProperties": false,
        "properties": {
            "kind": { "type": "string", "enum": kinds }, "name": { "type": ["string", "null"] }, "set": { "type": ["string", "null"] },
            "options": { "type": "object", "description": "By the names of /api/options" },
        },
    })
}

/// The whole document.
pub fn document(endpoints: &[Endpoint]) -> Value {
    let mut paths = Map::new();
    for endpoint in endpoints {
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = endpoint.description();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "lorabooth", "version": env!("CARGO_PKG_VERSION"),
            "description": "Trains LoRA adapters and draws with them. Sign in at /login where the server has a password; the cookie \
                that comes back goes with every request.",
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

/// What answers are made of, each as it is written beside what makes it.
fn schemas() -> Value {
    let schemas = [
        ("Failure", failure::schema()),
        ("Job", jobs::shown::schema()),
        ("JobWithLines", jobs::record::with_lines_schema(jobs::shown::schema())),
        ("Progress", Progress::schema()),
        ("Picture", jobs::record::picture_schema()),
        ("Step", jobs::record::step_schema()),
        ("Set", sets::schema()),
        ("Adapter", library::schema()),
        ("Model", models::schema()),
        ("Plan", plan::schema()),
        ("Options", options::schema()),
        ("State", routes::state_schema()),
        ("Event", events::schema()),
    ];
    Value::Object(schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect())
}
