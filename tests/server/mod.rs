//! `lorabooth serve` as its clients see it: uploads, jobs, events, pictures, adapters, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod answers;
mod client;
mod embedding;
mod gradio;
mod hostile;
mod hub_models;
mod jobs;
mod limits;
mod pictures;
mod pushes;
mod safety;
mod texts;
mod uploads;
mod visitors;
mod web;
