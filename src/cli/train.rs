//! `lorabooth train`.

use super::reporter::duration;
use super::{Common, Reporter};
use crate::error::Result;
use crate::recipes::dreambooth_config::DreamBoothConfig;
use crate::recipes::dreambooth_lora;
use crate::recipes::shell_word;
use crate::train::interrupt::Interrupt;
use clap::Subcommand;
use serde_json::json;
use std::time::Instant;

/// What to train.
#[derive(Subcommand)]
pub enum TrainCommand {
    /// LoRA on UNet (and text encoder) from a folder of photos of one subject
    #[command(args_override_self = true)]
    Dreambooth(Box<DreamBoothConfig>),
}

/// What Stable Diffusion draws where no size is asked for, in pixels.
const NATIVE_RESOLUTION: u32 = 512;

/// Runs the command.
pub fn run(command: TrainCommand, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let TrainCommand::Dreambooth(config) = command;
    let device = common.device()?;
    let (interrupt, began) = (Interrupt::on_signals()?, Instant::now());
    let finished = dreambooth_lora::train(&config, device, common.seed, &interrupt, reporter)?;
    let folder = finished.output_dir.display();
    let loss = finished.final_loss.map_or(String::new(), |loss| format!(", mean loss of the last tenth {loss:.4}"));
    let in_all = match finished.resumed_at {
        0 => String::new(),
        _ => format!(" ({} in all)", finished.steps),
    };
    let done = match finished.steps - finished.resumed_at {
        0 if finished.steps == 0 => "no steps: the initial adapter".to_owned(),
        0 => format!("all {} steps were done before", finished.steps),
        1 => format!("trained 1 step{in_all} in {}{loss}", duration(began.elapsed().as_secs_f64())),
        steps => format!("trained {steps} steps{in_all} in {}{loss}", duration(began.elapsed().as_secs_f64())),
    };
    let model = &config.model;
    let mut command = format!("lorabooth generate --model {}", shell_word(&model.name));
    let described = model.config_folder.as_ref().map(|folder| folder.display().to_string());
    for (flag, value) in [
        ("--revision", &model.revision),
        ("--variant", &model.variant),
        ("--tokenizer-name", &model.tokenizer_name),
        ("--config-folder", &described),
        ("--prediction-type", &model.prediction_type),
    ] {
        if let Some(value) = value {
            command.push_str(&format!(" {flag} {}", shell_word(value)));
        }
    }
    if config.resolution != NATIVE_RESOLUTION {
        command.push_str(&format!(" --height {0} --width {0}", config.resolution));
    }
    let (lora, prompt) = (shell_word(&folder.to_string()), shell_word(&config.instance_prompt));
    command.push_str(&format!(" --lora {lora} --prompt {prompt} --output try.png"));
    let json = json!({
        "event": "finished", "steps": finished.steps, "loss": finished.final_loss, "path": folder.to_string(),
        "try": command,
    });
    reporter.summary(json, &format!("\n{done}; everything is in {folder}\ntry it:  {command}"));
    Ok(())
}
