//! Adapters that are pushed to the hub: a job as any other, but for its token, which is in memory until the job's turn and nowhere
//! else.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::jobs::{self, Job, NewJob};
use super::library;
use super::observer::JobObserver;
use super::request::{Id, Json};
use super::state::JobKind;
use super::training::of_failure;
use super::App;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::push::PushConfig;
use crate::options::secret::Secret;
use crate::options::shell_word;
use crate::recipes::push;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use rusqlite::params;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a token; a longer text is something else.
const LONGEST_TOKEN: usize = 4096;

/// The tokens of jobs that wait.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, Secret>>);

impl Tokens {
    fn tokens(&self) -> MutexGuard<'_, HashMap<String, Secret>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes that of the job `id`, which is then nowhere any more.
    pub fn take(&self, id: &str) -> Option<Secret> {
        self.tokens().remove(id)
    }
}

/// The body of a push.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    repo: String,
    token: Option<String>,
    private: Option<bool>,
    license: Option<String>,
    checkpoint: Option<i64>,
}

/// `POST /api/adapters/{id}/push`.
pub async fn add(State(app): State<App>, owner: Owner, Id(id): Id<String>, Json(asked): Json<Asked>) -> Answer {
    let adapter = library::find(&app, &id, owner.name()).await?;
    adapter.at(&app, asked.checkpoint)?;
    let license = asked.license.filter(|license| !license.trim().is_empty());
    let token = asked.token.filter(|token| !token.trim().is_empty()).map(Secret::from);
    if token.as_ref().is_some_and(|token| token.reveal().len() > LONGEST_TOKEN) {
        return Err(Failure::field("token", "the token is longer than any token; copy it again"));
    }
    // The token of the environment is that of whoever runs the server.
    if token.is_none() && app.limits.is_some() {
        return Err(Failure::field("token", "give a token of yours that may write; it is used once and not kept"));
    }
    let (is_public, has_token) = (asked.private == Some(false), token.is_some());
    let config = PushConfig {
        adapter: adapter.at(&app, asked.checkpoint)?,
        repo: asked.repo.trim().to_owned(),
        token: None,
        public: is_public,
        license,
    };
    config.check()?;
    let hub = push::hub(token.as_ref())?;
    let of = if hub.token.is_none() { "token" } else { "repo" };
    // A name alone is a repository of whose token it is.
    let whole = if config.repo.contains('/') { config.repo.clone() } else { format!("owner/{}", config.repo) };
    hub.check_push(&whole).map_err(|error| Failure::field(of, error.to_string()))?;
    let mut command =
        format!("lorabooth adapter push {} --repo {}", shell_word(&adapter.name), shell_word(&config.repo));
    if config.public {
        command.push_str(" --public");
    }
    if let Some(license) = &config.license {
        command.push_str(&format!(" --license {}", shell_word(license)));
    }
    let mut options = Map::new();
    for (name, value) in [
        ("adapter", json!(id)),
        ("checkpoint", json!(asked.checkpoint)),
        ("repo", json!(config.repo)),
        ("private", json!(!is_public)),
        ("license", json!(config.license)),
        ("has_token", json!(has_token)),
    ] {
        options.insert(name.to_owned(), value);
    }
    let job = NewJob {
        id: jobs::new_job_id()?,
        owner: owner.owned(),
        kind: JobKind::Push,
        name: format!("{} to {}", adapter.name, config.repo),
        options,
        set: None,
        command,
    };
    let new = job.id.clone();
    if let Some(token) = token {
        app.tokens.tokens().insert(new.clone(), token);
    }
    let shown = jobs::add(&app, job).await.inspect_err(|_| drop(app.tokens.take(&new)))?;
    let license = config.license;
    app.store
        .ask(move |db| {
            db.execute("UPDATE adapters SET license = coalesce(?2, license) WHERE id = ?1", params![id, license])
        })
        .await?;
    app.events.send(owner.name(), &json!({ "kind": "adapters" }));
    Ok((StatusCode::CREATED, axum::Json(shown)).into_response())
}

/// Does the job: its answer is the address.
pub fn push(app: &App, job: &Job, interrupt: &Interrupt, observer: &mut JobObserver) -> Result<Value> {
    let token = app.tokens.take(&job.id);
    if token.is_none() && (job.options["has_token"] == true || app.limits.is_some()) {
        return Err(Error::invalid(
            "⟨token⟩ was used or lost, as none is kept; push the adapter again, with its token",
        ));
    }
    let text = |name: &str| job.options.get(name).and_then(Value::as_str).map(str::to_owned);
    let adapter = text("adapter").unwrap_or_default();
    let checkpoint = job.options["checkpoint"].as_i64();
    let (_, folder) = library::folder_now(app, &adapter, &job.owner, checkpoint).map_err(of_failure)?;
    let hub = push::hub(token.as_ref())?;
    let mut repo = text("repo").unwrap_or_default();
    if !repo.contains('/') {
        repo = format!("{}/{repo}", push::user(&hub, interrupt, observer)?);
    }
    let config = PushConfig {
        adapter: folder,
        repo,
        token: None,
        public: job.options["private"] == false,
        license: text("license"),
    };
    let pushed = push::push(&config, &hub, interrupt, observer)?;
    Ok(json!({ "text": pushed.address }))
}
