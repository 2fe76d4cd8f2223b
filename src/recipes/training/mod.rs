//! What every training has, whatever it trains: the loop, the state of its run, and what the run says and leaves.

pub mod adaptation;
pub mod control;
mod divergence;
pub mod memory_advice;
pub mod observer;
pub(super) mod output_name;
mod rehearsal;
pub mod restart;
mod resumed_options;
pub mod run;
mod run_output;
mod run_record;
mod shared_state;
pub mod training_loop;
pub mod utc_time;
pub(super) mod watched;
