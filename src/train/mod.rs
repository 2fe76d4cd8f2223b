//! Building blocks of a training loop.

pub mod memory_plan;
