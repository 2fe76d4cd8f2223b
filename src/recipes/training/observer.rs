//! What a job reports to whoever started it: the command line makes bars of it, `--json` lines, the page events.

use crate::error::Result;
use crate::train::interrupt::Interrupt;
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
