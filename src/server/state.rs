//! What a job is: its kind, where it stands, and what is known of it while it runs.

use super::schema::{integer, number, object, or_null, text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Instant;

macro_rules! named {
    ($type:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl $type {
            /// The names of all of them.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// As it stands in the database and in JSON.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// That of a name.
            pub fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl rusqlite::types::FromSql for $type {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                Self::named(value.as_str()?).ok_or(rusqlite::types::FromSqlError::InvalidType)
            }
        }

        impl rusqlite::ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.name().into())
            }
        }
    };
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Trains a LoRA of a Stable Diffusion model on photos.
    TrainDreambooth,
    /// Fine-tunes a language model on records.
    TrainLlm,
    /// Draws pictures of a prompt.
    Generate,
    /// Draws one prompt with checkpoints at strengths.
    Grid,
    /// Continues, answers or classifies a text.
    Complete,
    /// Uploads an adapter to the hub.
    Push,
}

named!(JobKind {
    TrainDreambooth = "train_dreambooth",
    TrainLlm = "train_llm",
    Generate = "generate",
    Grid = "grid",
    Complete = "complete",
    Push = "push",
});

/// What a job has its turn at: jobs of one lane come one by one, and none waits for those of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The device that computes.
    Device,
    /// The way to the hub.
    Hub,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Device, Self::Hub];
}

impl JobKind {
    /// What it has its turn at.
    pub fn lane(self) -> Lane {
        match self {
            Self::TrainDreambooth | Self::TrainLlm | Self::Generate | Self::Grid | Self::Complete => Lane::Device,
            Self::Push => Lane::Hub,
        }
    }

    /// Whether it trains an adapter, which can be stopped and gone on with.
    pub fn is_training(self) -> bool {
        matches!(self, Self::TrainDreambooth | Self::TrainLlm)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It has its turn.
    Running,
    /// It has its turn, and waits to be told to go on.
    Paused,
    /// It was told to stop, and finishes what it is in the middle of.
    Stopping,
    /// It did what it should.
    Finished,
    /// It ended with an error.
    Failed,
    /// A person stopped it.
    Stopped,
    /// The server ended under it.
    Interrupted,
}

named!(JobState {
    Queued = "queued",
    Running = "running",
    Paused = "paused",
    Stopping = "stopping",
    Finished = "finished",
    Failed = "failed",
    Stopped = "stopped",
    Interrupted = "interrupted",
});

impl JobState {
    /// Whether nothing happens to it any more by itself.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Stopped | Self::Interrupted)
    }
}

/// How far a job is in its present phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is done.
    pub phase: String,
    /// Units done.
    pub done: u64,
    /// Units of the phase.
    pub total: u64,
    /// What is counted.
    pub unit: String,
    /// How long the phase will still take, by the speed so far.
    pub seconds_left: Option<f64>,
    /// Units a second.
    pub rate: Option<f64>,
}

impl Progress {
    /// It as JSON.
    pub fn schema() -> Value {
        object([
            ("phase", text()),
            ("done", integer()),
            ("total", integer()),
            ("unit", text()),
            ("seconds_left", or_null(number())),
            ("rate", or_null(number())),
        ])
    }
}

/// Measures a phase as it goes.
#[derive(Debug)]
pub struct Phase {
    progress: Progress,
    /// When it began, and units that were done before.
    began: (Instant, u64),
}

impl Phase {
    /// One that begins now with `done` of `total` units.
    pub fn begin(phase: String, done: u64, total: u64, unit: &str) -> Self {
        let progress = Progress { phase, done, total, unit: unit.to_owned(), seconds_left: None, rate: None };
        Self { progress, began: (Instant::now(), done) }
    }

    /// It has come to `done` of `total` units.
    pub fn advance(&mut self, done: u64, total: Option<u64>) {
        let (began, before) = self.began;
        let progress = &mut self.progress;
        progress.done = done;
        progress.total = total.unwrap_or(progress.total);
        let (units, seconds) = (done.saturating_sub(before) as f64, began.elapsed().as_secs_f64());
        progress.rate = (units > 0.0 && seconds > 0.0).then(|| units / seconds);
        progress.seconds_left = progress.rate.map(|rate| progress.total.saturating_sub(done) as f64 / rate);
    }

    /// As it stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}
