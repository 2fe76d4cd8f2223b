//! The next batch is decoded on a thread of its own while this one trains.

use crate::error::{Error, Result};
use std::sync::mpsc::{sync_channel, Receiver};
use std::thread::{self, JoinHandle};

/// An iterator that runs on a background thread, one item ahead of its consumer.
///
/// ```
/// let squares = lorabooth::data::prefetch::Prefetch::new((0..4).map(|x| x * x)).unwrap();
/// assert_eq!(squares.collect::<Vec<_>>(), [0, 1, 4, 9]);
/// ```
pub struct Prefetch<T> {
    // In this order: a dropped receiver ends the thread.
    items: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts computing `items`. At most one finished item waits while the next is computed.
    pub fn new(items: impl Iterator<Item = T> + Send + 'static) -> Result<Self> {
        let (sender, receiver) = sync_channel(1);
        let work = move || {
            for item in items {
                if sender.send(item).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("prefetch".into()).spawn(work).map_err(Error::no_thread)?;
        Ok(Self { items: Some(receiver), thread: Some(thread) })
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let item = self.items.as_ref().and_then(|items| items.recv().ok());
        if item.is_none() {
            // A panic over there must not look like the end of the data.
            if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                std::panic::resume_unwind(panic);
            }
        }
        item
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.items = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_it_early_ends_its_thread() {
        let mut endless = Prefetch::new(0..).unwrap();
        assert_eq!(endless.next(), Some(0));
        drop(endless);
    }

    #[test]
    #[should_panic(expected = "decoder")]
    fn a_panic_of_its_thread_is_not_taken_for_the_end() {
        Prefetch::new((0..3).map(|x| if x == 1 { panic!("decoder") } else { x })).unwrap().for_each(drop);
    }
}
