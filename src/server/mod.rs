//! The server of `lorabooth serve`: a queue of jobs behind a JSON API, with the page in `web/` in front of it.
//!
//! Requests are answered by one thread; another owns the device and works the queue off, and one beside it uploads to the hub
//! ([`worker`]); a last one owns the database ([`store`]).

mod accounts;
mod assets;
mod data_folder;
mod drawing;
mod embedding;
mod events;
mod failure;
mod gradio;
mod guard;
mod ids;
mod import;
mod jobs;
mod language_training;
mod library;
mod likeness;
mod live;
mod models;
mod observer;
mod openapi;
mod options;
mod pictures;
mod plan;
mod presets;
mod pushing;
mod request;
mod routes;
mod schema;
mod serve;
mod sets;
mod state;
mod store;
mod training;
mod uploaded_file;
mod visitors;
mod worker;
mod writing;

pub use accounts::Account;
pub use data_folder::DataFolder;
pub use embedding::Embedding;
pub use serve::{serve, Address};

use crate::error::Result;
use axum::Router;
use events::Events;
use gradio::Gradio;
use models::Models;
use pushing::Tokens;
use serde::Serialize;
use std::ops::Deref;
use std::sync::Arc;
use store::Store;
use tch::Device;
use tokio::sync::{watch, Semaphore};
use worker::Worker;

/// What is asked of a server.
pub struct Settings {
    /// Where everything is kept.
    pub data: DataFolder,
    /// Models to serve: folders, files and hub ids.
    pub models: Vec<String>,
    /// Where it computes.
    pub device: Device,
    /// The account that has to be signed in to.
    pub account: Option<Account>,
    /// Names that the server goes by, beside addresses and localhost.
    pub host_names: Vec<String>,
    /// Sites that may show the page in a frame.
    pub embedding: Embedding,
    /// Jobs that an earlier server did not finish go on by themselves.
    pub resume_jobs: bool,
    /// Of a public server.
    pub limits: Option<Limits>,
}

/// What a visitor of a public server may ask for.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Photos of a set.
    pub max_photos: u64,
    /// Steps of a training.
    pub max_steps: u64,
    /// Minutes of a job.
    pub max_minutes: u64,
    /// Jobs of a visitor that wait or run.
    pub max_jobs: u64,
    /// Hours until what a visitor made is deleted.
    pub keep_hours: u64,
}

/// The server as its handlers see it. Clones are the same one.
#[derive(Clone)]
pub struct App(Arc<Shared>);

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What an [`App`] holds.
pub struct Shared {
    data: DataFolder,
    store: Store,
    events: Events,
    models: Models,
    worker: Worker,
    tokens: Tokens,
    device: Device,
    account: Option<Arc<Account>>,
    host_names: Vec<String>,
    embedding: Embedding,
    limits: Option<Limits>,
    /// The server is about to end: streams end too.
    stopping: watch::Sender<bool>,
    /// What gradio's clients are in the middle of.
    gradio: Gradio,
    /// Photos are decoded, and adapters converted, one at a time: each takes hundreds of megabytes.
    heavy: Semaphore,
}

impl App {
    /// Opens the data folder, and starts the threads that work the queue off.
    pub fn start(settings: Settings) -> Result<Self> {
        let store = Store::open(&settings.data.database())?;
        let models = Models::new(&settings.data, &settings.models)?;
        let app = Self(Arc::new(Shared {
            store,
            events: Events::new(),
            models,
            worker: Worker::new(),
            tokens: Tokens::default(),
            device: settings.device,
            account: settings.account.map(Arc::new),
            host_names: settings.host_names,
            embedding: settings.embedding,
            limits: settings.limits,
            stopping: watch::Sender::new(false),
            gradio: Gradio::new()?,
            heavy: Semaphore::new(1),
            data: settings.data,
        }));
        jobs::after_a_start(&app, settings.resume_jobs)?;
        worker::start(&app)?;
        Ok(app)
    }
}

/// All routes of the server, behind its guards.
pub fn router(app: App) -> Router {
    routes::router(app)
}
