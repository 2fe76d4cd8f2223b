//! `metrics.jsonl`: one JSON object a line, one line an optimizer step, readable while the run goes on.

use super::growing_file::GrowingFile;
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What is known of one optimizer step. Losses are means over its micro-steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// What was minimised; null where it was no number.
    pub loss: Option<f64>,
    /// What the loss is made of, by name, such as `instance_loss`.
    #[serde(flatten)]
    pub parts: BTreeMap<String, Option<f64>>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Joint norm of the gradients before clipping.
    pub grad_norm: Option<f64>,
    /// Seconds that the step took.
    pub step_s: f64,
    /// Peak memory so far in MiB: of the device, or of the process where it trains on the CPU.
    pub peak_mib: f64,
}

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    file: GrowingFile,
    bytes: u64,
}

impl MetricsLog {
    /// A new, empty log.
    pub fn create(path: &Path) -> Result<Self> {
        Self::resume(path, 0)
    }

    /// Continues a log behind its first `bytes` bytes (a checkpoint's count): later lines are of steps that will be done
    /// again.
    pub fn resume(path: &Path, bytes: u64) -> Result<Self> {
        let (file, bytes) = GrowingFile::resume(path, bytes)?;
        Ok(Self { file, bytes })
    }

    /// Whether the file was removed and is there again ([`GrowingFile::came_back`]).
    pub fn came_back(&mut self) -> bool {
        self.file.came_back()
    }

    /// Appends one line, seen by other programs at once.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<()> {
        let mut line = serde_json::to_vec(metrics).map_err(|error| Error::file(self.file.path(), error.to_string()))?;
        line.push(b'\n');
        self.file.append(&line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes all lines durable and returns the log's length: what a checkpoint keeps.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync()?;
        Ok(self.bytes)
    }
}

/// All whole lines of a log, in their order; a last line that was cut short is left out.
pub fn read(path: &Path) -> Result<Vec<StepMetrics>> {
    let text = regular_file::read_text(path, FileKind::RUN)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, loss: f64) -> StepMetrics {
        let (lr, step_s, peak_mib) = (1e-4, 0.5, 100.);
        let loss = Some(loss);
        StepMetrics {
            step,
            epoch: 0,
            loss,
            parts: BTreeMap::from([("instance_loss".to_owned(), loss), ("prior_loss".to_owned(), None)]),
            lr,
            grad_norm: None,
            step_s,
            peak_mib,
        }
    }

    #[test]
    fn a_resumed_log_holds_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        (1..=3).for_each(|step| log.append(&line(step, 0.25)).unwrap());
        let offset = log.sync().unwrap();
        log.append(&line(4, 9.)).unwrap();
        drop(log);
        let mut log = MetricsLog::resume(&path, offset).unwrap();
        (4..=5).for_each(|step| log.append(&line(step, 0.5)).unwrap());
        let lines = read(&path).unwrap();
        assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(lines[3], line(4, 0.5));
    }

    #[test]
    fn a_loss_that_is_no_number_and_a_torn_line_do_not_stop_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        log.append(&line(1, f64::NAN)).unwrap();
        log.file.append(b"{\"step\": 2, \"ep").unwrap();
        let lines = read(&path).unwrap();
        assert_eq!((lines.len(), lines[0].loss), (1, None));
    }
}
