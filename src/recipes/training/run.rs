//! The state of a training run, whatever it trains: how it begins, and where it stands.

use super::observer::{Event, Observer};
use super::restart::Earlier;
use super::resumed_options::options_that_matter;
use super::run_record::RunRecord;
use crate::adapters::Lost;
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::options::given::GivenFlags;
use crate::options::training::TrainingArgs;
use crate::plain_text::counted;
use crate::train::checkpoint;
use crate::train::data_parallel::{Ranks, Reduction};
use crate::train::lr_schedule::{LrSchedule, ScheduleKind};
use crate::train::measure::Taken;
use crate::train::metrics::MetricsLog;
use crate::train::optimizer::Optimizer;
use crate::train::precision::LossScaler;
use crate::train::run_folder::RunFolder;
use crate::train::tensorboard::EventWriter;
use crate::train::Parameters;
use crate::weights::Placement;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch::{Device, Kind};

/// The name of the phase in which steps are made.
pub const TRAINING: &str = "training";

/// What a finished run leaves.
#[derive(Debug)]
pub struct Finished {
    /// The output folder.
    pub output_dir: PathBuf,
    /// Steps of the run.
    pub steps: u64,
    /// Of them those that an earlier process had done.
    pub resumed_at: u64,
    /// Mean loss of the last tenth of the steps.
    pub final_loss: Option<f64>,
    /// What to try it on.
    pub sample: Option<TextSample>,
    /// Height and width of the images that it learned from, where it is a pipeline's.
    pub resolution: Option<u32>,
}

/// A text to try an adapter on: a prompt that was trained, or for a language model a record's text.
#[derive(Debug)]
pub struct TextSample {
    /// The text.
    pub prompt: String,
    /// Tokens that the model's positions leave for an answer; none: as many as are wanted.
    pub room: Option<i64>,
}

/// What a recipe's options say of its run.
pub struct RunOptions<'a> {
    /// Steps, optimizer, precision, checkpoints.
    pub training: &'a TrainingArgs,
    /// Before `--scale-lr`.
    pub learning_rate: f64,
    /// Places in a batch.
    pub batch_size: usize,
    /// Places in a batch as the run was asked for.
    pub asked_batch_size: usize,
    /// Folder for everything that the run writes.
    pub output_dir: &'a Path,
    /// Which of the options were given.
    pub given: &'a GivenFlags,
    /// All options, for `run.json`.
    pub all: Value,
    /// Names of those that may change when the run resumes, beside those that every training has.
    pub free: &'a [&'a str],
    /// What the run has changed of itself, all of it in `training` and `batch_size`.
    pub measures: Vec<Taken>,
    /// The same run, where it starts again in this process.
    pub earlier: Option<Earlier>,
}

/// What a run learns from.
pub struct TrainingData {
    /// What it is: photos or records.
    pub name: &'static str,
    /// By which a resumed run knows it again.
    pub fingerprint: String,
    /// Its files, for `run.json`.
    pub files: Value,
    /// What the model predicts of it, where that is a choice.
    pub prediction_type: Option<&'static str>,
    /// Batches of an epoch, on each rank.
    pub batches_per_epoch: usize,
    /// The same of all ranks together.
    pub batches: usize,
    /// Steps of a run whose options give no length; none: those of one epoch.
    pub usual_steps: Option<u64>,
}

/// What is trained.
pub struct Trained {
    /// Name to tensor.
    pub params: Parameters,
    /// Elements that train.
    pub trainable: i64,
    /// Elements of the frozen model.
    pub frozen: i64,
    /// Learning rates at the top of the curve of those whose names begin so; the run's for all others.
    pub learning_rates: Vec<(String, f64)>,
}

impl Trained {
    /// What has one learning rate, and that; `learning_rate` is the run's.
    fn groups(&self, learning_rate: f64) -> Vec<(Parameters, f64)> {
        let own = self.learning_rates.iter().map(|(_, rate)| *rate);
        let mut groups: Vec<(Parameters, f64)> =
            std::iter::once(learning_rate).chain(own).map(|rate| (Parameters::new(), rate)).collect();
        for (name, param) in &self.params {
            let own = self.learning_rates.iter().position(|(start, _)| name.starts_with(start));
            groups[own.map_or(0, |index| index + 1)].0.insert(name.clone(), param.shallow_clone());
        }
        groups.retain(|(params, _)| !params.is_empty());
        groups
    }
}

/// A run.
pub struct Run {
    /// Where it computes.
    pub device: Device,
    /// Dtype it computes in.
    pub kind: Kind,
    /// Seed of all draws.
    pub seed: i64,
    /// The output folder.
    pub folder: RunFolder,
    /// Steps, optimizer, precision, checkpoints.
    pub training: TrainingArgs,
    /// Optimizer steps done.
    pub step: u64,
    /// Batches done.
    pub micro_step: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// The evaluation after the present step was interrupted, and is still to do.
    pub evaluation_is_owed: bool,
    /// Everything that trains.
    pub trained: Trained,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// Its learning rate.
    pub schedule: LrSchedule,
    /// float16's loss scale.
    pub scaler: Option<LossScaler>,
    /// By how many batches the gradients of the present group are divided.
    pub accumulated: u64,
    /// What is trained, by learning rate at the top of the curve.
    pub(super) groups: Vec<(Parameters, f64)>,
    /// What it does, as its plan calls it.
    pub phase: &'static str,
    /// What it has changed of itself.
    pub measures: Vec<Taken>,
    /// Where its numbers were lost.
    pub(super) lost: Option<Lost>,
    /// The optimizer has made a step in this start, for which it takes its memory.
    pub(super) has_stepped: bool,
    /// The optimizer's step was not made to its end: the weights are of no step.
    pub(super) is_torn: bool,
    pub(super) batch_size: usize,
    pub(super) asked_batch_size: usize,
    is_started_again: bool,
    /// Batches of an epoch.
    pub batches_per_epoch: usize,
    /// The processes that train together.
    pub ranks: Ranks,
    /// The mean of gradients over them, where there are several.
    pub(super) reduction: Option<Reduction>,
    /// A rank was asked to stop, as all of them know.
    pub(super) is_asked_to_stop: bool,
    /// In a step other ranks may wait for this one's gradients.
    pub(super) is_in_exchange: bool,
    /// Memory beside the planned peak, of a model that convolves.
    pub(in crate::recipes) room_for_convolutions: u64,
    pub(super) peak_before_search: (i64, i64),
    /// Why the run cannot go on as it is, is known to all ranks.
    pub(super) trouble_is_shared: bool,
    /// The checkpoint that this process wrote last: its step, and whether an evaluation is owed in it.
    pub(super) saved: Option<(u64, bool)>,
    /// How long it has waited, as it was asked to.
    pub(super) paused: Duration,
    pub(super) metrics: Option<MetricsLog>,
    pub(super) events: Option<EventWriter>,
    pub(super) options: BTreeMap<String, String>,
    pub(super) resumed_at: u64,
    pub(in crate::recipes) skipped: u64,
    pub(super) skipped_in_a_row: u32,
    pub(super) training_began: Option<Instant>,
    pub(in crate::recipes) record: RunRecord,
    /// The output folder was named by the command line.
    pub(super) names_output: bool,
}

impl Run {
    /// Opens the output folder.
    pub fn start(options: RunOptions, device: Device, seed: i64) -> Result<Self> {
        let training = options.training;
        let schedule = training.schedule(options.learning_rate, options.batch_size);
        schedule.check()?;
        let optimizer = Optimizer::new(training.adamw(), training.use_8bit_adam)?;
        let precision = training.precision(device);
        training.check_resumed(options.output_dir)?;
        let mut that_matter = options_that_matter(&options.all, options.free);
        that_matter.insert("--seed".into(), seed.to_string());
        that_matter.insert("--mixed-precision".into(), precision.flag().into());
        let is_started_again = options.earlier.is_some();
        let earlier = options.earlier.unwrap_or_else(|| Earlier {
            record: RunRecord::new(options.all, options.given, training.command.clone()),
            training_began: None,
            paused: Duration::ZERO,
            resumed_at: 0,
        });
        let run = Self {
            device,
            kind: precision.compute_kind(),
            seed,
            folder: match training.ranks.is_first() {
                true => RunFolder::create(
                    options.output_dir,
                    training.existing(options.output_dir),
                    &options.output_dir.join(&training.logging_dir),
                )?,
                false => RunFolder::of_another(options.output_dir),
            },
            ranks: training.ranks.clone(),
            reduction: None,
            is_asked_to_stop: false,
            is_in_exchange: false,
            has_stepped: false,
            room_for_convolutions: 0,
            peak_before_search: (0, 0),
            trouble_is_shared: false,
            training: training.clone(),
            step: 0,
            micro_step: 0,
            total_steps: 0,
            evaluation_is_owed: false,
            trained: Trained { params: Parameters::new(), trainable: 0, frozen: 0, learning_rates: Vec::new() },
            groups: Vec::new(),
            optimizer,
            schedule,
            scaler: precision.needs_loss_scale().then(LossScaler::default),
            accumulated: training.gradient_accumulation_steps,
            batches_per_epoch: 0,
            phase: TRAINING,
            measures: options.measures,
            lost: None,
            is_torn: false,
            batch_size: options.batch_size,
            asked_batch_size: options.asked_batch_size,
            is_started_again,
            saved: None,
            paused: earlier.paused,
            metrics: None,
            events: None,
            names_output: options.given.names().any(|name| name == "output_dir"),
            record: earlier.record,
            options: that_matter,
            resumed_at: earlier.resumed_at,
            skipped: 0,
            skipped_in_a_row: 0,
            training_began: earlier.training_began,
        };
        // Before time is spent on what the first rank may refuse.
        training.ranks.meet()?;
        Ok(run)
    }

    /// Whether it continues from a checkpoint.
    pub fn is_resumed(&self) -> bool {
        self.resumed_at > 0
    }

    /// Takes what is trained, resumes where asked to, and opens the logs.
    pub fn prepare(
        &mut self,
        parts: &[&str],
        trained: Trained,
        data: TrainingData,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.ranks.agree(data.name, &data.fingerprint)?;
        self.groups = trained.groups(self.schedule.learning_rate);
        self.trained = trained;
        let training = &self.training;
        self.batches_per_epoch = data.batches_per_epoch;
        self.total_steps = training.steps(self.steps_per_epoch(), data.usual_steps);
        self.schedule.total_steps = self.total_steps;
        self.options.insert(data.name.to_owned(), data.fingerprint);
        self.record.data = data.files;
        self.record.prediction_type = data.prediction_type;
        if !matches!(self.schedule.kind, ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup) {
            self.options.insert("--max-train-steps".into(), self.total_steps.to_string());
        }
        self.ranks.agree("options", &format!("{:?}", self.options))?;
        self.report_waiting_weights(observer)?;
        let resumed = if self.ranks.is_first() { self.resume(data.batches, observer)? } else { None };
        self.share_state()?;
        self.reduction = Reduction::new(&self.ranks, &self.trained.params, super::shared_state::numbers(parts))?;
        if !self.ranks.is_first() {
            return Ok(());
        }
        if let (Some((folder, _)), false) = (&resumed, self.is_started_again) {
            self.record.resume(&folder.with_file_name("run.json"), self.step);
        }
        let logs = self.folder.join(&self.training.logging_dir);
        // Refused, where it must be, before the run that is there goes.
        std::fs::create_dir_all(&logs).map_err(|error| Error::io("create", &logs, error))?;
        self.folder.remove_run(&logs)?;
        if resumed.is_some() && self.training.overwrite {
            self.folder.remove_later(self.step)?;
        }
        let (log, resumed_at) = (self.folder.join("metrics.jsonl"), resumed.as_ref().map(|_| self.step));
        self.metrics = Some(match resumed {
            Some((_, bytes)) => {
                if std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) < bytes {
                    observer.warning(format!(
                        "{} lacks lines of earlier steps; the run continues without them",
                        log.display()
                    ));
                }
                MetricsLog::resume(&log, bytes)?
            }
            None => MetricsLog::create(&log)?,
        });
        self.events = Some(EventWriter::create(&logs, resumed_at)?);
        Ok(())
    }

    /// The training begins.
    pub fn begin(&mut self) -> Result<()> {
        self.training_began.get_or_insert_with(Instant::now);
        match self.ranks.is_first() {
            true => self.record.write(self, "running", None),
            false => Ok(()),
        }
    }

    /// Its device, with a network of that dtype.
    pub fn placement(&self, kind: Kind) -> Placement {
        Placement { device: self.device, kind }
    }

    /// Whether all steps are done.
    pub fn is_done(&self) -> bool {
        self.step == self.total_steps
    }

    /// The epoch of the next batch, and the batch's place in it.
    pub fn position(&self) -> (usize, usize) {
        let (batch, batches) = (self.micro_step as usize, self.batches_per_epoch.max(1));
        (batch / batches, batch % batches)
    }

    /// The training goes on where it stands: time that was spent on anything else is none of a step's.
    pub fn report_training(&self, observer: &mut dyn Observer) {
        observer.on(Event::Begin { phase: TRAINING.into(), total: self.total_steps, done: self.step, unit: "steps" });
    }

    /// Optimizer steps of an epoch: its last batch ends the addition.
    fn steps_per_epoch(&self) -> u64 {
        (self.batches_per_epoch as u64).div_ceil(self.training.gradient_accumulation_steps)
    }

    /// Reports the run's length; `each` is what else is to be said of a batch, and `fields` the same for programs.
    pub fn report_length(&self, each: &str, fields: Value, observer: &mut dyn Observer) {
        let epochs = self.total_steps as f64 / self.steps_per_epoch().max(1) as f64;
        let (steps, learning_rate, seed) = (self.total_steps, self.schedule.learning_rate, self.seed);
        let mut all = json!({ "steps": steps, "epochs": epochs, "learning_rate": learning_rate, "seed": seed });
        for (name, value) in fields.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let length = match (counted(steps as usize, "step"), epochs) {
            (steps, 0.0) => steps,
            (steps, 1.0) => format!("{steps} (1 epoch)"),
            (steps, ..0.1) => format!("{steps} (less than 0.1 epochs)"),
            (steps, epochs) => format!("{steps} ({epochs:.1} epochs)"),
        };
        let text = format!("{length}, {each}, lr {learning_rate:e}, seed {seed}");
        observer.fact_with("training", text, all);
    }

    /// Restores a checkpoint; its folder, and the length of the log when it was made.
    fn resume(&mut self, batches: usize, observer: &mut dyn Observer) -> Result<Option<(PathBuf, u64)>> {
        if self.training.resume_from_checkpoint.is_none() {
            return Ok(None);
        }
        let folder = match self.training.named_checkpoint(self.folder.path()) {
            None => {
                let latest = checkpoint::latest(self.folder.path())?;
                let damaged = checkpoint::damaged_behind(self.folder.path(), latest.as_deref())?;
                if let (None, Some(damaged)) = (&latest, damaged.last()) {
                    return Err(Error::file(
                        damaged,
                        "this checkpoint is damaged, and there is no intact one to resume from; start again with ⟨overwrite⟩",
                    ));
                }
                for damaged in damaged {
                    observer.warning(format!("{} is damaged and left out", damaged.display()));
                }
                latest
            }
            named => named,
        };
        let Some(folder) = folder else {
            observer
                .warning(format!("{} holds no intact checkpoint; starting from step 0", self.folder.path().display()));
            return Ok(None);
        };
        let mut saved = checkpoint::load(&folder, self.device)?;
        if saved.state.ranks != self.ranks.count() {
            self.go_on_with_other_ranks(&mut saved.state, batches, observer);
        }
        saved.state.check_options(&self.options)?;
        if !self.measures.starts_with(&saved.state.measures) {
            return Err(Error::file(folder, "was written while this run began; start it again"));
        }
        checkpoint::restore_parameters(&self.trained.params, &saved.params)?;
        self.optimizer.load_state(&self.trained.params, &saved.optimizer)?;
        self.step = saved.state.step;
        if !self.is_started_again {
            self.resumed_at = self.step;
        }
        self.micro_step = self.micro_step_of(&saved.state);
        self.evaluation_is_owed = saved.state.evaluation_is_owed;
        if let Some(state) = saved.state.scaler {
            self.scaler = Some(LossScaler::from_state(state)?);
            self.skipped = state.skipped_steps;
        }
        observer.fact_with(
            "resumed",
            format!("{} at step {}", folder.display(), self.step),
            json!({ "checkpoint": folder.display().to_string(), "step": self.step }),
        );
        Ok(Some((folder, saved.state.metrics_bytes)))
    }

    /// Steps that the optimizer took: overflowed ones are not counted, so the learning rate waits for them.
    pub fn optimizer_steps(&self) -> u64 {
        self.step - self.skipped
    }

    /// Peak memory so far: the device's, or what this process added since it started.
    pub fn peak_bytes(&self) -> Result<u64> {
        match self.device {
            Device::Cuda(_) => Ok(self.device_peak()?.1.max(0) as u64),
            _ => Ok(memory::host_peak()),
        }
    }

    /// Seconds before the training, and of it so far, without its pauses.
    pub(super) fn seconds(&self) -> (f64, f64) {
        let training_began = self.training_began.unwrap_or_else(Instant::now);
        ((training_began - self.record.began).as_secs_f64(), (training_began.elapsed() - self.paused).as_secs_f64())
    }
}
