//! `lorabooth adapter`: look at an adapter, fold it into a model, convert it.

use super::Reporter;
use crate::adapters::diffusers_file::FILE_NAME;
use crate::adapters::formats::{check_family, language_adapter_at};
use crate::adapters::inspect::{Inspected, PromptSummary, Summary};
use crate::adapters::model_folder::{self, into_folder, Existing};
use crate::adapters::peft_folder::{peft_type, CONFIG_FILE, MODEL_FILE};
use crate::adapters::{
    inspect, read_any, with_commas, write_diffusers, write_kohya, write_peft, AdapterSet, Part, TextEncoderSpelling,
};
use crate::error::{Error, Result};
use crate::options::adapter_argument::path_and_scale;
use crate::options::model::ModelArgs;
use crate::plain_text::value;
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::given_adapters::GivenAdapters;
use crate::recipes::merge;
use crate::recipes::training::observer::{Event, Observer};
use crate::train::folder_lock::FolderLock;
use crate::train::interrupt::Interrupt;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Kind;

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
    Merge(MergeArgs),
    /// Convert an adapter to another format
    #[command(args_override_self = true)]
    Convert(ConvertArgs),
}

/// Flags of `merge`.
#[derive(Debug, Args)]
#[command(mut_arg("model", |arg| arg.help("Model: a diffusers folder, a .safetensors checkpoint or a hub id; a language model's folder, .gguf file or hub id")))]
pub struct MergeArgs {
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times
    #[arg(long, required = true, visible_alias = "adapter", value_name = "PATH[=SCALE]")]
    lora: Vec<String>,
    /// Folder for the merged model
    #[arg(long, visible_alias = "output")]
    output_dir: PathBuf,
    /// Replace a model that is already there
    #[arg(long)]
    overwrite: bool,
    /// Dtype of the merged weights; by default that of the model's files
    #[arg(long, value_enum)]
    dtype: Option<WrittenDtype>,
    // Last: its heading holds for what follows.
    /// The model to fold into.
    #[command(flatten)]
    model: ModelArgs,
}

/// A dtype of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WrittenDtype {
    /// float32.
    Fp32,
    /// float16.
    Fp16,
    /// bfloat16.
    Bf16,
}

impl From<WrittenDtype> for Kind {
    fn from(dtype: WrittenDtype) -> Self {
        match dtype {
            WrittenDtype::Fp32 => Self::Float,
            WrittenDtype::Fp16 => Self::Half,
            WrittenDtype::Bf16 => Self::BFloat16,
        }
    }
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
    #[arg(long, visible_alias = "output-dir")]
    output: PathBuf,
    /// Replace an adapter that is already there
    #[arg(long)]
    overwrite: bool,
    /// Write tensors in float16 (kohya)
    #[arg(long)]
    half: bool,
    /// Use the text encoder module names of transformers before version 5 (peft)
    #[arg(long)]
    old_text_encoder_names: bool,
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

/// Refuses a name that says something else than what is written, and `--half` where it is not heeded.
fn check_name(args: &ConvertArgs) -> Result<()> {
    let is_file = args.output.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
    let name = args.output.display();
    match args.to {
        OutputFormat::Kohya if !is_file && !args.output.is_dir() => Err(Error::Usage(format!(
            "--output {name}: a kohya file ends in .safetensors, without which web UIs do not list it; give {name}.safetensors"
        ))),
        OutputFormat::Peft | OutputFormat::Diffusers if is_file && !args.output.is_dir() => {
            Err(Error::Usage(format!("--output {name}: this format is a folder; leave out .safetensors")))
        }
        OutputFormat::Peft | OutputFormat::Diffusers if args.half => {
            Err(Error::Usage("--half is for --to kohya; the other formats keep the dtype of the adapter".into()))
        }
        _ => Ok(()),
    }
}

fn merge(args: &MergeArgs, reporter: &mut Reporter) -> Result<()> {
    let (kind, interrupt) = (args.dtype.map(Kind::from), Interrupt::on_signals()?);
    let _watch = interrupt.watch();
    let given = args.lora.iter().map(|text| path_and_scale("--lora", text)).collect::<Result<Vec<_>>>()?;
    let existing = Existing::of(args.overwrite);
    model_folder::check(&args.output_dir, existing)?;
    FolderLock::check_free(&args.output_dir)?;
    args.output_dir.parent().map_or(Ok(()), FolderLock::check_free)?;
    let out = (args.output_dir.as_path(), existing);
    let mut of_language_model = false;
    for (path, _) in &given {
        of_language_model |= language_adapter_at(path)?.is_some();
    }
    match of_language_model {
        true => {
            args.model.check_for_language_model()?;
            let wanted = WantedModel::new(Path::new(&args.model.name), args.model.revision.as_deref());
            wanted.check_path()?;
            let model = WantedModel { interrupt: Some(&interrupt), ..wanted };
            let adapters = GivenAdapters::read(&args.lora)?;
            merge::language_model::write(&model, &adapters, kind, out, &interrupt, reporter)
        }
        false => {
            args.model.check_paths()?;
            let files =
                crate::recipes::open_model_unless(&interrupt, &args.model.name, &args.model.options(), reporter)?;
            let mut adapters = Vec::new();
            for (path, scale) in given {
                adapters.push((crate::recipes::read_adapter(&path, &files, reporter)?, scale));
            }
            merge::pipeline::write(&files, &args.model, &adapters, kind, out, &interrupt, reporter)
        }
    }
    .map_err(|error| match error {
        Error::Interrupted(what) if what.is_empty() => Error::Interrupted("nothing was written".into()),
        other => other,
    })?;
    let text = format!("the merged model is in {}", args.output_dir.display());
    reporter.result(json!({ "event": "wrote", "path": args.output_dir.display().to_string() }), &text);
    Ok(())
}

/// Files of PEFT's in `folder` for parts that `set` has no adapter for.
fn parts_of_another(folder: &Path, set: &AdapterSet) -> impl Iterator<Item = PathBuf> {
    let others: Vec<Part> = Part::ALL.into_iter().filter(|part| set.part(*part).is_none()).collect();
    let folder = folder.to_owned();
    let files = others.into_iter().flat_map(move |part| {
        let part = folder.join(part.name());
        [CONFIG_FILE, MODEL_FILE].map(|file| part.join(file))
    });
    files.filter(|file| std::fs::symlink_metadata(file).is_ok())
}

fn convert(args: &ConvertArgs, reporter: &mut Reporter) -> Result<()> {
    if let Some(folder) = language_adapter_at(&args.adapter)? {
        let method = peft_type(folder)?;
        return Err(Error::file(
            &args.adapter,
            format!("is a language model's adapter ({method}), whose only format is PEFT's folder"),
        ));
    }
    let set = read_any(&args.adapter, None)?;
    check_family(&set, &args.adapter)?;
    set.warnings.iter().for_each(|text| reporter.on(Event::Warning { text: text.clone() }));
    check_name(args)?;
    let path = match args.to {
        OutputFormat::Diffusers => args.output.join(FILE_NAME),
        OutputFormat::Peft | OutputFormat::Kohya => args.output.clone(),
    };
    let taken = match args.to {
        OutputFormat::Peft => set
            .parts()
            .map(|(part, _)| path.join(part.name()))
            .chain(parts_of_another(&path, &set))
            .find(|folder| std::fs::symlink_metadata(folder).is_ok()),
        OutputFormat::Diffusers | OutputFormat::Kohya => {
            Some(path.clone()).filter(|path| std::fs::symlink_metadata(path).is_ok())
        }
    };
    if let Some(taken) = taken.filter(|_| !args.overwrite) {
        return Err(Error::is_there(taken, "--output"));
    }
    let folder = if args.to == OutputFormat::Kohya { path.parent().unwrap_or(&path) } else { &args.output };
    FolderLock::check_free(folder)?;
    let made = Some(&args.output).filter(|folder| !folder.exists());
    match args.to {
        OutputFormat::Peft => {
            let spelling = match args.old_text_encoder_names {
                true => TextEncoderSpelling::BeforeTransformers5,
                false => TextEncoderSpelling::Today,
            };
            // Both parts or none; a folder that is there may hold anything else too.
            match path.exists() {
                true => {
                    write_peft(&path, &set, spelling)?;
                    // The adapters of one folder are one: what stayed of another would be read with the new one.
                    let stale: Vec<PathBuf> = parts_of_another(&path, &set).collect();
                    stale
                        .iter()
                        .try_for_each(|file| std::fs::remove_file(file).map_err(|e| Error::io("remove", file, e)))?;
                }
                false => into_folder(&path, Existing::Refuse, |folder| write_peft(folder, &set, spelling))?,
            }
        }
        OutputFormat::Diffusers => {
            // Takes away the folder again that was made for nothing.
            let forget = |_: &Error| drop(made.map(std::fs::remove_dir));
            write_diffusers(&args.output, &set).inspect_err(forget)?;
        }
        OutputFormat::Kohya => {
            let kind = if args.half { Kind::Half } else { Kind::Float };
            write_kohya(&args.output, &set, kind, &BTreeMap::new())?;
        }
    }
    if let Some(text) = set.left_out_warning(&path).filter(|_| args.to != OutputFormat::Peft) {
        reporter.on(Event::Warning { text });
    }
    if args.to == OutputFormat::Kohya && set.uses_dora() {
        let file = path.display();
        reporter.on(Event::Warning {
            text: format!(
                "{file} is DoRA: diffusers reads it without its norms, as another adapter; give it PEFT's folders"
            ),
        });
    }
    reporter
        .result(json!({ "event": "wrote", "path": path.display().to_string() }), &format!("wrote {}", path.display()));
    Ok(())
}
