//! Ctrl-C, SIGTERM and a closed terminal as a question that the loop asks between steps.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Whether a run was asked to stop. Clones ask the same question.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// One that only [`Interrupt::request`] sets: for a run that is stopped by other means than a signal.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the first Ctrl-C, SIGTERM or SIGHUP ask the run to stop, and the next end the process at once with 128 + the
    /// signal's number.
    pub fn on_signals() -> Result<Self> {
        let interrupt = Self::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let failed = |error| Error::invalid(format!("cannot listen for Ctrl-C: {error}"));
            // This order: the first signal finds the flag unset here, and sets it with the second action.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, interrupt.0.clone())
                .map_err(failed)?;
            signal_hook::flag::register(signal, interrupt.0.clone()).map_err(failed)?;
        }
        Ok(interrupt)
    }

    /// Asks the run to stop after its step.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the run was asked to stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// [`Error::Interrupted`], for the caller to say where it goes on, once the run was asked to stop.
    pub fn check(&self) -> Result<()> {
        match self.requested() {
            true => Err(Error::Interrupted(String::new())),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_asks_the_run_to_stop_instead_of_ending_it() {
        let interrupt = Interrupt::on_signals().unwrap();
        assert!(!interrupt.requested());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(interrupt.clone().requested());
    }
}
