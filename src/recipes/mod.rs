//! Whole jobs: a configuration and one explicit loop each.

pub mod dreambooth_config;
pub mod dreambooth_lora;
mod dreambooth_outputs;
mod dreambooth_phases;
pub mod dreambooth_run;
pub mod observer;
