//! `lorabooth complete`: continues, answers or classifies a text with a language model and any number of adapters.

use super::{Common, Reporter};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::complete::CompleteConfig;
use crate::plain_text;
use crate::recipes::complete::{Completion, TextModel};
use serde_json::{json, Map, Value};
use std::io::Read;

/// A longer text on standard input is no prompt.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Runs the command.
pub fn run(mut config: CompleteConfig, common: &Common, reporter: &mut Reporter) -> Result<()> {
    // What is written is on the screen already, so that Ctrl-C may end the process at once.
    let (device, interrupt) = (common.device(reporter)?, Interrupt::new());
    reporter.result_is_for_programs();
    let mut model = TextModel::open(&config, device, common.seed, &interrupt, reporter)?;
    if config.prompt == "-" {
        config.prompt = text_of_standard_input()?;
    }
    match model.complete(&config, common.seed, &interrupt, reporter)? {
        Completion::Text { text, tokens, tokens_per_s } => {
            reporter.end_text(json!({ "text": text, "tokens": tokens, "tokens_per_s": tokens_per_s }));
        }
        Completion::Classes(ranked) => show_classes(&ranked, reporter),
    }
    Ok(())
}

fn text_of_standard_input() -> Result<String> {
    // Standard input can be without end.
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_PROMPT_BYTES + 1).read_to_string(&mut text);
    match read.map_err(|error| Error::io("read", "standard input", error))? as u64 > MAX_PROMPT_BYTES {
        true => {
            let most = MAX_PROMPT_BYTES >> 20;
            Err(Error::invalid(format!(
                "standard input holds more than {most} MB, which is too long for a prompt; shorten it"
            )))
        }
        false => Ok(text),
    }
}

/// Tells how likely each class is, the likeliest first.
fn show_classes(ranked: &[(String, f64)], reporter: &mut Reporter) {
    let names: Vec<String> = ranked.iter().map(|(class, _)| plain_text::value(class)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> =
        names.iter().zip(ranked).map(|(name, (_, share))| format!("{name:<width$}  {share:.4}")).collect();
    let shares: Map<String, Value> = ranked.iter().map(|(class, share)| (class.clone(), json!(share))).collect();
    let Some((class, probability)) = ranked.first() else { return };
    let json = json!({ "class": class, "probability": probability, "probabilities": shares });
    reporter.result(json, &lines.join("\n"));
}
