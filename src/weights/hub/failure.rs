//! What went wrong with the hub, in one sentence.

use super::Hub;
use crate::error::Error;
use hf_hub::api::sync::ApiError;
use hf_hub::{Repo, RepoType};

/// What is being asked for.
pub(super) struct Attempt<'a> {
    pub(super) hub: &'a Hub,
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
}

impl Attempt<'_> {
    pub(super) fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.to_owned(), RepoType::Model, revision.to_owned())
    }

    pub(super) fn not_cached(&self) -> Error {
        Error::invalid(format!(
            "`{}` is not (or not whole) in the cache {} and HF_HUB_OFFLINE is set; unset it to download",
            self.id,
            self.hub.cache.display()
        ))
    }

    pub(super) fn strange_answer(&self) -> Error {
        Error::invalid(format!("{} answered strangely about `{}`; is HF_ENDPOINT right?", self.hub.endpoint, self.id))
    }

    /// `error` said of the repository.
    pub(super) fn of_repository(&self, error: Error) -> Error {
        match error {
            Error::Invalid(message) => Error::Invalid(format!("`{}` {message}", self.id)),
            other => other,
        }
    }

    pub(super) fn error(&self, error: ApiError) -> Error {
        let Attempt { hub, id, revision } = self;
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::Status(status, response) => {
                    Error::invalid(self.refused(status, response.header("x-error-code").unwrap_or_default()))
                }
                ureq::Error::Transport(transport) => Error::invalid(format!(
                    "cannot reach {}: {}; models that were fetched before are found without it",
                    hub.endpoint,
                    transport.message().unwrap_or("no connection")
                )),
            },
            ApiError::IoError(source) if is_of_the_connection(&source) => Error::invalid(format!(
                "the download of `{id}` ({revision}) broke off: {source}; run it again and it goes on where it stopped"
            )),
            ApiError::IoError(source) => Error::io("write", &hub.cache, source),
            ApiError::LockAcquisition(path) => {
                Error::file(path, format!("another process is downloading `{id}`; wait until it has finished"))
            }
            _ => self.strange_answer(),
        }
    }

    fn refused(&self, status: u16, code: &str) -> String {
        let Attempt { hub: Hub { endpoint, token, .. }, id, revision } = self;
        match (status, code) {
            (_, "GatedRepo") => {
                format!("`{id}` is gated: accept its terms at {endpoint}/{id}, then set HF_TOKEN to a token of yours")
            }
            (_, "RevisionNotFound") => format!("`{id}` has no revision `{revision}`"),
            (404, _) | (_, "RepoNotFound") => {
                format!("there is no model `{id}` at {endpoint}, or it is private: check the name, or set HF_TOKEN")
            }
            (401 | 403, _) if token.is_some() => {
                format!("{endpoint} does not let HF_TOKEN read `{id}`: check the token and the model's terms at {endpoint}/{id}")
            }
            (401 | 403, _) => {
                format!("`{id}` is not open to everyone: accept its terms at {endpoint}/{id} and set HF_TOKEN")
            }
            (429, _) => {
                format!("{endpoint} says that there were too many requests; wait a few minutes, or set HF_TOKEN")
            }
            (500.., _) => format!("{endpoint} has a problem of its own (status {status}); try again later"),
            _ => format!("{endpoint} refused `{id}` with status {status}"),
        }
    }
}

/// Whether there was no answer at all.
pub(super) fn is_transport(error: &ApiError) -> bool {
    matches!(error, ApiError::RequestError(error) if matches!(**error, ureq::Error::Transport(_)))
}

/// Whether a partial download cannot be gone on with.
pub(super) fn is_bad_resume(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(error) => matches!(**error, ureq::Error::Status(416, _)),
        _ => false,
    }
}

/// Whether the connection broke while a file came.
pub(super) fn is_interruption(error: &ApiError) -> bool {
    is_transport(error) || matches!(error, ApiError::IoError(source) if is_of_the_connection(source))
}

fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, InvalidData, Other, TimedOut, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | InvalidData | Other | TimedOut | UnexpectedEof
    )
}
