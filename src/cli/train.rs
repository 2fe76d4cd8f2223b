//! `lorabooth train`.

use super::{Common, Reporter};
use crate::error::Result;
use crate::recipes::dreambooth_config::DreamBoothConfig;
use crate::recipes::dreambooth_lora;
use crate::train::interrupt::Interrupt;
use clap::Subcommand;

/// What to train.
#[derive(Subcommand)]
pub enum TrainCommand {
    /// LoRA on UNet (and text encoder) from a folder of photos of one subject
    #[command(args_override_self = true)]
    Dreambooth(Box<DreamBoothConfig>),
}

/// Runs the command.
pub fn run(command: TrainCommand, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let TrainCommand::Dreambooth(config) = command;
    let device = common.device()?;
    let interrupt = Interrupt::on_signals()?;
    let finished = dreambooth_lora::train(&config, device, common.seed, &interrupt, reporter)?;
    let folder = finished.output_dir.display();
    let loss = finished.final_loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    reporter.say(&format!("\ntrained {} steps{loss}; everything is in {folder}", finished.steps));
    reporter.say(&format!(
        "try it:  lorabooth generate --model {} --lora {} --prompt {} --output try.png",
        quoted(&config.model.name),
        quoted(&folder.to_string()),
        quoted(&config.instance_prompt)
    ));
    Ok(())
}

/// `text` as one word of a shell's command line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
