//! What a language model, with or without adapters, makes of records that it has not learned.

use super::dreambooth::config::{optional_path_text, path_text};
use super::language::base::{LanguageBase, WantedModel};
use super::language::data_args::{LanguageDataArgs, TaskChoice};
use super::language::evaluation::{check_positions, Evaluation, Evaluator};
use super::language::given_adapters::GivenAdapters;
use super::option_checks::is_file;
use super::storage_args::StorageArgs;
use super::training::observer::{Event, Observer};
use super::training_args::MixedPrecision;
use crate::error::{Error, Result};
use crate::models::language::HeadOptions;
use crate::regular_file::{self, FileKind};
use crate::train::interrupt::Interrupt;
use crate::weights::Placement;
use crate::whole_file::WholeFile;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tch::Device;

/// What to do where memory is full.
const EVALUATE_IN_LESS: &str = "turn on --load-in-8bit or --offload cpu, or lower --max-seq-length";

/// All options.
#[derive(Debug, Clone, Args, Serialize)]
pub struct EvaluateConfig {
    /// Model: a folder in the transformers layout, a .gguf file of the LLaMA family, or a hub id
    #[arg(long, visible_alias = "model-name-or-path", help_heading = "Model")]
    #[serde(serialize_with = "path_text")]
    pub model: PathBuf,
    /// Branch, tag or commit of a hub id
    #[arg(long, help_heading = "Model")]
    pub revision: Option<String>,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times, at most one of them a prompt
    #[arg(long, visible_alias = "lora", value_name = "PATH[=SCALE]", action = clap::ArgAction::Append, help_heading = "Model")]
    pub adapter: Vec<String>,
    /// What the model does with records.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: LanguageDataArgs,
    /// Records to evaluate on: a JSONL, CSV, TSV or Parquet file
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "path_text")]
    pub validation_file: PathBuf,
    /// CSV file for the model's answers, next to the expected ones where --label-column is given
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    #[serde(serialize_with = "optional_path_text")]
    pub output: Option<PathBuf>,
    /// Replace a file that is already there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Dtype of the computation
    #[arg(long, visible_alias = "dtype", value_enum, default_value_t = MixedPrecision::Auto, help_heading = "Model")]
    pub mixed_precision: MixedPrecision,
    /// How the model's weights are kept.
    #[command(flatten)]
    #[serde(flatten)]
    pub weights: StorageArgs,
}

/// What was measured.
#[derive(Debug)]
pub struct Evaluated {
    /// Records that it was measured on.
    pub records: usize,
    /// The numbers; none where nothing tells what is right.
    pub evaluation: Option<Evaluation>,
}

/// Evaluates on `device` as `config` says, until `interrupt` is set; `seed` draws a new head where the model has none for its classes.
pub fn evaluate(
    config: &EvaluateConfig,
    device: Device,
    seed: i64,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Evaluated> {
    let _watch = interrupt.watch();
    config.weights.check()?;
    config.data.check()?;
    is_file("--validation-file", &config.validation_file)?;
    WantedModel::new(&config.model, None).check_path()?;
    // Without labels a text can be its own, or is answered.
    let answers_alone = config.data.label_column.is_none() && config.output.is_some();
    if !answers_alone {
        config
            .data
            .check_labels()
            .map_err(|error| Error::Usage(format!("{error}; or give --output FILE.csv for the answers alone")))?;
    }
    let adapters = GivenAdapters::read(&config.adapter)?;
    check_tasks(config, &adapters)?;
    adapters.folders().iter().for_each(|folder| warn_of_other_texts(config, folder, observer));
    let wanted =
        WantedModel { interrupt: Some(interrupt), ..WantedModel::new(&config.model, config.revision.as_deref()) };
    let base = wanted.open(observer)?;
    let ends = base.ends()?;
    let LanguageBase { mut files, tokenizer } = base;
    files.store_in(config.weights.storage());
    config.data.task.check(&files)?;
    adapters.check_for(&files)?;
    let classes = match config.data.task {
        TaskChoice::SeqCls => adapters.classes(&files)?.ok_or_else(|| adapters.without_classes(&files))?,
        TaskChoice::CausalLm | TaskChoice::Seq2SeqLm => Vec::new(),
    };
    // A head that no adapter brings must be in the model's files.
    let labels = match config.data.task {
        TaskChoice::SeqCls => adapters.head_rows(&files)?,
        TaskChoice::CausalLm | TaskChoice::Seq2SeqLm => None,
    };
    let (options, records) = (config.data.options()?, &config.validation_file);
    let data = match answers_alone {
        true => options.unlabelled(records, &tokenizer, classes)?,
        false => options.evaluation(records, &tokenizer, classes)?,
    };
    data.warnings().iter().for_each(|text| observer.warning(text.clone()));
    check_positions(&files.outline()?, adapters.prompt(), data.longest(), observer)?;
    config.output.as_deref().map(|path| check_output(path, config)).transpose()?;
    let kind = config.mixed_precision.on(device).compute_kind();
    super::report_model(&config.model.display().to_string(), Some(files.architecture().model_type), observer);
    super::report_device(device, kind, observer)?;
    config.weights.report(device, observer);
    config.adapter.iter().for_each(|text| super::report_given_adapter(text, observer));
    let loaded = files.load(Placement { device, kind }, HeadOptions { labels, seed })?;
    tokenizer.check_fits(loaded.model.shape().vocabulary)?;
    let prompt = adapters.put_on(&loaded, device)?;
    let evaluator = Evaluator {
        model: &loaded.model,
        prompt: prompt.as_ref(),
        tokenizer: &tokenizer,
        device,
        max_new_tokens: config.data.eval_max_new_tokens,
        ends: &ends,
    };
    let measured = match answers_alone {
        true => evaluator.answers(&data, interrupt, observer).map(|answers| (None, answers)),
        false => {
            evaluator.evaluate(&data, 0, interrupt, observer).map(|(evaluation, answers)| (Some(evaluation), answers))
        }
    };
    let (evaluation, answers) = measured.map_err(|error| match error {
        Error::Interrupted(_) => Error::Interrupted("nothing was written".into()),
        error => error.advising(EVALUATE_IN_LESS),
    })?;
    if let Some(loss) = evaluation.as_ref().map(|measured| measured.loss).filter(|loss| !loss.is_finite()) {
        return Err(Error::invalid(format!(
            "the loss is {loss}: a weight or an adapter's strength is too large for {}; lower the strength behind --adapter PATH=, or \
             compute with --mixed-precision no",
            super::device_name(device, kind)
        )));
    }
    if let Some(path) = &config.output {
        Evaluator::write_predictions(&data, &answers, path)?;
        observer.on(Event::Wrote { path: path.clone() });
    }
    Ok(Evaluated { records: data.len(), evaluation })
}

/// Answers go to a CSV file of their own.
fn check_output(path: &Path, config: &EvaluateConfig) -> Result<()> {
    let records = &config.validation_file;
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("csv")) {
        return Err(Error::Usage(format!("--output {} is to be a CSV file; end its name in .csv", path.display())));
    }
    if path.canonicalize().is_ok_and(|path| records.canonicalize().is_ok_and(|records| path == records)) {
        return Err(Error::Usage(format!("--output {} are the records themselves; give another name", path.display())));
    }
    if std::fs::symlink_metadata(path).is_ok() && !config.overwrite {
        return Err(Error::is_there(path, "--output"));
    }
    // Begun and given up, so that a place that cannot be written to shows now.
    WholeFile::create(path).map(drop)
}

/// The adapters must be made for the task, where they say for which.
fn check_tasks(config: &EvaluateConfig, adapters: &GivenAdapters) -> Result<()> {
    let task = config.data.task;
    match adapters.tasks().find(|name| *name != task.peft_name()) {
        Some(other) => {
            let other = TaskChoice::flag_of(other);
            Err(Error::invalid(format!("--task is {}, and the adapter is for {other}", task.flag())))
        }
        None => Ok(()),
    }
}

/// Warns where the adapter in `folder` learned with another template, as the run.json beside it tells.
fn warn_of_other_texts(config: &EvaluateConfig, folder: &Path, observer: &mut dyn Observer) {
    let Ok(text) = regular_file::read(&folder.join("run.json"), FileKind::RUN) else { return };
    let run: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let learned = &run["options"]["prompt_template"];
    if *learned != serde_json::json!(config.data.prompt_template) && !run["options"].is_null() {
        let with =
            learned.as_str().map_or("no --prompt-template".to_owned(), |text| format!("--prompt-template {text:?}"));
        observer.warning(format!("{} learned with {with}, and other texts are measured here", folder.display()));
    }
}
