//! `run.json`: what a training run was asked for, what it learned from, and how far it came.

use super::run::Run;
use super::utc_time::UtcTime;
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::options::given::GivenFlags;
use crate::regular_file::{self, FileKind};
use crate::sentence::{flag, with_options};
use crate::train::measure::Taken;
use crate::whole_file::write_json;
use serde_json::{json, Value};
use std::path::Path;
use std::time::Instant;

/// Of a run, what only its record has a use for.
pub(in crate::recipes) struct RunRecord {
    options: Value,
    given: Vec<String>,
    command: Value,
    working_dir: String,
    date: Value,
    resumed: Value,
    /// Files that it learns from.
    pub data: Value,
    /// What the model predicts.
    pub prediction_type: Option<&'static str>,
    /// Mean loss of the last tenth of the steps, of a finished run.
    pub final_loss: Option<f64>,
    /// When the process began with it.
    pub began: Instant,
    host_start: u64,
}

impl RunRecord {
    /// That of a run which begins now.
    pub fn new(options: Value, given: &GivenFlags, command: Option<String>) -> Self {
        Self {
            options,
            given: given.names().map(str::to_owned).collect(),
            command: json!(command),
            working_dir: std::env::current_dir().unwrap_or_default().display().to_string(),
            date: json!(UtcTime::now().date_and_time()),
            resumed: Value::Null,
            data: Value::Null,
            prediction_type: None,
            final_loss: None,
            began: Instant::now(),
            host_start: memory::host_now(),
        }
    }

    /// A run that goes on from `step` keeps the command and the date that it began with, where the `file` of then has them.
    pub fn resume(&mut self, file: &Path, step: u64) {
        let text = regular_file::read(file, FileKind::RUN).unwrap_or_default();
        let mut earlier: Value = serde_json::from_slice(&text).unwrap_or_default();
        let now = self.date.take();
        self.resumed = json!({ "step": step, "date": now, "command": self.command });
        self.date = match earlier["date"].is_string() {
            true => earlier["date"].take(),
            false => now,
        };
        if earlier["command"].is_string() {
            self.command = earlier["command"].take();
        }
    }

    /// Writes it as far as `run` is.
    pub fn write(&self, run: &Run, status: &str, error: Option<&Error>) -> Result<()> {
        let (before_training, training) = run.seconds();
        let value = json!({
            "status": status,
            "error": error.map(|error| with_options(&error.to_string(), flag)),
            "command": self.command,
            "working_dir": self.working_dir,
            "date": self.date,
            "resumed": self.resumed,
            "lorabooth": env!("CARGO_PKG_VERSION"),
            "libtorch": "2.11",
            "options": self.options,
            "given": self.given,
            "data": self.data,
            "prediction_type": self.prediction_type,
            "device": format!("{:?}", run.device),
            "precision": format!("{:?}", run.kind),
            "seed": run.seed,
            "processes": run.ranks.count(),
            "steps": run.step,
            "total_steps": run.total_steps,
            "skipped_steps": run.skipped,
            "measures": run.measures.iter().map(Taken::recorded).collect::<Vec<_>>(),
            "final_loss": self.final_loss,
            "trainable_parameters": run.trained.trainable,
            "total_parameters": run.trained.frozen + run.trained.trainable,
            "seconds": { "before_training": before_training, "training": training },
            "peak_memory_bytes": {
                "host": memory::host_peak(),
                "host_private": memory::host_private(),
                "host_above_start": memory::host_peak().saturating_sub(self.host_start),
                "device": run.device_peak()?.0,
            },
        });
        write_json(&run.folder.join("run.json"), &value)
    }
}
