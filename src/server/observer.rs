//! What a job tells while it runs, as events for the page and lines in the database.

use super::ids::new_id;
use super::jobs::{self, Image, Job};
use super::state::Phase;
use super::App;
use crate::libtorch::memory;
use crate::recipes::observer::{Event, Observer};
use serde_json::{json, Map, Value};
use std::path::Path;
use std::time::{Duration, Instant};

/// Progress is told no more often than eyes can follow.
const BETWEEN: Duration = Duration::from_millis(100);

/// Listens to one job.
pub struct JobObserver<'a> {
    app: &'a App,
    job: &'a Job,
    told: Option<Instant>,
    /// What is known of a picture by its text chunk or by whoever drew it.
    describe: Box<dyn Fn(&Path) -> Map<String, Value> + 'a>,
    /// The step that samples are of.
    step: u64,
}

impl<'a> JobObserver<'a> {
    /// Listens to `job`.
    pub fn new(app: &'a App, job: &'a Job) -> Self {
        Self { app, job, told: None, describe: Box::new(|_| Map::new()), step: 0 }
    }

    /// Has `describe` say what is known of each sample picture.
    pub fn describe_samples(&mut self, describe: impl Fn(&Path) -> Map<String, Value> + 'a) {
        self.describe = Box::new(describe);
    }

    /// A line of the log.
    pub fn log(&mut self, text: &str) {
        self.line("log", "", text);
    }

    fn line(&mut self, kind: &'static str, name: &str, text: &str) {
        let text = self.app.data.without_root(text);
        // What cannot be written down is still told.
        drop(jobs::add_line(self.app, &self.job.id, kind, name, &text));
        let event = match kind {
            "fact" => json!({ "kind": "fact", "id": self.job.id, "fact": { "name": name, "text": text } }),
            "warning" => json!({ "kind": "warning", "id": self.job.id, "text": text }),
            _ => json!({ "kind": "log", "id": self.job.id, "line": text }),
        };
        self.app.events.send(&self.job.owner, &event);
    }

    fn begin(&mut self, phase: &str, done: u64, total: u64, unit: &str) {
        let phase = Phase::begin(phase.to_owned(), done, total, unit);
        self.app.worker.update(|live| live.set_phase(Some(phase)));
        self.tell_progress(true);
    }

    fn advance(&mut self, done: u64, total: Option<u64>) {
        self.app.worker.update(|live| {
            if let Some(phase) = live.phase() {
                phase.advance(done, total);
            }
        });
        self.tell_progress(false);
    }

    fn tell_progress(&mut self, at_once: bool) {
        if !at_once && self.told.is_some_and(|told| told.elapsed() < BETWEEN) {
            return;
        }
        self.told = Some(Instant::now());
        let event = self.app.worker.with(&self.job.id, |live| {
            let progress = live.and_then(|live| live.progress());
            json!({ "kind": "progress", "id": self.job.id, "progress": progress, "memory_bytes": live.and_then(|live| live.memory_bytes()) })
        });
        self.app.events.send(&self.job.owner, &event);
    }

    /// Keeps a sample picture that the training wrote.
    fn sample(&mut self, path: &Path) {
        let Ok(id) = new_id() else { return };
        let Ok(file) = path.strip_prefix(self.app.data.root()).map(|file| file.display().to_string()) else { return };
        let mut parameters = (self.describe)(path);
        let index = path
            .file_stem()
            .and_then(|name| name.to_str())
            .and_then(|name| name.rsplit('-').next()?.parse::<u64>().ok());
        parameters.extend(index.map(|index| ("index".to_owned(), index.into())));
        let image = Image::new(id, Some(self.step as i64), None, Value::Object(parameters));
        drop(jobs::add_image(self.app, self.job, &file, &image));
    }
}

impl Observer for JobObserver<'_> {
    fn on(&mut self, event: Event) {
        match event {
            Event::Fact { name, text, fields } => {
                if name == "resumed" {
                    self.step = fields.get("step").and_then(Value::as_u64).unwrap_or(0);
                }
                self.line("fact", &name, &text);
                self.log(&format!("{}: {}", name.replace('_', " "), text.replace('\n', "; ")));
            }
            Event::Warning { text } => {
                self.line("warning", "", &text);
                self.log(&format!("warning: {text}"));
            }
            Event::Begin { phase, total, done, unit } => self.begin(&phase, done, total, unit),
            Event::Download { file, total, done } => {
                let phase = format!("downloading {file}");
                let is_new = self.app.worker.with(&self.job.id, |live| {
                    live.and_then(|live| live.progress()).is_none_or(|progress| progress.phase != phase)
                });
                match is_new {
                    true => self.begin(&phase, done, total, "bytes"),
                    false => self.advance(done, Some(total)),
                }
            }
            Event::Progress { done } => self.advance(done, None),
            Event::Step { metrics, total } => {
                self.step = metrics.step;
                let bytes = (metrics.peak_mib * f64::from(1 << 20)) as u64;
                self.app.worker.update(|live| live.note_memory(bytes));
                self.app
                    .events
                    .send(&self.job.owner, &json!({ "kind": "step", "id": self.job.id, "metrics": metrics }));
                self.advance(metrics.step, Some(total));
            }
            Event::End => {
                self.app.worker.update(|live| live.note_memory(memory::host_now()));
                self.tell_progress(true);
            }
            Event::Wrote { path } => self.log(&format!("wrote {}", path.display())),
            Event::WroteImages { paths, .. } => {
                self.log(&format!("{} sample images at step {}", paths.len(), self.step));
                paths.iter().for_each(|path| self.sample(path));
            }
        }
    }
}
