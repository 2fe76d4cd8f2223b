//! Ctrl-C, SIGTERM and a closed terminal as a question that the loop asks between steps.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

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
        let mut brief = BRIEF.lock().unwrap_or_else(PoisonError::into_inner);
        brief.is_needless = true;
        brief.is_over.store(false, Ordering::SeqCst);
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let failed = |error| Error::invalid(format!("cannot listen for Ctrl-C: {error}"));
            // This order: the first signal finds the flag unset here, and sets it with the second action.
            flag::register_conditional_shutdown(signal, 128 + signal, interrupt.0.clone()).map_err(failed)?;
            flag::register(signal, interrupt.0.clone()).map_err(failed)?;
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

/// Ctrl-C and SIGTERM as a question for as long as this lives: for a download in a command that they end at any other time.
pub struct BriefInterrupt(Interrupt);

/// What [`BriefInterrupt`]s share: what listens to signals is there once for the process, and stays.
struct Brief {
    /// Set by signals.
    asked: Option<Interrupt>,
    /// Whether signals end the process, as they would if nothing listened.
    is_over: Arc<AtomicBool>,
    /// Whether the process has an [`Interrupt`] of its own, which signals must not end.
    is_needless: bool,
}

static BRIEF: LazyLock<Mutex<Brief>> =
    LazyLock::new(|| Mutex::new(Brief { asked: None, is_over: Arc::default(), is_needless: false }));

impl BriefInterrupt {
    /// Lets the first Ctrl-C or SIGTERM ask the work to stop, and the next end the process at once with 128 + the signal's number.
    pub fn on_signals() -> Result<Self> {
        let mut brief = BRIEF.lock().unwrap_or_else(PoisonError::into_inner);
        brief.is_over.store(false, Ordering::SeqCst);
        if let Some(asked) = &brief.asked {
            return Ok(Self(asked.clone()));
        }
        let asked = Interrupt::new();
        for signal in [SIGINT, SIGTERM] {
            let failed = |error| Error::invalid(format!("cannot listen for Ctrl-C: {error}"));
            flag::register_conditional_default(signal, brief.is_over.clone()).map_err(failed)?;
            flag::register_conditional_shutdown(signal, 128 + signal, asked.0.clone()).map_err(failed)?;
            flag::register(signal, asked.0.clone()).map_err(failed)?;
        }
        brief.asked = Some(asked.clone());
        Ok(Self(asked))
    }

    /// [`Interrupt::check`].
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }
}

impl Drop for BriefInterrupt {
    fn drop(&mut self) {
        let brief = BRIEF.lock().unwrap_or_else(PoisonError::into_inner);
        brief.is_over.store(!brief.is_needless, Ordering::SeqCst);
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
