//! `lorabooth adapter`: look at an adapter, fold it into a model, convert it, push it to the hub.

use super::Reporter;
use crate::adapters::inspect::{Inspected, PromptSummary, Summary};
use crate::adapters::{inspect, with_commas};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::convert::ConvertConfig;
use crate::options::merge::MergeConfig;
use crate::options::push::PushConfig;
use crate::plain_text::value;
use crate::recipes::convert::convert;
use crate::recipes::merge::adapters::merge;
use crate::recipes::push;
use crate::recipes::training::observer::{Event, Observer};
use crate::weights::hub::Pushed;
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What to do with an adapter.
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Show an adapter's format, ranks, alphas, modules and sizes
    Inspect {
        /// Adapter folder or file, in any format
        adapter: PathBuf,
    },
    /// Merge adapters into a model and save it in a folder of its own
    #[command(args_override_self = true)]
    Merge(MergeConfig),
    /// Convert an adapter to another format
    #[command(args_override_self = true)]
    Convert(ConvertConfig),
    /// Upload an adapter to the Hugging Face hub, with a model card
    #[command(args_override_self = true)]
    Push(PushConfig),
}

/// Runs the command.
pub fn run(command: AdapterCommand, reporter: &mut Reporter) -> Result<()> {
    let (folder_or_file, text) = match command {
        AdapterCommand::Inspect { adapter } => return show(&adapter, reporter),
        AdapterCommand::Merge(config) => {
            let folder = merge(&config, &Interrupt::on_signals()?, reporter)?;
            let text = format!("the merged model is in {}", folder.display());
            (folder, text)
        }
        AdapterCommand::Push(config) => {
            let hub = push::hub(config.token.as_ref())?;
            let pushed = push::push(&config, &hub, &Interrupt::on_signals()?, reporter)?;
            report(&pushed, reporter);
            return Ok(());
        }
        AdapterCommand::Convert(config) => {
            let path = convert(&config, &Interrupt::new(), reporter)?;
            let text = format!("wrote {}", path.display());
            (path, text)
        }
    };
    reporter.result(json!({ "event": "wrote", "path": folder_or_file.display().to_string() }), &text);
    Ok(())
}

/// Tells where an adapter was pushed to.
pub fn report(pushed: &Pushed, reporter: &mut Reporter) {
    let (address, commit) = (&pushed.address, &pushed.commit);
    let json = json!({ "event": "pushed", "address": address, "commit": commit });
    reporter.result(json, &format!("the adapter is at {address}"));
}

fn show(path: &Path, reporter: &mut Reporter) -> Result<()> {
    let inspected = inspect::inspect(path)?;
    let lines = match &inspected {
        Inspected::Adapters(summary) => {
            summary.warnings.iter().for_each(|text| reporter.on(Event::Warning { text: text.clone() }));
            adapter_lines(summary)
        }
        Inspected::Prompt(summary) => prompt_lines(summary),
    };
    let json = serde_json::to_value(&inspected).map_err(|e| Error::invalid(e.to_string()))?;
    reporter.result(json, &lines.join("\n"));
    Ok(())
}

fn prompt_lines(prompt: &PromptSummary) -> Vec<String> {
    let line = |name: &str, text: String| format!("{name:>13}  {}", value(&text));
    let (size, dtypes) = (prompt.bytes as f64 / 1e6, prompt.dtypes.join(", "));
    let mut lines = vec![
        line("format", prompt.format.clone()),
        line("prompt", format!("{}, {} virtual tokens", prompt.method, prompt.num_virtual_tokens)),
        line("", format!("{} parameters, {size:.2} MB, {dtypes}", with_commas(prompt.parameters))),
        line("", format!("shape {:?}, norm {:.4}", prompt.shape, prompt.norm)),
    ];
    lines.extend(prompt.task_type.iter().map(|task| line("task", task.clone())));
    lines.extend(prompt.base_model.iter().map(|model| line("trained on", model.clone())));
    if prompt.whole_tensors > 0 {
        lines.push(line("also trained", format!("{} biases and whole weights", prompt.whole_tensors)));
    }
    if prompt.has_encoder {
        lines.push(line("encoder", "is saved with it, so that training can continue".to_owned()));
    }
    lines
}

fn adapter_lines(summary: &Summary) -> Vec<String> {
    let mut lines = vec![format!("{:>13}  {}", "format", summary.format)];
    lines.extend(summary.spelling.iter().map(|keys| format!("{:>13}  {keys}", "keys")));
    lines.extend(summary.family.iter().map(|family| format!("{:>13}  {family}", "made for")));
    for (name, part) in &summary.parts {
        let list = |numbers: &[f64]| numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let ranks: Vec<String> = part.ranks.iter().map(i64::to_string).collect();
        let modules: Vec<String> =
            part.modules.iter().map(|(name, count)| format!("{count} {}", value(name))).collect();
        lines.push(format!(
            "{:>13}  {} parameters, {:.2} MB, {}",
            value(&name.replace('_', " ")),
            with_commas(part.parameters),
            part.bytes as f64 / 1e6,
            part.dtypes.join(", ")
        ));
        lines.push(format!(
            "{:>13}  rank {}, alpha {}, strength {}{}",
            "",
            ranks.join(", "),
            list(&part.alphas),
            list(&part.scalings),
            match (part.use_dora, part.column_magnitudes) {
                (true, true) => ", DoRA with magnitudes by input column",
                (true, false) => ", DoRA",
                (false, _) => "",
            }
        ));
        lines.push(format!("{:>13}  {}", "modules", modules.join(", ")));
        if let Some(task) = &part.task_type {
            lines.push(format!("{:>13}  {}", "task", value(task)));
        }
        if let Some(model) = &part.base_model {
            lines.push(format!("{:>13}  {}", "trained on", value(model)));
        }
        if part.whole_tensors > 0 {
            lines.push(format!("{:>13}  {} biases and whole weights", "also trained", part.whole_tensors));
        }
        let mut change_norms: Vec<(&String, &f64)> = part.change_norms.iter().collect();
        change_norms.sort_by_key(|(block, _)| by_number(block));
        for (i, (block, norm)) in change_norms.into_iter().enumerate() {
            let (name, what) = if i == 0 { ("change", ": norm of what it adds to the weights") } else { ("", "") };
            lines.push(format!("{name:>13}  {norm:<10.4} {}{what}", value(block)));
        }
    }
    lines
}

/// Orders paths by the numbers in them: block 2 before block 10.
fn by_number(path: &str) -> Vec<(u64, &str)> {
    path.split('.').map(|name| name.parse().map_or((0, name), |number| (number, ""))).collect()
}
