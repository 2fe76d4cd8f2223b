//! `lorabooth adapter`: look at an adapter, fold it into a model, convert it.

use super::Reporter;
use crate::adapters::{inspect, read_any, write_diffusers, write_kohya, write_peft, Merge, TextEncoderSpelling};
use crate::error::{Error, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Kind;

/// What to do with an adapter.
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Say what an adapter is: format, ranks, alphas, modules, sizes
    Inspect {
        /// Adapter folder or file, in any format
        adapter: PathBuf,
    },
    /// Fold adapters into a model: a whole pipeline folder
    #[command(args_override_self = true)]
    Merge(MergeArgs),
    /// Write an adapter in another format
    #[command(args_override_self = true)]
    Convert(ConvertArgs),
}

/// Flags of `merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Model folder in the diffusers layout
    #[arg(long)]
    model: PathBuf,
    /// Variant of the weight files, such as fp16
    #[arg(long)]
    variant: Option<String>,
    /// Adapter, with a strength after an equals sign; any number of times
    #[arg(long, required = true, value_name = "PATH[=SCALE]")]
    lora: Vec<String>,
    /// Folder for the merged pipeline
    #[arg(long)]
    output_dir: PathBuf,
}

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

/// Flags of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Adapter folder or file, in any format
    adapter: PathBuf,
    /// Format to write
    #[arg(long, value_enum)]
    to: OutputFormat,
    /// Folder (peft, diffusers) or file (kohya) to write
    #[arg(long)]
    output: PathBuf,
    /// Write tensors in float16 (kohya)
    #[arg(long)]
    half: bool,
    /// Name the text encoder's modules as transformers before version 5 did (peft)
    #[arg(long)]
    old_text_encoder_names: bool,
}

/// `PATH` or `PATH=SCALE`. A path that exists is never taken apart.
pub fn path_and_scale(text: &str) -> Result<(PathBuf, f64)> {
    if Path::new(text).exists() {
        return Ok((PathBuf::from(text), 1.0));
    }
    match text.rsplit_once('=') {
        None => Ok((PathBuf::from(text), 1.0)),
        Some((path, scale)) => match scale.parse::<f64>() {
            Ok(scale) if scale.is_finite() => Ok((PathBuf::from(path), scale)),
            _ => Err(Error::invalid(format!("the strength `{scale}` of {path} is no number"))),
        },
    }
}

/// Runs the command.
pub fn run(command: AdapterCommand, reporter: &mut Reporter) -> Result<()> {
    match command {
        AdapterCommand::Inspect { adapter } => show(&adapter, reporter),
        AdapterCommand::Merge(args) => merge(&args, reporter),
        AdapterCommand::Convert(args) => convert(&args, reporter),
    }
}

fn show(path: &Path, reporter: &mut Reporter) -> Result<()> {
    let summary = inspect::inspect(path)?;
    let mut lines = vec![format!("{:>13}  {}", "format", summary.format)];
    for (name, part) in &summary.parts {
        let list = |numbers: &[f64]| numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let ranks: Vec<String> = part.ranks.iter().map(i64::to_string).collect();
        let modules: Vec<String> = part.modules.iter().map(|(name, count)| format!("{count} {name}")).collect();
        lines.push(format!(
            "{:>13}  {} parameters, {:.2} MB, {}",
            name.replace('_', " "),
            part.parameters,
            part.bytes as f64 / 1e6,
            part.dtypes.join(", ")
        ));
        lines.push(format!(
            "{:>13}  rank {}, alpha {}, strength {}{}",
            "",
            ranks.join(", "),
            list(&part.alphas),
            list(&part.scalings),
            if part.use_dora { ", DoRA" } else { "" }
        ));
        lines.push(format!("{:>13}  {}", "modules", modules.join(", ")));
        if let Some(model) = &part.base_model {
            lines.push(format!("{:>13}  {model}", "trained on"));
        }
        for (block, norm) in &part.change_norms {
            lines.push(format!("{:>13}  {norm:<10.4} {block}", "change"));
        }
    }
    let json = serde_json::to_value(&summary).map_err(|e| Error::invalid(e.to_string()))?;
    reporter.result(json, &lines.join("\n"));
    Ok(())
}

fn merge(args: &MergeArgs, reporter: &mut Reporter) -> Result<()> {
    let mut adapters = Vec::new();
    for text in &args.lora {
        let (path, scale) = path_and_scale(text)?;
        adapters.push((read_any(&path, None)?, scale));
    }
    Merge { model: &args.model, variant: args.variant.as_deref(), adapters: &adapters }.write(&args.output_dir)?;
    let text = format!("the merged pipeline is in {}", args.output_dir.display());
    reporter.result(json!({ "event": "wrote", "path": args.output_dir.display().to_string() }), &text);
    Ok(())
}

fn convert(args: &ConvertArgs, reporter: &mut Reporter) -> Result<()> {
    let set = read_any(&args.adapter, None)?;
    let path = match args.to {
        OutputFormat::Peft => {
            let spelling = match args.old_text_encoder_names {
                true => TextEncoderSpelling::BeforeTransformers5,
                false => TextEncoderSpelling::Today,
            };
            write_peft(&args.output, &set, spelling)?;
            args.output.clone()
        }
        OutputFormat::Diffusers => write_diffusers(&args.output, &set)?,
        OutputFormat::Kohya => {
            let kind = if args.half { Kind::Half } else { Kind::Float };
            write_kohya(&args.output, &set, kind, &BTreeMap::new())?;
            args.output.clone()
        }
    };
    reporter
        .result(json!({ "event": "wrote", "path": path.display().to_string() }), &format!("wrote {}", path.display()));
    Ok(())
}
