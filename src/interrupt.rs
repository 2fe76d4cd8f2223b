//! Ctrl-C, SIGTERM and a closed terminal as a question that a job asks between steps.
//!
//! What is far below a job's loop, as the reading of a photo or a weight, asks with [`check`]: the job says by
//! [`Interrupt::watch`] which interrupt that is, as `no_grad` says for a thread that no gradients are needed.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use std::cell::RefCell;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    /// The process has one such interrupt: who asks again is given the same.
    pub fn on_signals() -> Result<Self> {
        static OF_PROCESS: Mutex<Option<Interrupt>> = Mutex::new(None);
        let mut of_process = OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = &*of_process {
            return Ok(interrupt.clone());
        }
        let interrupt = Self::new();
        let mut brief = BRIEF.lock().unwrap_or_else(PoisonError::into_inner);
        brief.is_needless = true;
        brief.is_over.store(false, Ordering::SeqCst);
        let failed = |error| Error::invalid(format!("cannot listen for Ctrl-C: {error}"));
        let signals = [SIGINT, SIGTERM, SIGHUP];
        if end_at_the_second(&signals).is_err() {
            // Where no thread can be made. This order: the first signal finds the flag unset here, and sets it with the second action.
            for signal in signals {
                flag::register_conditional_shutdown(signal, 128 + signal, interrupt.0.clone()).map_err(failed)?;
            }
        }
        for signal in signals {
            flag::register(signal, interrupt.0.clone()).map_err(failed)?;
        }
        *of_process = Some(interrupt.clone());
        Ok(interrupt)
    }

    /// Has [`check`] and [`watched`] on this thread ask this interrupt, until what is returned is dropped.
    pub fn watch(&self) -> Watch {
        Watch(WATCHED.replace(Some(self.clone())))
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

/// What is done before a second signal ends the process.
static LAST: Mutex<Option<fn()>> = Mutex::new(None);

/// Has `last` called before a second signal ends the process: it must not wait for anything.
pub fn at_a_sudden_end(last: fn()) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
}

/// Ends the process at the second of `signals`, from a thread: what a signal's own handler may do leaves a bar on the terminal.
fn end_at_the_second(signals: &[i32]) -> std::io::Result<()> {
    let (mut read, write) = UnixStream::pair()?;
    let newest = Arc::new(AtomicUsize::new(0));
    let code = newest.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // A byte for each signal.
        if read.read_exact(&mut [0; 2]).is_ok() {
            if let Some(last) = *LAST.lock().unwrap_or_else(PoisonError::into_inner) {
                last();
            }
            low_level::exit(128 + code.load(Ordering::SeqCst) as i32);
        }
    })?;
    for signal in signals {
        flag::register_usize(*signal, newest.clone(), *signal as usize)?;
        low_level::pipe::register(*signal, write.try_clone()?)?;
    }
    Ok(())
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

thread_local! {
    static WATCHED: RefCell<Option<Interrupt>> = const { RefCell::new(None) };
}

/// While it lives, [`check`] asks the interrupt of [`Interrupt::watch`]; then the one before it again.
pub struct Watch(Option<Interrupt>);

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(self.0.take());
    }
}

/// The interrupt that this thread watches, to be handed to another; one that nothing sets where it watches none.
pub fn watched() -> Interrupt {
    WATCHED.with_borrow(Clone::clone).unwrap_or_default()
}

/// Whether signals ask an [`Interrupt`] of the process.
pub fn hears_signals() -> bool {
    BRIEF.lock().unwrap_or_else(PoisonError::into_inner).is_needless
}

/// An error, where the interrupt that this thread watches was asked to stop.
pub fn check() -> Result<()> {
    match WATCHED.with_borrow(|watched| watched.as_ref().is_some_and(Interrupt::requested)) {
        true => Err(Error::Interrupted(
            "stopped before the first step, so that nothing is lost; the same command starts again".to_owned(),
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_far_below_a_job_asks_the_interrupt_that_the_job_watches() {
        let (outer, inner) = (Interrupt::new(), Interrupt::new());
        inner.request();
        let watch = outer.watch();
        assert!(check().is_ok());
        let inner_watch = inner.watch();
        assert!(check().is_err() && watched().requested());
        assert!(std::thread::spawn(check).join().unwrap().is_ok(), "another thread watches nothing");
        drop(inner_watch);
        assert!(check().is_ok());
        drop(watch);
        assert!(check().is_ok());
    }

    #[test]
    fn a_signal_asks_the_run_to_stop_instead_of_ending_it() {
        let interrupt = Interrupt::on_signals().unwrap();
        assert!(!interrupt.requested());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(interrupt.clone().requested());
    }
}
