//! Numbers of a run that are none any more: when they are given up, and what a user is told.

use super::run::Run;
use crate::adapters::Lost;
use crate::error::{Error, Result};
use crate::train::checkpoint;
use crate::train::gradients::all_finite;
use crate::train::precision::LossScaler;
use tch::{Kind, Tensor};

/// Steps in a row that may overflow in float16 before the run is given up.
const MOST_SKIPPED: u32 = 25;

impl Run {
    /// Whether the numbers of a step are lost; counts float16's overflows, which a smaller scale of the loss can end.
    pub fn has_diverged(&mut self, diverged: bool, finite: bool) -> bool {
        self.skipped_in_a_row = if finite { 0 } else { self.skipped_in_a_row + 1 };
        self.skipped += u64::from(!finite);
        diverged || self.skipped_in_a_row > MOST_SKIPPED
    }

    /// The error of a preparation whose numbers were lost in `layer`; `what` was not one.
    pub fn numbers_are_lost_in(&mut self, what: &str, layer: &str) -> Error {
        self.lost = Some(Lost { layer: layer.to_owned(), in_backward: false });
        self.diverged_at(self.step, what)
    }

    /// Has the search for a scale of the loss begin anew, if it is what was lost: a layer that overflows has led it astray.
    pub(super) fn search_scale_anew(&mut self) {
        if let (Some(scaler), 1..) = (&mut self.scaler, std::mem::take(&mut self.skipped_in_a_row)) {
            *scaler = LossScaler::default();
        }
    }

    /// The error of a step whose numbers were lost, before it is counted.
    pub(super) fn numbers_are_lost(&self) -> Error {
        self.diverged_at(self.step + 1, "the loss is")
    }

    /// Refuses to save weights that are no numbers: a large step can make them so behind a loss that was one.
    pub(super) fn check_weights(&self) -> Result<()> {
        let params: Vec<Tensor> = self.trained.params.values().map(Tensor::detach).collect();
        match all_finite(&params)? {
            true => Ok(()),
            false => Err(self.diverged_at(self.step, "the trained weights are")),
        }
    }

    fn diverged_at(&self, step: u64, what: &str) -> Error {
        let kept = match checkpoint::latest(self.folder.path()) {
            Ok(Some(folder)) => format!("the last good state is kept in {}", folder.display()),
            _ => "no checkpoint was made before it".to_owned(),
        };
        let is_exact = |lost: &Lost| self.training.fp32_layers.contains(&lost.layer);
        let cure = match self.kind {
            _ if self.lost.as_ref().is_some_and(is_exact) => {
                "that layer computes in fp32 already: its weights are damaged, or ⟨learning_rate⟩ is too high"
            }
            Kind::Half => "use ⟨mixed_precision⟩ bf16 or no, or a lower ⟨learning_rate⟩",
            _ if step == 1 => "lower ⟨learning_rate⟩; if that does not help, the model's weights are damaged",
            _ => "lower ⟨learning_rate⟩, or raise ⟨lr_warmup_steps⟩",
        };
        let learning_rate = self.schedule.learning_rate;
        let first = match &self.lost {
            Some(lost) => format!(", first in {}", lost.in_words()),
            None => String::new(),
        };
        Error::Diverged(format!(
            "{what} not a number at step {step} (learning rate {learning_rate:e}){first}; {kept}; {cure}"
        ))
    }
}
