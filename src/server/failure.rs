//! What a request is answered with that cannot be done: a status, one sentence, and the field at fault.

use super::schema::{object, or_null, text};
use crate::error::Error;
use crate::sentence::with_options;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};
use std::cell::RefCell;

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
        let (sentence, mut field) = of_option(&error.to_string());
        if matches!(error, Error::NoTarget(_)) {
            field = Some("lora_targets".to_owned());
        }
        let status = match error {
            Error::Io { .. } | Error::Internal(_) | Error::Torch(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self { status, sentence, field }
    }
}

/// A refusal's body.
pub fn schema() -> Value {
    object([("error", object([("sentence", text()), ("field", or_null(text()))]))])
}

/// A sentence with the options in it as the page's form has them (`lora_r`), and the option that it is about: the one that it begins
/// with, else the first.
pub fn of_option(sentence: &str) -> (String, Option<String>) {
    let first = RefCell::new(None);
    let text = with_options(sentence, |name| {
        let is_new = first.borrow().is_none();
        if is_new {
            first.replace(Some(name.to_owned()));
        }
        name.to_owned()
    });
    (text, first.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_a_sentence_become_fields() {
        let (text, field) = of_option("⟨lora_r⟩ is 0; it must be 1 to 4096, or leave ⟨use_dora⟩ out");
        assert_eq!(text, "lora_r is 0; it must be 1 to 4096, or leave use_dora out");
        assert_eq!(field.as_deref(), Some("lora_r"));
        assert_eq!(of_option("no photo is there"), ("no photo is there".to_owned(), None));
    }
}
