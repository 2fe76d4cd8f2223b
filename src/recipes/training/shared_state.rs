//! What ranks tell each other of a run: where the first one stands, and in each step what must not be one rank's alone.

use super::observer::Observer;
use super::run::{Finished, Run};
use crate::adapters::Lost;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::memory;
use crate::libtorch::shared_memory;
use crate::train::checkpoint::{self, TrainingState};
use crate::train::data_parallel::processes;
use crate::train::precision::{LossScaler, ScalerState};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// All of it but tensors.
#[derive(Serialize, Deserialize)]
pub(super) struct SharedState {
    /// Optimizer steps done.
    pub step: u64,
    /// Of them those of an earlier process.
    pub resumed_at: u64,
    /// Batches done.
    pub micro_step: u64,
    /// An evaluation was interrupted.
    pub evaluation_is_owed: bool,
    /// Of float16 training.
    pub scaler: Option<ScalerState>,
    /// The optimizer's tensors.
    pub optimizer: Vec<Shape>,
}

/// A tensor's name, dtype and shape.
#[derive(Serialize, Deserialize)]
pub(super) struct Shape {
    name: String,
    kind: String,
    size: Vec<i64>,
}

impl Shape {
    /// That of `tensor`.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        Self { name: name.to_owned(), kind: format!("{:?}", tensor.kind()), size: tensor.size() }
    }

    /// A tensor of it.
    pub fn zeros(&self, device: Device) -> Result<(String, Tensor)> {
        let kinds = [Kind::Float, Kind::Double, Kind::Uint8, Kind::Int, Kind::Int64];
        let kind = kinds.into_iter().find(|kind| format!("{kind:?}") == self.kind);
        let kind = kind.ok_or_else(|| Error::Internal(format!("no optimizer has {}", self.kind)))?;
        Ok((self.name.clone(), Tensor::zeros(&self.size, (kind, device))))
    }
}

/// Numbers that ranks share with the gradients of a step: the loss, whether one was asked to stop, whether the memory of one is full, and
/// the losses' `parts`.
pub(super) fn numbers(parts: &[&str]) -> usize {
    3 + parts.len()
}

impl Run {
    /// Makes gradients, the loss and its parts those of all ranks: from here on each has the same numbers, and does the same. Where
    /// there are several, also what [`Run::heed_ranks`] takes.
    pub(super) fn share_step(
        &mut self,
        total: Tensor,
        parts: Vec<Tensor>,
        interrupt: &Interrupt,
    ) -> Result<(Tensor, Vec<Tensor>, Vec<Tensor>)> {
        let Some(reduction) = &mut self.reduction else { return Ok((total, parts, Vec::new())) };
        let flags = Tensor::from_slice(&[f32::from(u8::from(interrupt.requested())), 0.0]).to_device(self.device);
        let own: Vec<Tensor> = [flags.get(0), flags.get(1), total].into_iter().chain(parts).collect();
        let mut shared = reduction.finish(&own, true)?;
        let parts = shared.split_off(3);
        let total = shared.pop().unwrap_or_default();
        Ok((total, parts, shared))
    }

    /// What ranks have in common beside the step: whether one was asked to stop, and whether the memory of one is full.
    pub(super) fn heed_ranks(&mut self, flags: &[f32]) -> Result<()> {
        let [stop, full] = flags else { return Ok(()) };
        self.is_asked_to_stop = *stop > 0.0;
        if *full > 0.0 {
            self.trouble_is_shared = true;
            return Err(self.ranks.share_full_memory(None));
        }
        Ok(())
    }

    /// Tells the other ranks in their step that the memory of this one is full, where there are others; the error that stays.
    pub(super) fn share_full_memory(&mut self, error: Error, parts: &[&str], interrupt: &Interrupt) -> Error {
        let freed = self.optimizer.zero_grad(&self.trained.params).and_then(|()| memory::release_cached(self.device));
        let Some(reduction) = &mut self.reduction else { return error };
        let mut own = vec![0.0; numbers(parts)];
        (own[0], own[1]) = (f32::from(u8::from(interrupt.requested())), 1.0);
        let own = Tensor::from_slice(&own).to_device(self.device);
        let own: Vec<Tensor> = (0..numbers(parts) as i64).map(|i| own.get(i)).collect();
        match freed.and_then(|()| reduction.finish(&own, false)) {
            Ok(_) => {
                self.trouble_is_shared = true;
                self.ranks.share_full_memory(Some(error))
            }
            Err(other) => other,
        }
    }

    /// Has all ranks know that memory of this one, or of another, is full, unless they do: whether they do. Not in a step, where they wait for
    /// each other's gradients.
    pub(super) fn share_trouble(&self, error: &Error) -> bool {
        let is_shared = self.trouble_is_shared || self.ranks.is_alone();
        is_shared || !self.is_in_exchange && self.ranks.come_together_anew(error).is_ok()
    }

    /// The layer that lost a number first, on whichever rank that was.
    pub(super) fn share_lost(&mut self, own: Option<Lost>) -> Result<()> {
        let own: Vec<(String, bool)> = own.into_iter().map(|lost| (lost.layer, lost.in_backward)).collect();
        let first = self.ranks.collect(Ok(own))?.into_iter().next();
        self.lost = first.map(|(layer, in_backward)| Lost { layer, in_backward });
        self.trouble_is_shared = true;
        Ok(())
    }

    /// Puts a checkpoint of another number of ranks where this run's batches are.
    pub(super) fn go_on_with_other_ranks(
        &self,
        saved: &mut TrainingState,
        batches: usize,
        observer: &mut dyn Observer,
    ) {
        let (before, now) = (saved.ranks, self.ranks.count());
        // One that does not say how many batches an epoch had is of one process, and of the same batches.
        let an_epoch = if saved.batches_per_epoch == 0 { batches as u64 } else { saved.batches_per_epoch };
        let (epoch, place) = (saved.micro_step / an_epoch.max(1), saved.micro_step % an_epoch.max(1));
        saved.batches_per_epoch = match saved.measures == self.measures {
            true => self.batches_per_epoch as u64,
            false => (an_epoch * before as u64).div_ceil(now as u64),
        };
        saved.micro_step = epoch * saved.batches_per_epoch + place * before as u64 / now as u64;
        saved.ranks = now;
        // Epochs come to another number of steps.
        saved.options.remove("--max-train-steps");
        if let Some(steps) = self.options.get("--max-train-steps") {
            saved.options.insert("--max-train-steps".to_owned(), steps.clone());
        }
        let scaled = if self.training.scale_lr { ", and ⟨scale_lr⟩ the learning rate with it" } else { "" };
        observer.warning(format!(
            "the checkpoint is of {}, and this run has {}: adapter, optimizer and step are kept; from here on a step learns from \
             {now}/{before} as many batches{scaled}, with other noise, and the run ends at step {}",
            processes(before),
            processes(now),
            self.total_steps,
        ));
    }

    /// Where frozen weights wait in memory that the processes of a machine share, and which processes have their own instead.
    pub(super) fn report_waiting_weights(&self, observer: &mut dyn Observer) -> Result<()> {
        if self.ranks.is_alone() || self.device == Device::Cpu || !self.training.weights.storage().streamed {
            return Ok(());
        }
        let complaints = self.ranks.gather(shared_memory::complaint().unwrap_or_default().into_bytes())?;
        let those = complaints.iter().enumerate().filter(|(_, why)| !why.is_empty());
        let those: Vec<String> =
            those.map(|(rank, why)| format!("rank {rank} ({})", String::from_utf8_lossy(why))).collect();
        match those.is_empty() {
            true => observer.fact("host memory", "frozen weights are pinned once for the processes of a machine"),
            false => observer.warning(format!(
                "frozen weights are not pinned once for all processes of a machine, but once more by {}",
                those.join(" and ")
            )),
        }
        Ok(())
    }

    /// All ranks stand where the first one does.
    pub(super) fn share_state(&mut self) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let own = SharedState {
            step: self.step,
            resumed_at: self.resumed_at,
            micro_step: self.micro_step,
            evaluation_is_owed: self.evaluation_is_owed,
            scaler: self.scaler.as_ref().map(LossScaler::state),
            optimizer: self.optimizer.state().iter().map(|(name, tensor)| Shape::of(name, tensor)).collect(),
        };
        let shared = self.ranks.of_first(|| Ok(own))?;
        let mut optimizer = self.optimizer.state();
        if !self.ranks.is_first() {
            optimizer = shared.optimizer.iter().map(|shape| shape.zeros(self.device)).collect::<Result<_>>()?;
        }
        let mut params: Vec<Tensor> = self.trained.params.values().map(Tensor::detach).collect();
        self.ranks.equalise(params.iter_mut().chain(optimizer.values_mut()), 0)?;
        if self.ranks.is_first() {
            return Ok(());
        }
        self.optimizer.load_state(&self.trained.params, &optimizer)?;
        (self.step, self.resumed_at, self.micro_step) = (shared.step, shared.resumed_at, shared.micro_step);
        self.evaluation_is_owed = shared.evaluation_is_owed;
        if let (Some(state), true) = (shared.scaler, self.scaler.is_some()) {
            self.scaler = Some(LossScaler::from_state(state)?);
            self.skipped = state.skipped_steps;
        }
        Ok(())
    }

    /// Whether it is to stop after the present step: all ranks agree.
    pub(super) fn is_asked_to_stop(&self, interrupt: &Interrupt) -> bool {
        match self.ranks.is_alone() {
            true => interrupt.requested(),
            false => self.is_asked_to_stop,
        }
    }

    /// The error of a run that another rank ended, which says where it goes on from.
    pub(super) fn without_a_rank(&self, error: Error) -> Error {
        match (error, checkpoint::latest(self.folder.path())) {
            (Error::OtherRank(text), Ok(Some(folder))) if self.ranks.is_first() => Error::OtherRank(format!(
                "{text}; the last checkpoint is {}, and the same command with ⟨resume⟩ continues from it",
                folder.display()
            )),
            (error, _) => error,
        }
    }

    /// What a rank that is not the first leaves: nothing.
    pub fn finish_elsewhere(&self) -> Finished {
        Finished {
            output_dir: self.folder.path().to_owned(),
            steps: self.step,
            resumed_at: self.resumed_at,
            final_loss: None,
            sample: None,
            resolution: None,
        }
    }
}
