//! `lorabooth generate`: images from a prompt, with any number of adapters.

use super::{Common, Reporter};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::options::generate::GenerateConfig;
use crate::recipes::generate;

/// Runs the command.
pub fn run(config: &GenerateConfig, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let (device, interrupt) = (common.device(reporter)?, Interrupt::on_signals()?);
    generate::generate(config, device, common.seed, &interrupt, reporter).map(drop)
}
