//! What a request is answered with that cannot be done: a status, one sentence, and the field at fault.

use crate::error::Error;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::json;

/// The answer of a handler.
pub type Answer<T = Response> = std::result::Result<T, Failure>;

/// A refusal.
#[derive(Debug)]
pub struct Failure {
    /// The status.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub sentence: String,
    /// The option at fault, in snake_case.
    pub field: Option<String>,
}

impl Failure {
    /// With the status `status`.
    pub fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into(), field: None }
    }

    /// What was asked for is not there.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no such {what}; it may have been deleted"))
    }

    /// The request cannot be meant.
    pub fn bad(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    /// The request does not go together with the state of what it names.
    pub fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, sentence)
    }

    /// The option `field` has a value that cannot be used.
    pub fn field(field: &str, sentence: impl Into<String>) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, sentence: sentence.into(), field: Some(field.to_owned()) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "sentence": self.sentence, "field": self.field } });
        (self.status, Json(body)).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (sentence, field) = of_option(&error.to_string());
        let status = match error {
            Error::Io { .. } | Error::Internal(_) | Error::Torch(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self { status, sentence, field }
    }
}

/// A sentence that names options as flags (`--lora-r`), with their names as the page's form has them (`lora_r`), and the first of
/// them.
pub fn of_option(sentence: &str) -> (String, Option<String>) {
    let (mut text, mut first) = (String::new(), None);
    let mut rest = sentence;
    while let Some(at) = rest.find("--") {
        let is_start = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
        let name = &rest[at + 2..];
        let end =
            name.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')).unwrap_or(name.len());
        text.push_str(&rest[..at]);
        if is_start && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            let name = name[..end].trim_end_matches('-').replace('-', "_");
            text.push_str(&name);
            rest = &rest[at + 2 + name.len()..];
            first.get_or_insert(name);
        } else {
            text.push_str("--");
            rest = name;
        }
    }
    text.push_str(rest);
    (text, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_in_a_sentence_become_fields() {
        let (text, field) = of_option("--lora-r is 0; it must be 1 to 4096, or leave --use-dora out -- really");
        assert_eq!(text, "lora_r is 0; it must be 1 to 4096, or leave use_dora out -- really");
        assert_eq!(field.as_deref(), Some("lora_r"));
        assert_eq!(of_option("no photo is there"), ("no photo is there".to_owned(), None));
    }
}
