//! The options of writing an adapter in another format.

use crate::error::{Error, Result};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// PEFT's folders.
    Peft,
    /// diffusers' pytorch_lora_weights.safetensors.
    Diffusers,
    /// One .safetensors for kohya's scripts, AUTOMATIC1111 and ComfyUI.
    Kohya,
}

/// All options.
#[derive(Debug, Clone, Args)]
pub struct ConvertConfig {
    /// Adapter folder or file, in any format
    pub adapter: PathBuf,
    /// Format to write
    #[arg(long, value_enum)]
    pub to: OutputFormat,
    /// Folder (peft, diffusers) or file (kohya) to write
    #[arg(long, visible_alias = "output-dir")]
    pub output: PathBuf,
    /// Replace an adapter that is already there
    #[arg(long)]
    pub overwrite: bool,
    /// Write tensors in float16 (kohya)
    #[arg(long)]
    pub half: bool,
    /// Leave out what the run's `run.json` says of it: model, date, captions (kohya)
    #[arg(long)]
    pub no_metadata: bool,
    /// Use the text encoder module names of transformers before version 5 (peft)
    #[arg(long)]
    pub old_text_encoder_names: bool,
}

impl ConvertConfig {
    /// Refuses a name that says something else than what is written, and `--half` where it is not heeded.
    pub fn check(&self) -> Result<()> {
        let is_file = self.output.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
        let name = self.output.display();
        match self.to {
            OutputFormat::Kohya if !is_file && !self.output.is_dir() => Err(Error::Usage(format!(
                "⟨output⟩ {name}: a kohya file ends in .safetensors, without which web UIs do not list it; give {name}.safetensors"
            ))),
            OutputFormat::Peft | OutputFormat::Diffusers if is_file && !self.output.is_dir() => {
                Err(Error::Usage(format!("⟨output⟩ {name}: this format is a folder; leave out .safetensors")))
            }
            OutputFormat::Peft | OutputFormat::Diffusers if self.half => {
                Err(Error::Usage("⟨half⟩ is for ⟨to⟩ kohya; the other formats keep the dtype of the adapter".into()))
            }
            _ => Ok(()),
        }
    }
}
