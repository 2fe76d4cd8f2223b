//! The server for gradio's clients, Python's `gradio_client` and JavaScript's `@gradio/client`, and for curl: the same jobs as the
//! JSON API's, by the protocol `sse_v3` of gradio 6.
//!
//! Files that a client names or is given are keys of a table ([`files`]); a call is a job that a stream of messages follows
//! ([`following`]), and a stream that breaks leaves the job alone ([`sessions`]).

mod calls;
mod endpoints;
mod files;
mod following;
mod messages;
mod sessions;

use super::App;
use crate::error::Result;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::Router;
use files::Files;
use sessions::Sessions;

/// What the server keeps for these clients, in memory alone.
pub struct Gradio {
    sessions: Sessions,
    files: Files,
}

impl Gradio {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        Ok(Self { sessions: Sessions::default(), files: Files::new()? })
    }

    /// Forgets what `owner` has uploaded.
    pub fn forget(&self, owner: &str) {
        self.files.forget(owner);
    }

    /// Forgets uploads and addresses of files that are old.
    pub fn sweep(&self) {
        self.files.sweep();
    }
}

/// `router` with the addresses that gradio's clients ask; an upload can have `most` bytes.
pub fn add_routes(router: Router<App>, most: usize) -> Router<App> {
    router
        .route("/config", get(endpoints::config))
        .route("/gradio_api/info", get(endpoints::info))
        .route("/gradio_api/upload", post(files::upload).layer(DefaultBodyLimit::max(most)))
        .route("/gradio_api/queue/join", post(calls::join))
        .route("/gradio_api/queue/data", get(calls::stream))
        .route("/gradio_api/cancel", post(calls::cancel))
        .route("/gradio_api/reset", post(calls::reset))
        .route("/gradio_api/call/{name}", post(calls::call))
        .route("/gradio_api/call/{name}/{event}", get(calls::answer))
        .route("/gradio_api/{*file}", get(files::send))
}
