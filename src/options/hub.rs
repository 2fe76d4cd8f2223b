//! Options of a training whose adapter goes to the hub at its end.

use super::secret::Secret;
use clap::Args;
use serde::Serialize;

/// Title of these options in a command's help: a page pushes by other means.
pub const HEADING: &str = "Hub";

/// Options of pushing at the end of a run.
#[derive(Debug, Clone, Args, Serialize)]
pub struct HubArgs {
    /// Upload the adapter to the Hugging Face hub at the end, to a private repository where there is none yet
    #[arg(long, help_heading = HEADING)]
    pub push_to_hub: bool,
    /// Repository to upload to, NAME or OWNER/NAME; by default the output folder's name
    #[arg(long, value_name = "OWNER/NAME", help_heading = HEADING)]
    pub hub_model_id: Option<String>,
    /// Token of the hub that may write; better in HF_TOKEN, where other users of this machine do not see it
    #[arg(long, value_name = "TOKEN", help_heading = HEADING)]
    #[serde(skip)]
    pub hub_token: Option<Secret>,
}
