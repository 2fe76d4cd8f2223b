//! `lorabooth tokenize`: a prompt's token ids.

use super::Reporter;
use crate::data::tokenizers::clip::ClipTokenizer;
use crate::error::{Error, Result};
use crate::models::stable_diffusion::ModelOptions;
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of the command.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// Model whose tokenizer is used: a diffusers folder, a hub id, or a folder that holds a tokenizer
    #[arg(long)]
    model: String,
    /// Prompts; each gives one line, a JSON list of ids
    #[arg(required_unless_present = "json_lines", value_name = "PROMPT")]
    prompts: Vec<String>,
    /// A file with a JSON string a line
    #[arg(long)]
    json_lines: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: TokenizeArgs, reporter: &mut Reporter) -> Result<()> {
    let model = Path::new(&args.model);
    let folder = model.join("tokenizer");
    let folder = match (folder.is_dir(), model.is_dir()) {
        (true, _) => folder,
        (_, true) => model.to_owned(),
        // A hub id, of which no weights are fetched; or a file, which is refused with what to give instead.
        _ => {
            let options = ModelOptions { configs_only: true, ..ModelOptions::default() };
            crate::recipes::open_model(&args.model, &options, reporter)?.tokenizer_folder()?
        }
    };
    let tokenizer = ClipTokenizer::from_folder(&folder)?;
    let mut prompts = args.prompts;
    if let Some(file) = args.json_lines {
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io("read", &file, e))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let prompt = serde_json::from_str(line)
                .map_err(|_| Error::file(&file, format!("line {} is no JSON string", number + 1)))?;
            prompts.push(prompt);
        }
    }
    for prompt in prompts {
        let ids = serde_json::json!(tokenizer.encode(&prompt)?);
        reporter.result(ids.clone(), &ids.to_string());
    }
    Ok(())
}
