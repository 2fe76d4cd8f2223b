//! Whether the system gives the threads that a job needs. libgomp and libtorch end the process, or wait for each other without end,
//! where it does not: it is asked before.

use crate::error::{Error, Result};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{Builder, Scope};

/// Threads beside those that compute: the progress bar's, the next batch's, the load's, libtorch's own for a backward pass.
const BESIDE: usize = 5;
/// Stack of a thread that only waits.
const STACK: usize = 64 << 10;

/// How many of `wanted` threads can be made beside those that there are: they are made, and end at once.
pub fn available(wanted: usize) -> usize {
    let (ended, changed) = (Mutex::new(false), Condvar::new());
    let wait = || {
        let guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_while(guard, |ended| !*ended));
    };
    std::thread::scope(|scope: &Scope| {
        let start = |_| Builder::new().stack_size(STACK).spawn_scoped(scope, wait).ok();
        let made = (0..wanted).map_while(start).count();
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        made
    })
}

/// How many threads a job needs beside its first.
pub fn needed() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1) + BESIDE
}

/// Refuses to begin a job whose threads the system would not give.
pub fn check() -> Result<()> {
    let (needed, available) = (needed(), available(needed()));
    if available == needed {
        return Ok(());
    }
    let fewer = match available.checked_sub(BESIDE) {
        Some(fewer @ 1..) => format!(", or give ⟨threads⟩ {fewer}"),
        _ => String::new(),
    };
    Err(Error::invalid(format!(
        "the system lets this process start {available} more threads, and it needs {needed}; end other programs or raise the \
         limit (`ulimit -u`, a container's limit of processes){fewer}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_were_asked_for_are_counted_and_gone_again() {
        assert_eq!([available(0), available(1), available(40)], [0, 1, 40]);
        assert!(check().is_ok());
    }
}
