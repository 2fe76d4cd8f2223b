//! What is kept of a run that goes back to where it stood before a step, and of one that starts again with other options of its own.

use super::run::Run;
use super::run_record::RunRecord;
use crate::error::Result;
use crate::train::checkpoint::{self, TrainingState};
use crate::train::measure::{Measure, Taken};
use crate::train::precision::{LossScaler, ScalerState};
use std::time::{Duration, Instant};

/// What a run keeps that starts again with other options of its own.
pub struct Earlier {
    pub(super) record: RunRecord,
    pub(super) training_began: Option<Instant>,
    pub(super) paused: Duration,
    pub(super) resumed_at: u64,
}

/// Where a run stands between two steps, apart from its weights.
pub(super) struct Mark {
    step: u64,
    pub(super) micro_step: u64,
    skipped: (u64, u32),
    scaler: Option<ScalerState>,
}

impl Run {
    /// The number of the next batch where `state` was saved with batches of another size, of which this one's are a part.
    pub(super) fn micro_step_of(&self, state: &TrainingState) -> u64 {
        let size = |taken: &Taken| match taken.measure {
            Measure::Batch { size, .. } => Some(size),
            _ => None,
        };
        let before = state.measures.iter().rev().find_map(size).unwrap_or(self.asked_batch_size);
        match state.batches_per_epoch {
            batches @ 1.. if before != self.batch_size => {
                let (epoch, place) = (state.micro_step / batches, state.micro_step % batches);
                epoch * self.batches_per_epoch as u64 + place * (before / self.batch_size.max(1)) as u64
            }
            _ => state.micro_step,
        }
    }

    /// Where it stands between two steps.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            step: self.step,
            micro_step: self.micro_step,
            skipped: (self.skipped, self.skipped_in_a_row),
            scaler: self.scaler.as_ref().map(LossScaler::state),
        }
    }

    /// Goes back to where it stood, unless its weights have changed since.
    pub(super) fn go_back(&mut self, mark: &Mark) -> Result<()> {
        (self.step, self.micro_step) = (mark.step, mark.micro_step);
        (self.skipped, self.skipped_in_a_row) = mark.skipped;
        self.scaler = mark.scaler.map(LossScaler::from_state).transpose()?;
        Ok(())
    }

    /// Whether the training has begun: its folder holds what can be resumed.
    pub(super) fn has_begun(&self) -> bool {
        self.training_began.is_some()
    }

    /// Whether it can start again from what is on disk, without what another run's checkpoint gave it.
    pub(super) fn can_start_again(&self) -> bool {
        let is_from_the_start = !self.has_begun() || self.resumed_at == 0;
        is_from_the_start || matches!(checkpoint::latest(self.folder.path()), Ok(Some(_)))
    }

    /// What it keeps when it starts again.
    pub(super) fn into_earlier(self) -> Earlier {
        let Self { record, training_began, paused, resumed_at, .. } = self;
        Earlier { record, training_began, paused, resumed_at }
    }
}
