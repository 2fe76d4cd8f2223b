//! The description of the API at `/openapi.json`, made from the table that makes the router.

use super::state::{JobKind, JobState};
use super::App;
use axum::routing::MethodRouter;
use serde_json::{json, Map, Value};

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
    answers_with_a_job: bool,
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
            answers_with_a_job: false,
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

    /// It answers with a job.
    pub fn job(self) -> Self {
        Self { answers_with_a_job: true, ..self }
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
        if self.answers_with_a_job {
            let schema = json!({ "$ref": "#/components/schemas/Job" });
            description["responses"]["2XX"]["content"] = json!({ "application/json": { "schema": schema } });
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
        "components": { "schemas": { "Failure": {
            "type": "object", "required": ["error"], "properties": { "error": {
                "type": "object", "required": ["sentence"], "properties": {
                    "sentence": { "type": "string" }, "field": { "type": ["string", "null"] },
                },
            } },
        }, "Job": job() } },
    })
}

/// A job as it is shown.
fn job() -> Value {
    let text = || json!({ "type": ["string", "null"] });
    json!({
        "type": "object", "required": ["id", "kind", "name", "state", "actions", "options", "results", "command"], "properties": {
            "id": { "type": "string" }, "kind": { "type": "string", "enum": JobKind::NAMES }, "name": { "type": "string" },
            "state": { "type": "string", "enum": JobState::NAMES },
            "actions": { "type": "array", "items": { "type": "string" }, "description": "What /api/jobs/{id}/{action} takes now" },
            "position": { "type": ["integer", "null"] }, "wait_seconds": { "type": ["number", "null"] },
            "created": { "type": "string" }, "started": text(), "ended": text(), "error": text(), "field": text(),
            "options": { "type": "object" }, "set": text(), "command": { "type": "string" },
            "progress": { "type": ["object", "null"] }, "memory_bytes": { "type": ["integer", "null"] },
            "results": { "type": "object" },
        },
    })
}
