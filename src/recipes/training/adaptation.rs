//! What a run does that cannot go on as it was asked to: it gives itself an option that helps, starts again from its last good state, and
//! makes the step again. Where memory is full that is the next of the plan's measures, if it was asked to step down; where float16
//! lost a number, it is float32 for the layer that lost it.

use super::memory_advice::with_advice;
use super::observer::{Event, Observer};
use super::restart::Earlier;
use super::run::{Finished, Run, TRAINING};
use crate::error::{Error, Result};
use crate::libtorch::memory::{self, gib};
use crate::options::training::{OnOom, TrainingArgs};
use crate::train::checkpoint;
use crate::train::measure::{Because, Measure, Taken};
use crate::train::memory_plan::{next_measure, Planned};
use std::path::Path;
use tch::{Device, Kind};

/// So often numbers are lost before a run is given up: more layers than that are no exception.
const MOST_REPAIRS: usize = 3;

/// What a run has changed of itself, over all its starts.
pub struct Adaptation {
    steps_down: bool,
    taken: Vec<Taken>,
    earlier: Option<Earlier>,
    has_begun: bool,
    goes_on: bool,
}

impl Adaptation {
    /// That of a run with these options, which write to `output`: of one that resumes what it had changed before.
    fn new(training: &TrainingArgs, output: &Path) -> Result<Self> {
        let resumed = match (&training.resume_from_checkpoint, training.named_checkpoint(output)) {
            (Some(_), None) => checkpoint::latest(output)?,
            (_, named) => named,
        };
        let taken = || Ok(resumed.map_or_else(Vec::new, |folder| checkpoint::measures_of(&folder)));
        Ok(Self {
            steps_down: training.on_oom == Some(OnOom::StepDown),
            taken: training.ranks.of_first(taken)?,
            earlier: None,
            has_begun: false,
            goes_on: false,
        })
    }

    /// Runs `start`, and again with each change that a start makes of the run, until one ends it.
    pub fn of_starts(
        training: &TrainingArgs,
        output: &Path,
        device: Device,
        mut start: impl FnMut(&mut Self) -> Result<Finished>,
    ) -> Result<Finished> {
        training.choose_kernels(device)?;
        let mut adaptation = Self::new(training, output)?;
        loop {
            let outcome = start(&mut adaptation);
            if !adaptation.goes_on {
                return outcome;
            }
            memory::release_cached(device)?;
        }
    }

    /// What was changed.
    pub fn measures(&self) -> impl Iterator<Item = &Measure> {
        self.taken.iter().map(|taken| &taken.measure)
    }

    /// The same for a run's record.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.clone()
    }

    /// Has a start that is not the first go on from where the one before it came to.
    pub fn go_on(&self, training: &mut TrainingArgs) {
        if self.has_begun {
            training.resume_from_checkpoint = Some("latest".to_owned());
            training.overwrite = false;
        }
    }

    /// What the start before this one left.
    pub fn take_earlier(&mut self) -> Option<Earlier> {
        self.goes_on = false;
        self.earlier.take()
    }

    /// Who hears of a start: of one that is not the first only what is new.
    pub fn hearing<'a>(&self, observer: &'a mut dyn Observer) -> Hearing<'a> {
        Hearing { observer, hears_all: !self.goes_on }
    }

    /// Decides what becomes of `run`, which ended with `error`: it starts again with a measure more, or has failed.
    pub fn weigh<I: Planned>(
        &mut self,
        error: Error,
        run: Run,
        planned: impl Fn() -> Result<I>,
        observer: &mut dyn Observer,
    ) -> Error {
        let is_shared = match &error {
            Error::OutOfMemory { .. } if self.steps_down => run.share_trouble(&error),
            _ => run.trouble_is_shared,
        };
        let next = match &error {
            Error::OutOfMemory { .. } if self.steps_down => self.to_save_memory(&run, &planned),
            Error::Diverged(_) => self.to_keep_numbers(&run),
            _ => None,
        };
        let next = next.filter(|_| run.can_start_again());
        let next = match (run.ranks.is_alone(), is_shared) {
            (true, _) => next,
            (false, true) => run.ranks.of_first(|| Ok(next)).ok().flatten(),
            // The other ranks do not know of it.
            (false, false) => None,
        };
        match next {
            Some(taken) => {
                observer.warning(said(&taken, &error, &run));
                self.taken.push(taken);
                self.goes_on = true;
                self.has_begun |= run.has_begun();
                if !run.has_begun() {
                    run.folder.remove_if_unused();
                }
                self.earlier = Some(run.into_earlier());
                error
            }
            None => {
                let error = self.with_cure(error, &run, planned);
                run.fail(&error);
                error
            }
        }
    }

    /// The next measure that the plan knows for what the run did.
    fn to_save_memory<I: Planned>(&self, run: &Run, planned: impl Fn() -> Result<I>) -> Option<Taken> {
        let (measure, suggestion) = next_measure(&planned().ok()?, run.phase).ok()??;
        Some(Taken {
            step: run.step,
            because: Because::MemoryWasFull,
            measure,
            saves_bytes: suggestion.saves_bytes,
            costs: suggestion.costs,
        })
    }

    /// float32 for the layer that lost a number in float16, unless that was done.
    fn to_keep_numbers(&self, run: &Run) -> Option<Taken> {
        let lost = run.lost.as_ref().filter(|_| run.kind == Kind::Half && self.repairs() < MOST_REPAIRS)?;
        // The VAE is small, and its layers make large numbers together.
        let layer = if lost.layer.starts_with("vae.") { "vae" } else { &lost.layer };
        let is_new = !run.training.fp32_layers.iter().any(|known| known == layer);
        is_new.then(|| Taken {
            step: run.step,
            because: Because::NumbersWereLost,
            measure: Measure::Fp32 { layer: layer.to_owned() },
            saves_bytes: 0,
            costs: "it takes twice the memory and more time".to_owned(),
        })
    }

    fn repairs(&self) -> usize {
        self.taken.iter().filter(|taken| taken.because == Because::NumbersWereLost).count()
    }

    /// `error` with what helps, which the run does not do by itself.
    fn with_cure<I: Planned>(&self, error: Error, run: &Run, planned: impl Fn() -> Result<I>) -> Error {
        match error {
            Error::Diverged(text) if self.repairs() >= MOST_REPAIRS && run.kind == Kind::Half => Error::Diverged(
                format!("{text}; {MOST_REPAIRS} layers compute in fp32 already, so the whole model does not fit fp16"),
            ),
            Error::OutOfMemory { .. } => {
                let advised = with_advice(error, |budget| super::memory_advice::peak_and_advice(&planned()?, budget));
                match (advised, checkpoint::latest(run.folder.path())) {
                    (Error::OutOfMemory { device, cause, advice }, Ok(Some(_))) => Error::OutOfMemory {
                        device,
                        cause,
                        advice: format!("{advice}; ⟨resume⟩ goes on from step {}", run.step),
                    },
                    (error, _) => error,
                }
            }
            other => other,
        }
    }
}

/// What a user is told of a measure.
fn said(taken: &Taken, error: &Error, run: &Run) -> String {
    let what = taken.measure.in_words();
    let when = match (run.has_begun(), run.phase) {
        (true, TRAINING) => format!("in step {}", run.step + 1),
        (true, phase) => format!("in {phase} at step {}", run.step),
        (false, TRAINING) => "before the training".to_owned(),
        (false, phase) => format!("in {phase}"),
    };
    match (taken.because, error) {
        (Because::MemoryWasFull, Error::OutOfMemory { device, cause, .. }) => format!(
            "memory of {device} was full {when} ({cause}); the run goes on with {what} ({}{})",
            saving(taken.saves_bytes),
            taken.costs
        ),
        _ => format!(
            "numbers were lost {when}, first in {}, beyond what fp16 holds; the run goes on with {what} ({})",
            run.lost.as_ref().map(|lost| lost.in_words()).unwrap_or_default(),
            taken.costs
        ),
    }
}

fn saving(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!("saves about {}; ", size(bytes)),
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match gib(bytes) {
        gib if gib < 0.1 => format!("{:.1} MiB", gib * 1024.0),
        gib => format!("{gib:.1} GiB"),
    }
}

/// Passes on what happens in a start of a run. What comes before the training was told at the first one.
pub struct Hearing<'a> {
    observer: &'a mut dyn Observer,
    hears_all: bool,
}

impl Observer for Hearing<'_> {
    fn on(&mut self, event: Event) {
        self.hears_all |= matches!(&event, Event::Begin { phase, .. } if phase == TRAINING);
        if self.hears_all || !matches!(event, Event::Fact { .. } | Event::Warning { .. }) {
            self.observer.on(event);
        }
    }
}
