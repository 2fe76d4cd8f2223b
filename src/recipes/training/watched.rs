//! Counted work that a bar shows, and that can be broken off in between.

use super::observer::{Event, Observer};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::sample::drawn_image::DrawnImage;
use crate::sample::painter::{DrawingListener, Pictures};

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

/// What becomes of a picture that is finished.
pub type Take<'a> = &'a mut dyn FnMut(&DrawnImage, &mut dyn Observer) -> Result<()>;

/// The drawing of pictures as such a phase: a bar over the sampler's steps.
pub struct WatchedDrawing<'a> {
    work: Watched<'a>,
    take: Take<'a>,
}

impl<'a> WatchedDrawing<'a> {
    /// Begins the phase `name`, in which `pictures` are drawn; `take` gets each one as it is finished.
    pub fn begin(
        name: &str,
        pictures: &Pictures,
        interrupt: &'a Interrupt,
        observer: &'a mut dyn Observer,
        take: Take<'a>,
    ) -> Self {
        Self { work: Watched::begin(name, pictures.total_steps(), "sampler steps", interrupt, observer), take }
    }
}

impl DrawingListener for WatchedDrawing<'_> {
    fn on_step(&mut self, done: usize) -> Result<()> {
        self.work.done = done as u64;
        self.work.add(0);
        self.work.check()
    }

    fn on_image(&mut self, drawn: DrawnImage) -> Result<()> {
        (self.take)(&drawn, self.work.observer)
    }

    fn on_change(&mut self, what: &str) {
        self.work.observer.warning(what.to_owned());
    }
}
