//! What a job tells while it runs, as events for the page and lines in the database.

use super::failure::of_option;
use super::jobs::{self, Job, Picture};
use super::likeness::Subject;
use super::schema::{integer, number, object, or_null, text};
use super::state::Phase;
use super::{library, App};
use crate::libtorch::memory;
use crate::recipes::training::observer::{Event, Observer};
use crate::sample::drawn_image::ImageParameters;
use serde_json::{json, Value};
use std::path::Path;
use std::time::{Duration, Instant};

/// Progress is told no more often than eyes can follow.
const BETWEEN: Duration = Duration::from_millis(100);

/// Listens to one job.
pub struct JobObserver<'a> {
    app: &'a App,
    job: &'a Job,
    told: Option<Instant>,
    /// What pictures are compared with.
    subject: Option<Subject>,
    adapters: Option<String>,
    cell: Cell,
    /// Units of the pictures before.
    units_before: u64,
    /// The step that samples are of.
    step: u64,
}

impl<'a> JobObserver<'a> {
    /// Listens to `job`.
    pub fn new(app: &'a App, job: &'a Job) -> Self {
        Self { app, job, told: None, subject: None, adapters: None, cell: Cell::default(), units_before: 0, step: 0 }
    }

    /// Has pictures compared with the photos of `subject`.
    pub fn compare_with(&mut self, subject: Subject) {
        self.subject = Some(subject);
    }

    /// What comes is number `index` of `count` pictures that are drawn alike.
    pub fn begin_cell(&mut self, index: u64, count: u64, checkpoint: Option<i64>, strength: Option<f64>) {
        self.cell = Cell { index, count, checkpoint, strength };
    }

    /// How adapters are called in what is told of pictures.
    pub fn name_adapters(&mut self, names: String) {
        self.adapters = Some(names);
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
            "warning" => json!({ "kind": "warning", "id": self.job.id, "sentence": text }),
            _ => json!({ "kind": "log", "id": self.job.id, "line": text }),
        };
        self.app.events.send(&self.job.owner, &event);
    }

    fn begin(&mut self, phase: &str, done: u64, total: u64, unit: &str) {
        let phase = Phase::begin(phase.to_owned(), done, total, unit);
        self.app.worker.update(&self.job.id, |live| live.set_phase(Some(phase)));
        self.tell_progress(true);
    }

    fn advance(&mut self, done: u64, total: Option<u64>) {
        self.app.worker.update(&self.job.id, |live| {
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

    /// Keeps a picture that the job drew.
    fn picture(&mut self, path: &Path, step: Option<u64>, drawn: &ImageParameters) {
        let Ok(file) = path.strip_prefix(self.app.data.root()).map(|file| file.display().to_string()) else { return };
        let picture = Picture {
            step,
            checkpoint: self.cell.checkpoint,
            strength: self.cell.strength,
            parameters: json!({
                "prompt": drawn.prompt, "negative_prompt": drawn.negative_prompt, "seed": drawn.seed, "steps": drawn.steps,
                "guidance": drawn.guidance_scale, "sampler": drawn.sampler, "width": drawn.width, "height": drawn.height,
                "model": drawn.model, "adapters": self.adapters,
            }),
            likeness: self.subject.as_ref().map_or(Value::Null, |subject| subject.measure(path)),
        };
        drop(jobs::add_picture(self.app, self.job, &file, picture));
    }
}

/// What is told of how a picture was drawn.
pub fn parameters_schema() -> Value {
    object([
        ("prompt", text()),
        ("negative_prompt", text()),
        ("seed", integer()),
        ("steps", integer()),
        ("guidance", number()),
        ("sampler", text()),
        ("width", integer()),
        ("height", integer()),
        ("model", text()),
        ("adapters", or_null(text())),
    ])
}

/// Which of several pictures is drawn.
#[derive(Debug)]
struct Cell {
    index: u64,
    count: u64,
    checkpoint: Option<i64>,
    strength: Option<f64>,
}

impl Default for Cell {
    fn default() -> Self {
        Self { index: 0, count: 1, checkpoint: None, strength: None }
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
                // Flags are the command line's; a page has options.
                self.line("warning", "", &of_option(&text).0);
                self.log(&format!("warning: {text}"));
            }
            Event::Begin { phase, total, done, unit } => {
                let Cell { index, count, .. } = self.cell;
                self.units_before = index * total;
                self.begin(&phase, self.units_before + done, total * count, unit);
            }
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
            Event::Progress { done } => self.advance(self.units_before + done, None),
            Event::Step { metrics, total } => {
                self.step = metrics.step;
                let bytes = (metrics.peak_mib * f64::from(1 << 20)) as u64;
                self.app.worker.update(&self.job.id, |live| live.note_memory(bytes));
                self.app
                    .events
                    .send(&self.job.owner, &json!({ "kind": "step", "id": self.job.id, "metrics": metrics }));
                self.advance(metrics.step, Some(total));
            }
            Event::End => {
                self.app.worker.update(&self.job.id, |live| live.note_memory(memory::host_now()));
                self.tell_progress(true);
            }
            Event::Wrote { path } => self.log(&format!("wrote {}", path.display())),
            Event::WroteImages { .. } => {}
            Event::Image { path, step, parameters } => {
                self.picture(&path, step, &parameters);
                match step {
                    Some(step) => self.log(&format!("a picture at step {step}: {}", parameters.prompt)),
                    None => self.log(&format!("a picture with seed {}", parameters.seed)),
                }
            }
            Event::Text { text } => {
                // As JavaScript counts.
                let at = self.app.worker.update(&self.job.id, |live| live.write(&text));
                let event = json!({ "kind": "text", "id": self.job.id, "piece": text, "at": at });
                self.app.events.send(&self.job.owner, &event);
            }
            Event::Completed { step, prompt, text } => {
                self.log(&format!("at step {step}, \"{prompt}\" is answered with \"{text}\""))
            }
            Event::Checkpoint { step, .. } => {
                self.log(&format!("saved a checkpoint at step {step}"));
                drop(library::register(self.app, &self.job.id));
                self.app.events.send(&self.job.owner, &json!({ "kind": "adapters" }));
            }
            Event::Paused { step } => self.wait(true, &format!("paused at step {step}")),
            Event::Continued { step } => self.wait(false, &format!("went on at step {step}")),
        }
    }
}

impl JobObserver<'_> {
    fn wait(&mut self, is_paused: bool, line: &str) {
        self.app.worker.update(&self.job.id, |live| live.set_paused(is_paused));
        self.log(line);
        drop(jobs::tell_now(self.app, &self.job.id));
    }
}
