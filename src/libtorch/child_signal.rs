//! Signals to processes that this one started: the standard library can only kill them.

use std::process::Child;

/// Sends `signal` to `child`, which was not waited for yet; nothing where it has ended.
pub fn send(child: &Child, signal: i32) {
    let Ok(pid) = i32::try_from(child.id()) else { return };
    // SAFETY: no memory is touched; the id is the child's until it is waited for.
    unsafe { libc::kill(pid, signal) };
}
