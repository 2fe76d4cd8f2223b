//! `lorabooth evaluate`.

use super::{Common, Reporter};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::options::evaluate::EvaluateConfig;
use crate::recipes::evaluate;
use serde_json::json;

/// Runs the command.
pub fn run(config: &EvaluateConfig, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let evaluated =
        evaluate::evaluate(config, common.device(reporter)?, common.seed, &Interrupt::on_signals()?, reporter)?;
    let mut object = json!({ "event": "evaluation", "records": evaluated.records });
    let mut lines = vec![line("records", evaluated.records.to_string())];
    if let Some(numbers) = &evaluated.evaluation {
        // The share of right answers is of classes, or of texts that are the same.
        let right = if numbers.f1.is_some() { "accuracy" } else { "exact match" };
        for (key, name, value) in [
            ("loss", "loss", Some(numbers.loss)),
            ("perplexity", "perplexity", numbers.perplexity),
            ("accuracy", right, numbers.accuracy),
            ("f1", "macro F1", numbers.f1),
        ] {
            if let Some(value) = value {
                object[key] = json!(value);
                lines.push(line(name, format!("{value:.4}")));
            }
        }
    }
    reporter.result(object, &lines.join("\n"));
    Ok(())
}

fn line(name: &str, text: String) -> String {
    format!("{name:>13}  {text}")
}
