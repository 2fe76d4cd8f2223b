//! Counted work that a bar shows, and that can be broken off in between.

use super::observer::{Event, Observer};
use crate::error::Result;
use crate::train::interrupt::Interrupt;

/// A phase in the doing; it is over when this is dropped.
pub struct Watched<'a> {
    observer: &'a mut dyn Observer,
    interrupt: &'a Interrupt,
    done: u64,
}

impl<'a> Watched<'a> {
    /// Begins the phase `name` of `total` units, which are called `unit`.
    pub fn begin(
        name: &str,
        total: usize,
        unit: &'static str,
        interrupt: &'a Interrupt,
        observer: &'a mut dyn Observer,
    ) -> Self {
        observer.begin(name, total as u64, unit);
        Self { observer, interrupt, done: 0 }
    }

    /// So many more units are done.
    pub fn add(&mut self, units: usize) {
        self.done += units as u64;
        self.observer.on(Event::Progress { done: self.done });
    }

    /// [`Interrupt::check`].
    pub fn check(&self) -> Result<()> {
        self.interrupt.check()
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.observer.on(Event::End);
    }
}
