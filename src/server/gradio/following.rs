//! Follows a run for a call: what the job tells, as the outputs of the call.

use super::super::events::Behind;
use super::super::failure::{Answer, Failure};
use super::super::{jobs, App};
use super::endpoints::Endpoint;
use super::messages::{edits, Message};
use super::sessions::Mailbox;
use serde_json::{json, Value};
use std::time::Duration;

/// A client is told no more often.
const BETWEEN: Duration = Duration::from_millis(100);
/// Between a job's turn in the database and that it is seen at work.
const TURN: Duration = Duration::from_millis(200);

/// What a call follows.
pub struct Following {
    /// The job.
    pub run: String,
    /// Whose it is.
    pub owner: String,
    /// What was called, which decides the outputs.
    pub endpoint: Endpoint,
    /// How the client reaches the server.
    pub base: String,
    /// The row of events that the job's own come behind.
    pub after: u64,
}

/// Why a follower looks again.
#[derive(PartialEq, Eq)]
enum Woken {
    News,
    /// It saw a state that cannot last.
    Again,
    /// The server ends.
    End,
}

/// How a run stands.
struct View {
    job: Value,
    /// The numbers of its last step.
    metrics: Value,
    text: String,
}

/// A job as JSON without anything that a client takes for a file: it takes every object with a `path` for one.
pub fn state(job: &Value) -> Value {
    let mut state = json!({ "run": job["id"] });
    for name in
        ["kind", "name", "state", "position", "wait_seconds", "progress", "error", "created", "started", "ended"]
    {
        state[name] = job[name].clone();
    }
    state
}

impl View {
    fn of(job: Value) -> Self {
        let text = job["results"]["text"].as_str().unwrap_or_default().to_owned();
        Self { job, metrics: Value::Null, text }
    }

    /// The job as it stands by now; what was told of it before this was looked up is not lost.
    fn set_job(&mut self, job: &Value) {
        let before = std::mem::replace(&mut self.job, job.clone());
        for image in before["results"]["images"].as_array().into_iter().flatten() {
            self.add_image(image);
        }
    }

    fn add_image(&mut self, image: &Value) {
        let Some(images) = self.job["results"]["images"].as_array_mut() else { return };
        if images.iter().all(|known| known["id"] != image["id"]) {
            images.push(image.clone());
        }
    }

    fn state(&self) -> Value {
        let mut state = state(&self.job);
        for name in ["step", "loss"] {
            state[name] = self.metrics[name].clone();
        }
        state
    }

    fn is_over(&self) -> bool {
        let state = self.job["state"].as_str().unwrap_or_default();
        // A job is not seen at work for a moment when its turn comes; then it has no end either.
        !["queued", "running", "paused", "stopping"].contains(&state) && !self.job["ended"].is_null()
    }

    /// Takes in what the job told; `None` where it was deleted.
    fn take(&mut self, event: &Value) -> Option<Option<String>> {
        match event["kind"].as_str().unwrap_or_default() {
            "job" => self.set_job(&event["job"]),
            "image" => self.add_image(&event["image"]),
            "deleted" => return None,
            "progress" => self.job["progress"] = event["progress"].clone(),
            "step" => self.metrics = event["metrics"].clone(),
            "text" if event["at"] == self.text.encode_utf16().count() => {
                self.text.push_str(event["piece"].as_str().unwrap_or_default());
            }
            "warning" => return Some(event["sentence"].as_str().map(str::to_owned)),
            _ => {}
        }
        Some(None)
    }

    /// Why the call fails, if it does.
    fn failure(&self, app: &App) -> Option<String> {
        let run = self.job["id"].as_str().unwrap_or_default();
        match self.job["state"].as_str() {
            Some("failed") => {
                Some(with_field(self.job["error"].as_str().unwrap_or("the run failed"), self.job["field"].as_str()))
            }
            Some("interrupted") if *app.stopping.borrow() => {
                Some(format!("the server is stopping; run {run} can be resumed when it is back"))
            }
            Some("interrupted") => Some(format!("run {run} was interrupted when the server ended; it can be resumed")),
            _ => None,
        }
    }
}

impl Following {
    /// The outputs. Pictures that were asked for come one by one; files, and samples of a training, when it is over.
    fn outputs(&self, app: &App, view: &View) -> Vec<Value> {
        let is_over = view.is_over();
        match self.endpoint {
            Endpoint::Generate => {
                let mut state = view.state();
                // With each change of the outputs, Python's client fetches every picture again.
                if !is_over {
                    state["progress"] = Value::Null;
                }
                vec![json!(self.pictures(app, view)), state]
            }
            Endpoint::Complete => {
                let results = &view.job["results"];
                let text = results["text"].as_str().filter(|_| is_over).unwrap_or(&view.text);
                let mut state = view.state();
                state["labels"] = results["labels"].clone();
                // A classifier writes nothing; its answer is the likeliest class.
                let label = results["labels"][0]["label"].as_str().filter(|_| text.is_empty());
                vec![json!(label.unwrap_or(text)), state]
            }
            _ => {
                let (files, pictures) = match is_over {
                    true => (self.files(app, view), self.pictures(app, view)),
                    false => (Vec::new(), Vec::new()),
                };
                vec![json!(self.run), view.state(), json!(files), json!(pictures)]
            }
        }
    }

    fn files(&self, app: &App, view: &View) -> Vec<Value> {
        let Some(id) = view.job["results"]["adapter"].as_str() else { return Vec::new() };
        let name = view.job["adapter_name"].as_str().unwrap_or("adapter");
        let is_language = view.job["kind"] == "train_llm";
        app.gradio.files.adapter(&self.base, &self.owner, id, name, is_language)
    }

    fn pictures(&self, app: &App, view: &View) -> Vec<Value> {
        let images = view.job["results"]["images"].as_array().map(Vec::as_slice).unwrap_or_default();
        let shown = |image: &Value| {
            let caption = match (&image["step"], &image["parameters"]["seed"]) {
                (Value::Number(step), _) => format!("step {step}"),
                (_, seed) => format!("seed {seed}"),
            };
            let id = image["id"].as_str().unwrap_or_default();
            json!({ "image": app.gradio.files.picture(&self.base, &self.owner, id), "caption": caption })
        };
        images.iter().map(shown).collect()
    }

    /// Tells of the outputs, where they are others than those `told` before.
    fn tell(&self, app: &App, mail: &Mailbox, view: &View, told: &mut Option<Vec<Value>>) {
        let outputs = self.outputs(app, view);
        if told.as_ref() != Some(&outputs) {
            let changed = told.as_ref().map(|told| edits(told, &outputs));
            mail.send(Message::Generating(outputs.clone(), changed));
            *told = Some(outputs);
        }
    }

    /// Tells `mail` of the run until that is over, or nobody wants to know any more; the run itself goes on in any case.
    pub async fn follow(self, app: &App, mail: &Mailbox) -> Answer<()> {
        let (mut latest, mut stopping) = (app.events.subscribe(), app.stopping.subscribe());
        let mut at = self.after;
        let mut view = View::of(jobs::shown(app, &self.run).await?);
        let mut told: Option<Vec<Value>> = None;
        let mut progress = Value::Null;
        let mut place = Value::Null;
        mail.send(Message::Starts);
        while !view.is_over() {
            if view.job["position"] != place {
                place = view.job["position"].clone();
                if let Some(place) = place.as_u64() {
                    mail.send(Message::Waits(place.saturating_sub(1), view.job["wait_seconds"].as_f64()));
                }
            }
            self.tell(app, mail, &view, &mut told);
            if view.job["progress"] != progress {
                progress = view.job["progress"].clone();
                if progress.is_object() {
                    mail.send(Message::Progress(progress.clone()));
                }
            }
            let wait = match view.job["state"] == "interrupted" {
                true => TURN,
                false => Duration::MAX,
            };
            let woken = tokio::select! {
                changed = latest.wait_for(|&last| last > at) => if changed.is_ok() { Woken::News } else { Woken::End },
                () = mail.over() => return Ok(()),
                _ = stopping.wait_for(|&stopping| stopping) => Woken::End,
                () = tokio::time::sleep(wait) => Woken::Again,
            };
            if woken != Woken::News {
                view.job = jobs::shown(app, &self.run).await?;
                if woken == Woken::End && !view.is_over() {
                    // The job's own end is told before this; one that still waits does so for the next server.
                    let sentence = format!("the server is stopping; run {} goes on when it is back", self.run);
                    return Err(Failure::conflict(sentence));
                }
                continue;
            }
            tokio::time::sleep(BETWEEN).await;
            match app.events.behind(at, &self.owner) {
                Behind::Gone(last) => {
                    at = last;
                    view.job = jobs::shown(app, &self.run).await?;
                }
                Behind::Rows(rows, last) => {
                    at = last;
                    for row in rows.iter().filter(|(_, row)| row.contains(&self.run)) {
                        let Ok(event) = serde_json::from_str::<Value>(&row.1) else { continue };
                        if event["id"] != self.run.as_str() && event["job"]["id"] != self.run.as_str() {
                            continue;
                        }
                        match view.take(&event) {
                            None => return Err(Failure::not_found("run")),
                            Some(warning) => {
                                warning.into_iter().for_each(|warning| mail.send(Message::Warning(warning)))
                            }
                        }
                        // Two that were drawn in quick succession are two to who iterates.
                        if event["kind"] == "image" {
                            self.tell(app, mail, &view, &mut told);
                        }
                    }
                }
            }
        }
        view.job = jobs::shown(app, &self.run).await?;
        match view.failure(app) {
            Some(sentence) => mail.finish(Message::Failed(sentence)),
            None => mail.finish(Message::Completed(self.outputs(app, &view))),
        }
        Ok(())
    }
}

/// A sentence that names the field that it is about.
pub fn with_field(sentence: &str, field: Option<&str>) -> String {
    match field {
        Some(field) if !sentence.contains(field) => format!("{field}: {sentence}"),
        _ => sentence.to_owned(),
    }
}
