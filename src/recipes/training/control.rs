//! What another thread can ask of a training run while it goes on: to stop, to save, to show a sample, to wait.
//!
//! The run answers between two optimizer steps, and nothing of it changes the numbers that it ends with: each step's draws depend on
//! the seed and the step's number alone, and a sample has generators of its own.

use crate::interrupt::Interrupt;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a run that waits looks at its [`Interrupt`], which a signal can set without waking it.
const LOOK: Duration = Duration::from_millis(100);

/// What a sample shows; what is not given is the run's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampleRequest {
    /// Of a DreamBooth run: what the images show, by default the validation prompt, else a prompt that it trains with.
    /// Of a language model: the text to continue, answer or classify, by default one of its records.
    pub prompt: Option<String>,
    /// What images must not show.
    pub negative_prompt: Option<String>,
    /// Seed of the first image's noise, by default the run's; the next ones have the next numbers.
    pub seed: Option<i64>,
    /// Number of images, by default 1.
    pub images: Option<usize>,
    /// Tokens of a text at most, by default as many as in an evaluation.
    pub max_new_tokens: Option<usize>,
}

/// A hold on a run, for the run itself and for any number of other threads: clones hold the same run.
#[derive(Debug, Clone, Default)]
pub struct Control(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    interrupt: Interrupt,
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    pause: bool,
    save: bool,
    samples: VecDeque<SampleRequest>,
}

/// What a run is to do between two steps.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Write a checkpoint.
    Save,
    /// Make a sample.
    Sample(SampleRequest),
    /// Nothing, until [`Control::wait`] returns.
    Wait,
    /// The next step, or the end.
    GoOn,
}

impl Control {
    /// A hold on a run that stops only by [`Control::stop`].
    pub fn new() -> Self {
        Self::default()
    }

    /// A hold on a run that stops once `interrupt` is set, too.
    pub fn of(interrupt: Interrupt) -> Self {
        Self(Arc::new(Shared { interrupt, ..Shared::default() }))
    }

    /// What the run asks within its longer phases.
    pub fn interrupt(&self) -> &Interrupt {
        &self.0.interrupt
    }

    /// Asks the run to stop, with its state saved, as Ctrl-C does; also while it is paused. It ends with
    /// [`crate::error::Error::Interrupted`].
    pub fn stop(&self) {
        self.0.interrupt.request();
        self.0.changed.notify_all();
    }

    /// Asks for a checkpoint after the present step, which is there already where one is due.
    pub fn save(&self) {
        self.change(|asked| asked.save = true);
    }

    /// Asks for a sample with the weights as they are after the present step: [`super::observer::Event::Image`] for each image, or
    /// [`super::observer::Event::Completed`]. One that cannot be made is a warning, and the run goes on.
    pub fn sample(&self, request: SampleRequest) {
        self.change(|asked| asked.samples.push_back(request));
    }

    /// Has the run wait after the present step, with everything in memory; it still saves and makes samples when asked to.
    pub fn pause(&self) {
        self.change(|asked| asked.pause = true);
    }

    /// Ends the pause.
    pub fn go_on(&self) {
        self.change(|asked| asked.pause = false);
    }

    /// Whether the run waits, or will after its step.
    pub fn is_paused(&self) -> bool {
        self.asked().pause
    }

    /// What comes next; a run that was asked to stop has no time for anything else.
    pub(super) fn next(&self) -> Order {
        let mut asked = self.asked();
        if self.0.interrupt.requested() {
            return Order::GoOn;
        }
        if std::mem::take(&mut asked.save) {
            return Order::Save;
        }
        match asked.samples.pop_front() {
            Some(request) => Order::Sample(request),
            None if asked.pause => Order::Wait,
            None => Order::GoOn,
        }
    }

    /// Returns when something may have changed.
    pub(super) fn wait(&self) {
        let asked = self.asked();
        let is_idle = asked.pause && !asked.save && asked.samples.is_empty();
        if is_idle && !self.0.interrupt.requested() {
            drop(self.0.changed.wait_timeout(asked, LOOK));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Asked)) {
        change(&mut self.asked());
        self.0.changed.notify_all();
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Interrupt> for Control {
    fn from(interrupt: Interrupt) -> Self {
        Self::of(interrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_during_a_pause_comes_before_it_and_a_stop_before_all() {
        let control = Control::new();
        assert_eq!(control.next(), Order::GoOn);
        control.pause();
        let request = SampleRequest { seed: Some(3), ..SampleRequest::default() };
        control.sample(request.clone());
        control.save();
        control.save();
        assert_eq!(
            [control.next(), control.next(), control.next()],
            [Order::Save, Order::Sample(request), Order::Wait]
        );
        control.sample(SampleRequest::default());
        control.stop();
        assert_eq!(control.next(), Order::GoOn);
    }

    #[test]
    fn a_run_that_waits_is_woken_by_another_thread() {
        let control = Control::of(Interrupt::new());
        control.pause();
        let other = control.clone();
        let thread = std::thread::spawn(move || other.go_on());
        while control.next() == Order::Wait {
            control.wait();
        }
        thread.join().unwrap();
        assert!(!control.is_paused());
    }
}
