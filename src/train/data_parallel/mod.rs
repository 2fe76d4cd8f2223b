//! Data parallel training: processes ("ranks") with the same adapter, each with batches of its own, that take the mean of their
//! gradients before each optimizer step.
//!
//! What is exchanged goes through c10d's groups; a thread of each rank tells the others by the store that it lives and how far it is, so
//! that one that dies or hangs is named, and so that ranks can wait for each other through phases of any length.

pub mod launch;
mod ranks;
mod reduction;
mod watch;

pub use ranks::Ranks;
pub use reduction::Reduction;

/// So many processes, in words.
pub fn processes(count: usize) -> String {
    format!("{count} process{}", if count == 1 { "" } else { "es" })
}
