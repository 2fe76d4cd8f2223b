//! `lorabooth serve` as its clients see it: uploads, jobs, events, adapters, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

#[path = "server/client.rs"]
mod client;
#[path = "server/jobs.rs"]
mod jobs;
#[path = "server/safety.rs"]
mod safety;
#[path = "server/uploads.rs"]
mod uploads;
