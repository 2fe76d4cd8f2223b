//! Options of a training on several GPUs or machines.

use super::checks::counted;
use crate::error::{Error, Result};
use clap::Args;
use serde::Serialize;
use std::time::Duration;

/// Title of these options in a command's help: a page starts one process.
pub const HEADING: &str = "Several GPUs";
/// More processes than any machine has GPUs or cores.
const MAX_PROCESSES: u64 = 1024;

/// Options of data parallel training.
#[derive(Debug, Clone, Args, Serialize)]
pub struct RanksArgs {
    /// Train on so many GPUs of this machine, each with batches of its own; for several machines see docs/several-gpus.md
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub gpus: Option<u64>,
    /// Train in so many processes on this machine's CPU, each with batches of its own
    #[arg(long, value_name = "N", conflicts_with = "gpus", help_heading = HEADING)]
    pub processes: Option<u64>,
    /// End the run, with the last checkpoint kept, where a process does not answer for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = HEADING)]
    pub timeout: u64,
}

impl RanksArgs {
    /// Refuses numbers that cannot be meant.
    pub fn check(&self) -> Result<()> {
        for (flag, number) in [("⟨gpus⟩", self.gpus), ("⟨processes⟩", self.processes)] {
            counted(flag, number.unwrap_or(1), 1, MAX_PROCESSES)?;
        }
        // Signs of life come twice a second.
        counted("⟨timeout⟩", self.timeout, 5, u64::from(u32::MAX))
    }

    /// Processes that are asked for on this machine.
    pub fn count(&self) -> u64 {
        self.gpus.or(self.processes).unwrap_or(1)
    }

    /// Refuses to be started as one of `count` processes of this machine where another number is asked for.
    pub fn check_started(&self, count: usize) -> Result<()> {
        match self.gpus.or(self.processes) {
            Some(asked) if asked != count as u64 => Err(Error::invalid(format!(
                "{} is {asked}, but what started this process (torchrun, accelerate, mpirun or srun) started {count} on this machine; \
                 leave the option out",
                if self.gpus.is_some() { "⟨gpus⟩" } else { "⟨processes⟩" }
            ))),
            _ => Ok(()),
        }
    }

    /// How long a process may not answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}
