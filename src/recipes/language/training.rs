//! An adapter or a prompt for a language model: from a file of records to adapter files.
//! References: PEFT's `examples/conditional_generation`, `examples/causal_language_modeling`, `examples/sequence_classification`.

use super::adapter::{LanguageAdapter, WantedAdapter};
use super::base::{LanguageBase, WantedModel};
use super::evaluation::{check_positions, Answers, Evaluation, Evaluator};
use super::loss::{language_loss, LossOptions};
use super::options::{with_output, FREE_OPTIONS};
use super::plan::{PlannedModel, RecordLengths};
use crate::adapters::{peft_folder, Prompt, Sites};
use crate::data::epoch_order::EpochOrder;
use crate::data::language_dataset::LanguageDataset;
use crate::data::language_dataset::LanguageTask;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::random::seed_globally;
use crate::models::language::{HeadOptions, LanguageModel, LanguageModelFiles};
use crate::models::Loaded;
use crate::options::language::{BestBy, LanguageConfig};
use crate::options::records::check_task;
use crate::recipes::complete::{Completer, Completion};
use crate::recipes::training::adaptation::Adaptation;
use crate::recipes::training::control::{Control, SampleRequest};
use crate::recipes::training::memory_advice::report_memory;
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::{Finished, Run, RunOptions, TextSample, Trained, TrainingData};
use crate::recipes::training::training_loop::{self, Job, Losses};
use crate::regular_file::{self, FileKind};
use crate::sample::text_generation::TextSampling;
use crate::train::checkpoint::size_and_hash;
use crate::train::data_parallel::Ranks;
use crate::train::run_folder::{RunFolder, BEST, BEST_EVALUATION};
use crate::weights::{Keeping, Placement};
use crate::whole_file::{write_json, write_whole};
use serde_json::json;
use std::cmp::Ordering;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tch::Device;

/// Trains on `device` as `config` says, telling `observer` and doing what `control` asks for: stopping, with the state saved, and
/// more.
pub fn train(
    config: &LanguageConfig,
    device: Device,
    seed: i64,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Finished> {
    let config = with_output(config);
    Adaptation::of_starts(&config.training, config.output(), device, |adaptation| {
        start(&config, adaptation, (device, seed), control, &mut *observer)
    })
}

/// One start of the run, with all that it has changed of itself.
fn start(
    asked: &LanguageConfig,
    adaptation: &mut Adaptation,
    (device, seed): (Device, i64),
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Finished> {
    // 1. Everything that can be refused is refused before time is spent.
    let observer: &mut dyn Observer = &mut adaptation.hearing(observer);
    let interrupt = control.interrupt();
    let watch = interrupt.watch();
    let mut config = adaptation.measures().fold(asked.clone(), LanguageConfig::taking);
    adaptation.go_on(&mut config.training);
    let config = &config;
    config.check()?;
    let model = WantedModel::new(&config.model, config.revision.as_deref());
    let base = model.open(observer)?;
    let ends = base.ends()?;
    let LanguageBase { mut files, tokenizer } = base;
    files.store_in(Keeping {
        fp32_layers: config.training.fp32_layers.as_slice().into(),
        ..config.training.weights.storage().into()
    });
    files.check_layers()?;
    check_task(config.data.task, &files)?;
    let adapter = WantedAdapter::new(config, files.architecture())?;
    let options = config.data.options()?;
    let data = options.training(&config.train_file, &tokenizer)?;
    let read = |file: &PathBuf| options.validation(file, &tokenizer, &data);
    let validation = config.validation_file.as_ref().map(read).transpose()?;
    if config.best_by == BestBy::Accuracy && !validation.as_ref().is_some_and(LanguageDataset::has_answers) {
        return Err(Error::invalid(
            "⟨best_by⟩ accuracy needs answers to measure: give ⟨validation_file⟩ and ⟨label_column⟩, or leave it out",
        ));
    }
    let mut longest = 0;
    for data in [Some(&data), validation.as_ref()].into_iter().flatten() {
        data.warnings().iter().for_each(|text| observer.warning(text.clone()));
        longest = longest.max(data.longest());
    }
    let labels = (config.data.task == LanguageTask::SeqCls).then_some(data.classes().len() as i64);
    let planned = PlannedModel::of(&files, &adapter, labels)?;
    check_positions(planned.outline(), adapter.prompt(), longest, observer)?;
    let records = RecordLengths::of(&data, validation.as_ref(), config.train_batch_size);
    let peak_and_advice = |budget: u64| planned.peak_and_advice(config, records, device, budget);
    let mut run = open_run(asked, config, adaptation, data.classes(), (device, seed))?;
    let outcome = catching(|| {
        let name = config.model.display().to_string();
        crate::recipes::report_model(&name, Some(files.architecture().model_type), observer);
        crate::recipes::report_device(device, run.kind, observer)?;
        crate::recipes::report_weights(&config.training.weights, device, observer);
        report_memory(peak_and_advice, device, observer)?;
        // 2. The model with its adapter.
        let (data, tokenizer) = ((data, validation), (tokenizer, ends));
        let mut job = prepare(config, &files, adapter, data, tokenizer, &run, observer)?;
        let trained = job.trained();
        run.prepare(job.parts(), trained, job.training_data()?, observer)?;
        job.recall(&run)?;
        job.report_setup(&run, observer);
        run.begin()?;
        drop(watch);
        // 3. The loop.
        training_loop::train(&mut job, &mut run, control, observer)?;
        // 4. The adapter files.
        if !run.ranks.is_first() {
            return Ok(run.finish_elsewhere());
        }
        job.restore_best(&run.folder, observer)?;
        job.write_predictions(&run, interrupt, observer)?;
        let losses: Vec<(u64, f64)> = job.evaluations.iter().map(|done| (done.step, done.loss)).collect();
        let finished = run.finish(&losses, observer, |folder, observer| {
            job.write_adapter(folder.path())?;
            observer.on(Event::Wrote { path: folder.join("adapter_model.safetensors") });
            Ok(())
        })?;
        Ok(Finished { sample: job.sample()?, ..finished })
    });
    outcome.map_err(|error| {
        observer.on(Event::End);
        adaptation.weigh(error, run, || Ok(planned.input(config, records, device)), observer)
    })
}

/// The run that was `asked` for, with `config` in its place.
fn open_run(
    asked: &LanguageConfig,
    config: &LanguageConfig,
    adaptation: &mut Adaptation,
    classes: &[String],
    (device, seed): (Device, i64),
) -> Result<Run> {
    let mut all = serde_json::to_value(asked).map_err(|error| Error::invalid(error.to_string()))?;
    if !classes.is_empty() {
        all["classes"] = classes.into();
    }
    let options = RunOptions {
        training: &config.training,
        learning_rate: config.learning_rate,
        batch_size: config.train_batch_size,
        asked_batch_size: asked.train_batch_size,
        output_dir: config.output(),
        given: &config.given,
        all,
        free: FREE_OPTIONS,
        measures: adaptation.taken(),
        earlier: adaptation.take_earlier(),
    };
    Run::start(options, device, seed)
}

/// Loads the model and puts the adapter on.
fn prepare<'a>(
    config: &'a LanguageConfig,
    files: &LanguageModelFiles,
    adapter: WantedAdapter,
    (data, validation): (LanguageDataset, Option<LanguageDataset>),
    (tokenizer, ends): (LanguageTokenizer, Vec<i64>),
    run: &Run,
    observer: &mut dyn Observer,
) -> Result<LanguageJob<'a>> {
    observer.begin("loading the model", 1, "");
    let labels = (config.data.task == LanguageTask::SeqCls).then_some(data.classes().len() as i64);
    let placement = Placement { device: run.device, kind: run.kind };
    let loaded = files.load(placement, HeadOptions { labels, seed: run.seed })?;
    observer.on(Event::End);
    tokenizer.check_fits(loaded.model.shape().vocabulary)?;
    let adapter = adapter.attach(config, &loaded, &tokenizer, run.device, run.seed)?;
    let order =
        data.order(config.train_batch_size, run.seed, !config.no_shuffle)?.dealt(run.ranks.rank(), run.ranks.count());
    Ok(LanguageJob {
        config,
        loaded,
        adapter,
        tokenizer,
        ends,
        data,
        validation,
        order,
        evaluations: Vec::new(),
        best: None,
        best_answers: None,
    })
}

/// Records and the model, as the loop asks for them.
struct LanguageJob<'a> {
    config: &'a LanguageConfig,
    loaded: Loaded<LanguageModel>,
    adapter: LanguageAdapter,
    tokenizer: LanguageTokenizer,
    /// Tokens that end an answer.
    ends: Vec<i64>,
    data: LanguageDataset,
    validation: Option<LanguageDataset>,
    order: EpochOrder,
    evaluations: Vec<Evaluation>,
    /// The one whose adapter is kept.
    best: Option<Evaluation>,
    /// Its answers, where this process has them.
    best_answers: Option<Answers>,
}

impl LanguageJob<'_> {
    fn trained(&self) -> Trained {
        Trained {
            params: self.adapter.params().iter().map(|(name, param)| (name.clone(), param.shallow_clone())).collect(),
            trainable: self.adapter.trainable(),
            frozen: self.adapter.base_elements(),
            learning_rates: Vec::new(),
        }
    }

    fn report_setup(&self, run: &Run, observer: &mut dyn Observer) {
        let validation = match &self.validation {
            Some(data) => format!(", {} for evaluation", data.len()),
            None => String::new(),
        };
        let classes = match self.data.classes() {
            [] => String::new(),
            classes => format!("; classes: {}", classes.join(", ")),
        };
        let text = format!("{} for training{validation}{classes}", self.data.len());
        let fields = json!({
            "training_records": self.data.len(), "validation_records": self.validation.as_ref().map_or(0, LanguageDataset::len),
            "classes": self.data.classes(),
        });
        observer.fact_with("records", text, fields);
        let each = format!("batch {}, {} tokens at most", self.config.train_batch_size, self.data.longest());
        let fields = json!({ "batch_size": self.config.train_batch_size, "longest_tokens": self.data.longest() });
        run.report_length(&each, fields, observer);
        // One that could not be read is refused before this.
        let left_out =
            self.config.init_adapter.as_deref().and_then(|folder| peft_folder::left_out(folder).ok().flatten());
        left_out.into_iter().for_each(|text| observer.warning(text));
        let start = match &self.config.init_adapter {
            Some(path) => format!("the adapter {}", path.display()),
            None => "a new adapter".to_owned(),
        };
        crate::recipes::report_start(start, self.config.init_adapter.as_deref(), run, observer);
        self.adapter.report(observer);
        crate::recipes::report_output(run.folder.path(), observer);
    }

    /// What it learns from.
    fn training_data(&self) -> Result<TrainingData> {
        let (config, mut files) = (self.config, Vec::new());
        let validation = config.validation_file.as_ref().zip(self.validation.as_ref());
        for (kind, path, data) in std::iter::once(("train", &config.train_file, &self.data))
            .chain(validation.map(|(path, data)| ("validation", path, data)))
        {
            let (bytes, sha256) = size_and_hash(path)?;
            let path = path.display().to_string();
            files.push(json!({ "file": path, "kind": kind, "records": data.len(), "bytes": bytes, "sha256": sha256 }));
        }
        Ok(TrainingData {
            name: "records",
            fingerprint: self.data.fingerprint(),
            files: files.into(),
            prediction_type: None,
            batches_per_epoch: self.order.batches_per_epoch(),
            batches: self.order.places().div_ceil(self.config.train_batch_size),
            usual_steps: None,
        })
    }

    fn evaluator<'a>(&'a self, run: &Run, ranks: &'a Ranks) -> Evaluator<'a> {
        Evaluator {
            model: &self.loaded.model,
            prompt: self.adapter.prompt(),
            tokenizer: &self.tokenizer,
            device: run.device,
            max_new_tokens: self.config.data.eval_max_new_tokens,
            ends: &self.ends,
            ranks,
        }
    }

    /// The evaluations up to the run's present step, where it goes on. The best is known if its adapter is there still: a run that
    /// was stopped may have found a better one behind its last checkpoint, and finds it again.
    fn recall(&mut self, run: &Run) -> Result<()> {
        let done = |path: PathBuf| -> Result<Vec<Evaluation>> {
            if run.step == 0 || !path.exists() {
                return Ok(Vec::new());
            }
            let text = regular_file::read_text(&path, FileKind::RUN)?;
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Evaluation>(line).ok());
            // That of the present step is made again where it is owed.
            let done = |step: u64| step < run.step || step == run.step && !run.evaluation_is_owed;
            Ok(lines.filter(|evaluation| done(evaluation.step)).collect())
        };
        self.evaluations = done(run.folder.join("evaluations.jsonl"))?;
        let best = run.folder.join(BEST).join(BEST_EVALUATION);
        let keeps_best = run.step > 0 && best.exists();
        self.best = done(best)?.pop();
        match keeps_best && self.validation.is_none() {
            true => Err(Error::invalid(
                "the run to resume keeps the adapter of its best evaluation; give ⟨validation_file⟩ again, or start again in another \
                 ⟨output_dir⟩",
            )),
            false => Ok(()),
        }
    }

    fn write_evaluations(&self, folder: &RunFolder) -> Result<()> {
        let lines: String = self.evaluations.iter().map(line).collect::<Result<_>>()?;
        write_whole(&folder.join("evaluations.jsonl"), lines.as_bytes())
    }

    /// Keeps the present adapter as that of the best evaluation, which is written last and removed first: it never speaks of
    /// another adapter.
    fn keep(&mut self, best: Evaluation, folder: &Path) -> Result<()> {
        let path = folder.join(BEST_EVALUATION);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("replace", &path, error)),
            _ => self.write_adapter(folder)?,
        }
        write_whole(&path, line(&best)?.as_bytes())?;
        self.best = Some(best);
        Ok(())
    }

    /// Puts the adapter of the best evaluation back; where nothing was evaluated, the last one stays.
    fn restore_best(&self, folder: &RunFolder, observer: &mut dyn Observer) -> Result<()> {
        let Some(best) = &self.best else { return Ok(()) };
        observer.fact_with("kept", format!("the adapter of step {}: {}", best.step, best.in_words()), best.fields());
        if best.step == 0 && self.evaluations.len() > 1 {
            observer.warning(
                "no evaluation was better than the one before training: what is kept has learned nothing; the trained adapter is in \
                 the last checkpoint-N",
            );
        }
        self.adapter.restore(&folder.join(BEST))
    }

    /// The better evaluation is less; of those that have as many right answers, the one of the lower loss.
    fn compare(&self, a: &Evaluation, b: &Evaluation) -> Ordering {
        let by_loss = a.loss.total_cmp(&b.loss);
        match self.config.best_by {
            BestBy::Loss => by_loss,
            BestBy::Accuracy => {
                let right = |evaluation: &Evaluation| evaluation.accuracy.unwrap_or(0.0);
                right(b).total_cmp(&right(a)).then(by_loss)
            }
        }
    }

    /// What to try the adapter on: of records that it has not learned, where there are such.
    fn sample(&self) -> Result<Option<TextSample>> {
        let data = self.validation.as_ref().unwrap_or(&self.data);
        let prompt = data.sample().to_owned();
        let before = match self.loaded.model {
            LanguageModel::Classifier(_) => return Ok(Some(TextSample { prompt, room: None })),
            LanguageModel::Causal(_) => self.tokenizer.encode(&prompt, usize::MAX)?.ids.len(),
            LanguageModel::EncoderDecoder(_) => 0,
        };
        let before = before as i64 + self.adapter.prompt().map_or(0, Prompt::length);
        let room = self.loaded.model.shape().longest.map(|most| most - before);
        Ok(room.is_none_or(|room| room > 0).then_some(TextSample { prompt, room }))
    }

    /// `predictions.csv`: what the adapter answers to the validation records.
    fn write_predictions(&self, run: &Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()> {
        let Some(data) = self.validation.as_ref().filter(|data| data.has_answers()) else { return Ok(()) };
        let anew = || {
            // The other ranks are done.
            self.evaluator(run, &Ranks::default()).answers(data, interrupt, observer).map_err(|error| match error {
                Error::Interrupted(_) => run.interrupted(),
                other => other,
            })
        };
        let answers = self.best_answers.clone().map_or_else(anew, Ok)?;
        let path = run.folder.join("predictions.csv");
        Evaluator::write_predictions(data, &answers, &path)?;
        observer.on(Event::Wrote { path });
        Ok(())
    }
}

/// An evaluation as its line in a file.
fn line(evaluation: &Evaluation) -> Result<String> {
    serde_json::to_string(evaluation).map(|line| line + "\n").map_err(|error| Error::Internal(error.to_string()))
}

impl Job for LanguageJob<'_> {
    fn parts(&self) -> &'static [&'static str] {
        &[]
    }

    fn micro_step(&mut self, run: &Run) -> Result<Losses> {
        let batch = self.data.batch(&self.order.micro_batch(run.micro_step as usize))?;
        // Dropout draws from the batch's own seed.
        seed_globally(run.device, run.ranks.seed(run.seed, run.micro_step))?;
        let options = LossOptions {
            prompt: self.adapter.prompt(),
            pad: self.tokenizer.pad()?,
            device: run.device,
            checkpointing: run.training.gradient_checkpointing,
        };
        let loss = language_loss(&self.loaded.model, &batch, options)?;
        run.backward(&loss.mean);
        Ok(Losses { total: loss.mean.detach(), parts: Vec::new() })
    }

    fn set_training(&self, training: bool) {
        self.loaded.sites.set_training(training);
    }

    fn networks(&self) -> Vec<(&'static str, &Sites)> {
        vec![("", self.loaded.sites.as_ref())]
    }

    fn evaluation_phase(&self) -> &'static str {
        "evaluation"
    }

    fn evaluate(&mut self, run: &mut Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()> {
        let Some(data) = &self.validation else { return Ok(()) };
        let ranks = run.ranks.clone();
        let (evaluation, answers) = self.evaluator(run, &ranks).evaluate(data, run.step, interrupt, observer)?;
        if !run.ranks.is_first() {
            return Ok(());
        }
        let has_answers = data.has_answers();
        observer.fact_with("evaluation", format!("step {}: {}", run.step, evaluation.in_words()), evaluation.fields());
        for (name, value) in evaluation.values() {
            run.events_scalar(&format!("evaluation/{name}"), value)?;
        }
        self.evaluations.push(evaluation.clone());
        if self.best.as_ref().is_none_or(|best| self.compare(&evaluation, best).is_lt()) {
            self.keep(evaluation, &run.folder.join(BEST))?;
            self.best_answers = has_answers.then_some(answers);
        }
        self.write_evaluations(&run.folder)
    }

    fn sample(
        &mut self,
        run: &mut Run,
        request: &SampleRequest,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let data = self.validation.as_ref().unwrap_or(&self.data);
        let prompt = request.prompt.as_deref().unwrap_or(data.sample());
        let most = request.max_new_tokens.unwrap_or(self.config.data.eval_max_new_tokens);
        let sampling = TextSampling::greedy(most, self.ends.clone());
        sampling.check()?;
        let completer = Completer {
            model: &self.loaded.model,
            prompt: self.adapter.prompt(),
            tokenizer: &self.tokenizer,
            classes: Some(self.data.classes()).filter(|classes| !classes.is_empty()),
            device: run.device,
        };
        let seed = request.seed.unwrap_or(run.seed);
        let completion = completer.complete(&completer.ids(prompt)?, &sampling, seed, interrupt, &mut |_| {})?;
        let text = match completion {
            Completion::Text { text, .. } => text,
            Completion::Classes(ranked) => ranked.into_iter().next().map(|(class, _)| class).unwrap_or_default(),
        };
        observer.on(Event::Completed { step: run.step, prompt: prompt.to_owned(), text });
        Ok(())
    }

    fn evaluation_is_due(&self, run: &Run) -> bool {
        let epoch_ends = run.position().1 == 0;
        let due = self.config.eval_steps.map_or(epoch_ends, |steps| run.step.is_multiple_of(steps));
        self.validation.is_some() && (due || run.step == run.total_steps)
    }

    fn write_adapter(&self, folder: &Path) -> Result<()> {
        self.adapter.write(folder)?;
        match self.data.classes() {
            [] => Ok(()),
            classes => write_json(&folder.join("classes.json"), &classes),
        }
    }
}
