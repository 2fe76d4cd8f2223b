//! `lorabooth serve` as its clients see it: uploads, jobs, events, pictures, adapters, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

#[path = "server/answers.rs"]
mod answers;
#[path = "server/client.rs"]
mod client;
#[path = "server/embedding.rs"]
mod embedding;
#[path = "server/hostile.rs"]
mod hostile;
#[path = "push/hub.rs"]
mod hub;
#[path = "server/hub_models.rs"]
mod hub_models;
#[path = "hub/server.rs"]
#[allow(dead_code, reason = "other tests ask more of the mirror")]
mod hub_of_files;
#[path = "server/jobs.rs"]
mod jobs;
#[path = "support/jobs.rs"]
mod language_jobs;
#[path = "server/limits.rs"]
mod limits;
#[path = "server/pictures.rs"]
mod pictures;
#[path = "server/pushes.rs"]
mod pushes;
#[path = "server/safety.rs"]
mod safety;
#[path = "server/texts.rs"]
mod texts;
#[path = "server/uploads.rs"]
mod uploads;
#[path = "server/visitors.rs"]
mod visitors;
