//! `lorabooth tokenize`: a prompt's token ids.

use super::Reporter;
use crate::data::tokenizers::clip::ClipTokenizer;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::models::language::LanguageModelFiles;
use crate::models::stable_diffusion::ModelOptions;
use crate::recipes::language::base::WantedModel;
use crate::recipes::prompt_checks::{warn_of_doubled_start, warn_of_prompts, NamedPrompt};
use crate::recipes::training::observer::Observer;
use crate::regular_file::{self, FileKind};
use crate::weights::gguf::is_gguf;
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of the command.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// Model whose tokenizer is used: a Stable Diffusion folder or hub id, a language model's folder or .gguf file, or a folder
    /// with a tokenizer
    #[arg(long)]
    model: String,
    /// Prompts; each is printed as one line, a JSON list of ids
    #[arg(required_unless_present = "json_lines", value_name = "PROMPT")]
    prompts: Vec<String>,
    /// File with one JSON string a line
    #[arg(long)]
    json_lines: Option<PathBuf>,
}

/// Prompts of a language model that are looked through for what to warn of.
const MOST_WARNINGS: usize = 5;

/// A tokenizer of either kind of model.
enum ModelTokenizer {
    /// Of Stable Diffusion: padded and cut as for training.
    Clip(ClipTokenizer),
    /// Of a language model: a text's own length.
    Language(LanguageTokenizer),
}

impl ModelTokenizer {
    fn open(name: &str, reporter: &mut Reporter) -> Result<Self> {
        let model = Path::new(name);
        let folder = model.join("tokenizer");
        if folder.is_dir() {
            return Ok(Self::Clip(ClipTokenizer::from_folder(&folder)?));
        }
        if is_language_model(model) {
            return Ok(Self::Language(WantedModel::new(model, None).open(reporter)?.tokenizer));
        }
        if model.is_dir() {
            return Ok(Self::Clip(ClipTokenizer::from_folder(model)?));
        }
        // A hub id, of which no weights are fetched; or a file, which is refused with what to give instead.
        let options = ModelOptions { configs_only: true, ..ModelOptions::default() };
        let folder = crate::recipes::open_model(name, &options, reporter)?.tokenizer_folder()?;
        Ok(Self::Clip(ClipTokenizer::from_folder(&folder)?))
    }

    /// Warns of what the ids do not show.
    fn warn_of(&self, prompts: &[String], observer: &mut dyn Observer) -> Result<()> {
        let places = (1..).map(|number| format!("prompt {number}"));
        match self {
            Self::Clip(tokenizer) => {
                let named: Vec<_> = places.zip(prompts).map(|(place, text)| NamedPrompt::listed(place, text)).collect();
                warn_of_prompts(tokenizer, &named, observer)
            }
            Self::Language(tokenizer) => places
                .zip(prompts)
                .take(MOST_WARNINGS)
                .try_for_each(|(place, text)| warn_of_doubled_start(&place, text, tokenizer, observer)),
        }
    }

    fn ids(&self, prompt: &str) -> Result<Vec<i64>> {
        match self {
            Self::Clip(tokenizer) => tokenizer.encode(prompt),
            Self::Language(tokenizer) => Ok(tokenizer.encode(prompt, usize::MAX)?.ids),
        }
    }
}

/// Whether a language model is at `path`: a GGUF file, or a folder with a configuration of one.
fn is_language_model(path: &Path) -> bool {
    is_gguf(path) || LanguageModelFiles::open(path).is_ok()
}

/// Runs the command.
pub fn run(args: TokenizeArgs, reporter: &mut Reporter) -> Result<()> {
    let tokenizer = ModelTokenizer::open(&args.model, reporter)?;
    let mut prompts = args.prompts;
    if let Some(file) = args.json_lines {
        let text = regular_file::read_text(&file, FileKind::TEXT)?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let prompt = serde_json::from_str(line)
                .map_err(|_| Error::file(&file, format!("line {} is not a JSON string", number + 1)))?;
            prompts.push(prompt);
        }
    }
    for prompt in &prompts {
        let ids = serde_json::json!(tokenizer.ids(prompt)?);
        reporter.data(&ids.to_string());
    }
    tokenizer.warn_of(&prompts, reporter)
}
