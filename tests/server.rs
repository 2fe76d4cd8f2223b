//! `lorabooth serve` as its clients see it: uploads, jobs, events, pictures, adapters, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

#[path = "server/client.rs"]
mod client;
#[path = "server/embedding.rs"]
mod embedding;
#[path = "push/hub.rs"]
mod hub;
#[path = "server/jobs.rs"]
mod jobs;
#[path = "support/jobs.rs"]
mod language_jobs;
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
