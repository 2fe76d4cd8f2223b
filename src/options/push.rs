//! Options of pushing an adapter to the hub.

use super::secret::Secret;
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Characters of a licence's name.
const LONGEST_LICENSE: usize = 64;

/// All options.
#[derive(Debug, Clone, Args)]
pub struct PushConfig {
    /// Adapter folder or file, in any format
    pub adapter: PathBuf,
    /// Repository on the hub: OWNER/NAME; it is made where it is not there
    #[arg(long, value_name = "OWNER/NAME")]
    pub repo: String,
    /// Token of the hub that may write; better in HF_TOKEN, where other users of this machine do not see it
    #[arg(long)]
    pub token: Option<Secret>,
    /// Let everybody see the repository; it is private otherwise
    #[arg(long)]
    pub public: bool,
    /// Licence of the adapter, by the hub's name: creativeml-openrail-m, apache-2.0, mit, …
    #[arg(long)]
    pub license: Option<String>,
}

impl PushConfig {
    /// Refuses what cannot be meant.
    pub fn check(&self) -> Result<()> {
        let is_plain = |name: &String| {
            (1..=LONGEST_LICENSE).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '+'))
        };
        match self.license.as_ref().filter(|name| !is_plain(name)) {
            None => Ok(()),
            Some(name) => Err(Error::invalid(format!(
                "⟨license⟩ `{}` is not a name of a licence as the hub has them, such as creativeml-openrail-m, apache-2.0 or other",
                crate::plain_text::value(name)
            ))),
        }
    }
}
