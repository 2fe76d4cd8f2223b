//! What a job reports to whoever started it: the command line makes bars of it, `--json` lines, the page events.

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::sample::drawn_image::ImageParameters;
use crate::train::metrics::StepMetrics;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Something that happened in a job.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A fact for the first or the last screen.
    Fact {
        /// What it is about, in snake_case.
        name: String,
        /// The fact in words, for people.
        text: String,
        /// The same as values with names, for programs.
        #[serde(flatten)]
        fields: Map<String, Value>,
    },
    /// Something that the user should know and that stops nothing.
    Warning {
        /// One sentence.
        text: String,
    },
    /// A phase of known length begins.
    Begin {
        /// What is done.
        phase: String,
        /// Units of work in it.
        total: u64,
        /// Units that were done before (a resumed run).
        done: u64,
        /// What is counted: steps, photos, records.
        unit: &'static str,
    },
    /// A file of a model is being fetched.
    Download {
        /// Its name in the repository.
        file: String,
        /// Its bytes.
        total: u64,
        /// Bytes that are here.
        done: u64,
    },
    /// The present phase has come this far.
    Progress {
        /// Units done.
        done: u64,
    },
    /// An optimizer step is done.
    Step {
        /// Its numbers.
        #[serde(flatten)]
        metrics: StepMetrics,
        /// Steps of the run.
        total: u64,
    },
    /// The present phase is over.
    End,
    /// A file or folder was written.
    Wrote {
        /// Its path.
        path: PathBuf,
    },
    /// Several images were written: one line for people, [`Event::Wrote`] for each in `--json`.
    WroteImages {
        /// Their paths, in their order.
        paths: Vec<PathBuf>,
        /// All of them in one image.
        grid: Option<PathBuf>,
    },
    /// A piece of a text, as a language model writes it.
    Text {
        /// The piece.
        text: String,
    },
    /// An image was drawn and written, one of those that [`Event::WroteImages`] names at the end.
    Image {
        /// Its path.
        path: PathBuf,
        /// Of a run that trains: optimizer steps done.
        step: Option<u64>,
        /// What it was drawn with.
        #[serde(flatten)]
        parameters: ImageParameters,
    },
    /// A run that trains a language model was asked for a sample.
    Completed {
        /// Optimizer steps done.
        step: u64,
        /// What the model was given.
        prompt: String,
        /// What it wrote, or the class that it found.
        text: String,
    },
    /// A run wrote a checkpoint.
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// Optimizer steps done.
        step: u64,
    },
    /// A run waits, as it was asked to.
    Paused {
        /// Optimizer steps done.
        step: u64,
    },
    /// A run goes on after it has waited.
    Continued {
        /// Optimizer steps done.
        step: u64,
    },
}

impl Event {
    /// Whether the command line shows it. The others are for a program that follows the job in its own process: of files that they
    /// name, the command line hears in other events.
    pub fn is_for_screens(&self) -> bool {
        !matches!(
            self,
            Self::Image { .. }
                | Self::Completed { .. }
                | Self::Checkpoint { .. }
                | Self::Paused { .. }
                | Self::Continued { .. }
        )
    }
}

/// Whoever listens to a job.
pub trait Observer {
    /// Takes note of `event`.
    fn on(&mut self, event: Event);
}

impl dyn Observer + '_ {
    /// [`Event::Fact`].
    pub fn fact(&mut self, name: &str, text: impl Into<String>) {
        self.on(Event::Fact { name: name.to_owned(), text: text.into(), fields: Map::new() });
    }

    /// [`Event::Fact`] with `fields`, an object, for programs.
    pub fn fact_with(&mut self, name: &str, text: impl Into<String>, fields: Value) {
        let fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        debug_assert!(!["event", "name", "text"].iter().any(|taken| fields.contains_key(*taken)));
        self.on(Event::Fact { name: name.to_owned(), text: text.into(), fields });
    }

    /// [`Event::Warning`].
    pub fn warning(&mut self, text: impl Into<String>) {
        self.on(Event::Warning { text: text.into() });
    }

    /// So many of a file's weights have adapters folded in. Stops the work once `interrupt` is set.
    pub(in crate::recipes) fn merging(&mut self, done: u64, total: u64, interrupt: &Interrupt) -> Result<()> {
        self.on(match done {
            0 => Event::Begin { phase: "merging".to_owned(), total, done, unit: "weights" },
            _ => Event::Progress { done },
        });
        interrupt.check()
    }

    /// [`Event::Begin`] from nothing.
    pub fn begin(&mut self, phase: &str, total: u64, unit: &'static str) {
        self.on(Event::Begin { phase: phase.to_owned(), total, done: 0, unit });
    }
}

/// Listens to nothing.
pub struct Silent;

impl Observer for Silent {
    fn on(&mut self, _event: Event) {}
}
