//! The jobs that have their turns: how each stands, and what is asked of it.

use super::state::{JobKind, JobState, Lane, Phase, Progress};
use crate::recipes::training::control::{Control, SampleRequest};
use std::time::{Duration, Instant};

/// Why a job was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A person wants it.
    Asked,
    /// The server ends.
    Server,
    /// It took as long as a job may.
    Time,
}

/// What can be asked of a training beside that it stops.
#[derive(Debug)]
pub enum Request {
    /// A checkpoint.
    Save,
    /// A sample with the weights as they are.
    Sample(SampleRequest),
    /// To wait.
    Pause,
    /// To go on.
    Continue,
}

/// A job that has its turn.
pub struct Live {
    /// Its id.
    pub id: String,
    kind: JobKind,
    control: Control,
    stop: Option<Stop>,
    is_paused: bool,
    phase: Option<Phase>,
    memory_bytes: Option<u64>,
    /// What it wrote so far.
    text: String,
    began: Instant,
    /// How it ended, and with what error, until that is written down.
    over: Option<(JobState, Option<String>)>,
}

impl Live {
    /// One that begins now, and obeys `control`.
    pub fn new(id: String, kind: JobKind, control: Control) -> Self {
        Self {
            id,
            kind,
            control,
            stop: None,
            is_paused: false,
            phase: None,
            memory_bytes: None,
            text: String::new(),
            began: Instant::now(),
            over: None,
        }
    }

    /// Tells it to stop; what was said first is why. False where it is over.
    pub fn stop(&mut self, why: Stop) -> bool {
        if self.over.is_some() {
            return false;
        }
        self.stop.get_or_insert(why);
        self.control.stop();
        true
    }

    /// It ended so, which waits to be written down.
    pub fn end(&mut self, state: JobState, error: Option<String>) {
        self.over = Some((state, error));
    }

    /// What it ended with.
    pub fn error(&self) -> Option<String> {
        self.over.as_ref().and_then(|(_, error)| error.clone())
    }

    /// Whether it is neither over nor about to be.
    pub fn goes_on(&self) -> bool {
        self.stop.is_none() && self.over.is_none()
    }

    /// Why it was told to stop, if it was.
    pub fn told_to_stop(&self) -> Option<Stop> {
        self.stop
    }

    /// Asks something of it.
    pub fn ask(&self, request: Request) {
        match request {
            Request::Save => self.control.save(),
            Request::Sample(sample) => self.control.sample(sample),
            Request::Pause => self.control.pause(),
            Request::Continue => self.control.go_on(),
        }
    }

    /// Whether it computes on the device.
    pub fn is_on_the_device(&self) -> bool {
        self.kind.lane() == Lane::Device
    }

    /// How long it has had its turn.
    pub fn lasts(&self) -> Duration {
        self.began.elapsed()
    }

    /// Where it stands.
    pub fn state(&self) -> JobState {
        match (&self.over, self.stop, self.is_paused) {
            (Some((state, _)), ..) => *state,
            (None, Some(_), _) => JobState::Stopping,
            (None, None, true) => JobState::Paused,
            (None, None, false) => JobState::Running,
        }
    }

    /// How far it is in its present phase.
    pub fn progress(&self) -> Option<&Progress> {
        self.phase.as_ref().map(Phase::progress)
    }

    /// The most memory that it took so far.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// Whether it waits.
    pub fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// The present phase.
    pub fn set_phase(&mut self, phase: Option<Phase>) {
        self.phase = phase;
    }

    /// The present phase, to be advanced.
    pub fn phase(&mut self) -> Option<&mut Phase> {
        self.phase.as_mut()
    }

    /// What it wrote so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// It wrote `piece`; UTF-16 units of what it had written before.
    pub fn write(&mut self, piece: &str) -> usize {
        let at = self.text.encode_utf16().count();
        self.text.push_str(piece);
        at
    }

    /// It has taken so much memory. What the process takes beside an upload is another job's.
    pub fn note_memory(&mut self, bytes: u64) {
        if !self.is_on_the_device() {
            return;
        }
        self.memory_bytes = Some(self.memory_bytes.map_or(bytes, |before| before.max(bytes)));
    }
}
