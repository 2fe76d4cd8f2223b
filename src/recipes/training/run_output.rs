//! What a run leaves on disk: logs, checkpoints, adapters, and word of how it ended.

use super::observer::{Event, Observer};
use super::run::{Finished, Run};
use crate::error::{Error, Result};
use crate::train::checkpoint::{self, TrainingState};
use crate::train::loss_curve;
use crate::train::metrics::{self, MetricsLog, StepMetrics};
use crate::train::precision::LossScaler;
use crate::train::run_folder::RunFolder;
use crate::train::tensorboard::EventWriter;
use std::path::Path;

impl Run {
    /// Writes a step's numbers to the logs and tells the observer.
    pub fn note(&mut self, metrics: StepMetrics, observer: &mut dyn Observer) -> Result<()> {
        if let Some(log) = &mut self.metrics {
            log.append(&metrics)?;
        }
        if let Some(events) = &mut self.events {
            let parts = metrics.parts.iter().map(|(tag, value)| (tag.as_str(), *value));
            let values = [("loss", metrics.loss), ("lr", Some(metrics.lr)), ("grad_norm", metrics.grad_norm)];
            for (tag, value) in values.into_iter().chain(parts) {
                if let Some(value) = value {
                    events.scalar(tag, value, metrics.step)?;
                }
            }
        }
        observer.on(Event::Step { metrics, total: self.total_steps });
        self.heed_removal(observer)
    }

    /// Warns where the output folder was removed: its logs are there again, and what comes is written to it.
    fn heed_removal(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let log = self.metrics.as_mut().is_some_and(MetricsLog::came_back);
        let events = self.events.as_mut().is_some_and(EventWriter::came_back);
        if log {
            self.folder.lock_again()?;
        }
        if log || events {
            observer.warning(format!(
                "{} was removed, or its logs were, while the run writes to it; they are written again, and the run continues, but \
                 checkpoints of earlier steps are lost if they were removed",
                self.folder.path().display()
            ));
        }
        Ok(())
    }

    /// Puts a value of the present step in the TensorBoard events.
    pub fn events_scalar(&mut self, tag: &str, value: f64) -> Result<()> {
        match &mut self.events {
            Some(events) => events.scalar(tag, value, self.step),
            None => Ok(()),
        }
    }

    /// Puts a picture in the TensorBoard events.
    pub fn events_image(&mut self, tag: &str, png: &[u8], size: (u32, u32)) -> Result<()> {
        match &mut self.events {
            Some(events) => events.png(tag, png, size, self.step),
            None => Ok(()),
        }
    }

    /// Writes `checkpoint-N`, with the adapter that `write_adapter` writes, and removes those that need not be kept.
    pub fn save_checkpoint(&mut self, write_adapter: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if !self.ranks.is_first() {
            self.saved = Some((self.step, self.evaluation_is_owed));
            return Ok(());
        }
        self.check_weights()?;
        let metrics_bytes = self.metrics.as_mut().map_or(Ok(0), MetricsLog::sync)?;
        let state = TrainingState {
            step: self.step,
            micro_step: self.micro_step,
            epoch: self.position().0 as u64,
            batches_per_epoch: self.batches_per_epoch as u64,
            seed: self.seed,
            scaler: self.scaler.as_ref().map(LossScaler::state),
            metrics_bytes,
            evaluation_is_owed: self.evaluation_is_owed,
            ranks: self.ranks.count(),
            measures: self.measures.clone(),
            options: self.options.clone(),
        };
        let optimizer = self.optimizer.state();
        checkpoint::save(self.folder.path(), &state, &self.trained.params, &optimizer, write_adapter)?;
        self.saved = Some((self.step, self.evaluation_is_owed));
        match self.training.keep_checkpoints {
            Some(keep) => checkpoint::prune(self.folder.path(), keep),
            None => Ok(()),
        }
    }

    /// The error of a run that was asked to stop, which says where it goes on from.
    pub fn interrupted(&self) -> Error {
        if !self.ranks.is_first() {
            return Error::Interrupted(String::new());
        }
        let output = match self.names_output {
            true => String::new(),
            false => format!(" ⟨output_dir⟩ {}", crate::options::shell_path(self.folder.path())),
        };
        Error::Interrupted(match checkpoint::latest(self.folder.path()) {
            Ok(Some(folder)) => format!(
                "step {} is saved in {}, with its adapter; continue with the same command and ⟨resume⟩{output}",
                self.step,
                folder.display()
            ),
            _ => format!("stopped before anything was saved; start again with ⟨overwrite⟩{output}"),
        })
    }

    /// Has `write` write the adapters, then writes run.json and the loss curve, with the losses of `evaluations` by their steps.
    pub fn finish(
        &mut self,
        evaluations: &[(u64, f64)],
        observer: &mut dyn Observer,
        write: impl FnOnce(&RunFolder, &mut dyn Observer) -> Result<()>,
    ) -> Result<Finished> {
        self.check_weights()?;
        if let Some(log) = &mut self.metrics {
            log.sync()?;
        }
        if let Some(events) = &mut self.events {
            events.sync()?;
        }
        self.heed_removal(observer)?;
        observer.begin("writing", 1, "");
        write(&self.folder, observer)?;
        observer.on(Event::End);
        let lines = metrics::read(&self.folder.join("metrics.jsonl"))?;
        loss_curve::draw(&self.folder.join("loss.png"), &lines, evaluations)?;
        let last: Vec<f64> = lines.iter().rev().take((lines.len() / 10).max(1)).filter_map(|line| line.loss).collect();
        let final_loss = (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64);
        self.record.final_loss = final_loss;
        self.record.write(self, "finished", None)?;
        Ok(Finished {
            output_dir: self.folder.path().to_owned(),
            steps: self.step,
            resumed_at: self.resumed_at,
            final_loss,
            sample: None,
            resolution: None,
        })
    }

    /// Leaves word in `run.json` of why the run ended, or takes the folder away again if nothing came into it.
    pub fn fail(&self, error: &Error) {
        if !self.ranks.is_first() {
            return;
        }
        if self.training_began.is_none() {
            return self.folder.remove_if_unused();
        }
        let status = if matches!(error, Error::Interrupted(_)) { "interrupted" } else { "failed" };
        // Where it cannot be written, the error itself says why.
        drop(self.record.write(self, status, Some(error)));
    }
}
