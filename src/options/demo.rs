//! The options of the demo.

use clap::Args;
use std::path::PathBuf;

/// All options.
#[derive(Debug, Clone, Args)]
pub struct DemoConfig {
    /// Folder for everything that the demo writes
    #[arg(long, visible_alias = "output", default_value = "lorabooth-demo")]
    pub output_dir: PathBuf,
    /// Replace an earlier demo that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Optimizer steps
    #[arg(long, visible_alias = "steps", value_name = "STEPS", default_value_t = 400)]
    pub max_train_steps: u64,
    /// Train without class images, to see what they are for
    #[arg(long)]
    pub no_prior_preservation: bool,
}
