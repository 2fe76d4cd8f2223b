//! What a language model, with or without adapters, makes of records that it has not learned.

use super::language::base::{LanguageBase, WantedModel};
use super::language::evaluation::{check_positions, Evaluation, Evaluator};
use super::language::given_adapters::GivenAdapters;
use super::training::observer::{Event, Observer};
use crate::data::language_dataset::LanguageTask;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::models::language::HeadOptions;
use crate::options::checks::is_file;
use crate::options::evaluate::EvaluateConfig;
use crate::options::model::check_language_model;
use crate::options::records::{check_task, task_name};
use crate::options::values::name;
use crate::regular_file::{self, FileKind};
use crate::train::data_parallel::Ranks;
use crate::weights::Placement;
use crate::whole_file::WholeFile;
use std::path::Path;
use tch::Device;

/// What to do where memory is full.
const EVALUATE_IN_LESS: &str = "turn on ⟨quantize⟩ nf4 or ⟨offload⟩ cpu, or lower ⟨max_seq_length⟩";

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
    is_file("⟨validation_file⟩", &config.validation_file)?;
    check_language_model("⟨model⟩", &config.model)?;
    // Without labels a text can be its own, or is answered.
    let answers_alone = config.data.label_column.is_none() && config.output.is_some();
    if !answers_alone {
        config
            .data
            .check_labels()
            .map_err(|error| Error::Usage(format!("{error}; or give ⟨output⟩ FILE.csv for the answers alone")))?;
    }
    let adapters = GivenAdapters::read(&config.adapter)?;
    adapters.warnings().iter().for_each(|text| observer.warning(text.clone()));
    check_tasks(config, &adapters)?;
    adapters.folders().iter().for_each(|folder| warn_of_other_texts(config, folder, observer));
    let base = WantedModel::new(&config.model, config.revision.as_deref()).open(observer)?;
    let ends = base.ends()?;
    let LanguageBase { mut files, tokenizer } = base;
    files.store_in(config.weights.storage());
    check_task(config.data.task, &files)?;
    adapters.check_for(&files)?;
    let classes = match config.data.task {
        LanguageTask::SeqCls => adapters.classes(&files)?.ok_or_else(|| adapters.without_classes(&files))?,
        LanguageTask::CausalLm | LanguageTask::Seq2SeqLm => Vec::new(),
    };
    // A head that no adapter brings must be in the model's files.
    let labels = match config.data.task {
        LanguageTask::SeqCls => adapters.head_rows(&files)?,
        LanguageTask::CausalLm | LanguageTask::Seq2SeqLm => None,
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
    super::report_weights(&config.weights, device, observer);
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
        ranks: &Ranks::default(),
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
            "the loss is {loss}: a weight or an adapter's strength is too large for {}; lower the strength behind ⟨adapter⟩ PATH=, or \
             compute with ⟨mixed_precision⟩ no",
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
        return Err(Error::Usage(format!("⟨output⟩ {} is to be a CSV file; end its name in .csv", path.display())));
    }
    if path.canonicalize().is_ok_and(|path| records.canonicalize().is_ok_and(|records| path == records)) {
        return Err(Error::Usage(format!("⟨output⟩ {} are the records themselves; give another name", path.display())));
    }
    if std::fs::symlink_metadata(path).is_ok() && !config.overwrite {
        return Err(Error::is_there(path, "⟨output⟩"));
    }
    // Begun and given up, so that a place that cannot be written to shows now.
    WholeFile::create(path).map(drop)
}

/// The adapters must be made for the task, where they say for which.
fn check_tasks(config: &EvaluateConfig, adapters: &GivenAdapters) -> Result<()> {
    let task = config.data.task;
    match adapters.tasks().find(|name| *name != task.peft_name()) {
        Some(other) => {
            let other = task_name(other);
            Err(Error::invalid(format!("⟨task⟩ is {}, and the adapter is for {other}", name(&task))))
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
        let with = learned
            .as_str()
            .map_or("no ⟨prompt_template⟩".to_owned(), |text| format!("⟨prompt_template⟩ {text:?}"));
        observer.warning(format!("{} learned with {with}, and other texts are measured here", folder.display()));
    }
}
