//! The state of a DreamBooth run: where it stands, what it trains, and what it leaves on disk.

use super::dreambooth_config::{DreamBoothConfig, MixedPrecision};
use super::dreambooth_lora::scaler_state;
use super::dreambooth_options::{lora_config, options_that_matter};
use super::dreambooth_phases::Networks;
use super::observer::{Event, Observer};
use crate::adapters::{attach, short_name, Attached, Init, Part};
use crate::data::dreambooth_dataset::{BatchOrder, DreamBoothDataset};
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::libtorch::random::Generator;
use crate::models::stable_diffusion::PipelineFiles;
use crate::train::adamw::AdamWConfig;
use crate::train::checkpoint::{self, TrainingState};
use crate::train::gradients::all_finite;
use crate::train::lr_schedule::{LrSchedule, ScheduleKind};
use crate::train::metrics::{self, MetricsLog, StepMetrics};
use crate::train::optimizer::Optimizer;
use crate::train::precision::{LossScaler, Precision};
use crate::train::run_folder::{ExistingRun, RunFolder};
use crate::train::tensorboard::EventWriter;
use crate::train::{loss_curve, Parameters};
use crate::whole_file::write_json;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Steps in a row that may overflow in float16 before the run is given up.
const MOST_SKIPPED: u32 = 25;

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
}

/// A run.
pub struct Run {
    /// The model on disk.
    pub files: PipelineFiles,
    /// Where it computes.
    pub device: Device,
    /// Dtype it computes in.
    pub kind: Kind,
    /// Seed of all draws.
    pub seed: i64,
    /// The output folder.
    pub folder: RunFolder,
    /// Optimizer steps done.
    pub step: u64,
    /// Batches done.
    pub micro_step: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Everything that trains: `unet.` and `text_encoder.` before the adapters' names.
    pub params: Parameters,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// Its learning rate.
    pub schedule: LrSchedule,
    /// float16's loss scale.
    pub scaler: Option<LossScaler>,
    adapters: Vec<(Part, Attached)>,
    metrics: Option<MetricsLog>,
    events: Option<EventWriter>,
    options: BTreeMap<String, String>,
    resumed_at: u64,
    skipped: u64,
    skipped_in_a_row: u32,
    began: Instant,
    training_began: Instant,
    host_start: u64,
}

pub(super) fn precision_of(choice: MixedPrecision, device: Device) -> Precision {
    match choice {
        MixedPrecision::No => Precision::Fp32,
        MixedPrecision::Fp16 => Precision::Fp16,
        MixedPrecision::Bf16 => Precision::Bf16,
        MixedPrecision::Auto => Precision::auto(device),
    }
}

impl Run {
    /// Opens the model and the output folder.
    pub fn start(config: &DreamBoothConfig, device: Device, seed: i64, observer: &mut dyn Observer) -> Result<Self> {
        let files = super::open_model(&config.model.name, &config.model.options(), observer)?;
        let unet = files.unet_config()?;
        let multiple = unet.size_multiple() * files.vae_config()?.scale_factor();
        let resolution = i64::from(config.resolution);
        if resolution % multiple != 0 {
            let below = (resolution / multiple * multiple).max(multiple);
            return Err(Error::invalid(format!(
                "--resolution {resolution} does not fit this model, which takes multiples of {multiple}: {below} or {}",
                below + multiple
            )));
        }
        let existing = match (&config.resume_from_checkpoint, config.overwrite) {
            (Some(_), _) => ExistingRun::Resume,
            (None, true) => ExistingRun::Overwrite,
            (None, false) => ExistingRun::Refuse,
        };
        let precision = precision_of(config.mixed_precision, device);
        let adamw = AdamWConfig {
            betas: (config.adam_beta1, config.adam_beta2),
            weight_decay: config.adam_weight_decay,
            eps: config.adam_epsilon,
        };
        let factor = match config.scale_lr {
            true => config.gradient_accumulation_steps as f64 * config.train_batch_size as f64,
            false => 1.0,
        };
        let schedule = LrSchedule {
            kind: config.lr_scheduler.into(),
            learning_rate: config.learning_rate * factor,
            warmup_steps: config.lr_warmup_steps,
            total_steps: 0,
            num_cycles: config.lr_num_cycles,
            power: config.lr_power,
        };
        schedule.check()?;
        let optimizer = Optimizer::new(adamw, config.use_8bit_adam)?;
        let folder = RunFolder::create(&config.output_dir, existing)?;
        let kind = precision.compute_kind();
        observer.fact("model", config.model.name.clone());
        observer.fact("device", super::device_name(device, kind));
        Ok(Self {
            files,
            device,
            kind,
            seed,
            folder,
            step: 0,
            micro_step: 0,
            total_steps: 0,
            params: Parameters::new(),
            optimizer,
            schedule,
            scaler: precision.needs_loss_scale().then(LossScaler::default),
            adapters: Vec::new(),
            metrics: None,
            events: None,
            options: options_that_matter(config, kind, seed),
            resumed_at: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            began: Instant::now(),
            training_began: Instant::now(),
            host_start: memory::host_now(),
        })
    }

    /// Puts the adapters on, resumes where asked to, and opens the logs.
    pub fn begin_training(
        &mut self,
        config: &DreamBoothConfig,
        dataset: &DreamBoothDataset,
        order: &BatchOrder,
        networks: &Networks,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.attach_adapters(config, networks)?;
        let updates_per_epoch = (order.batches_per_epoch() as u64).div_ceil(config.gradient_accumulation_steps);
        self.total_steps = config.max_train_steps.unwrap_or(config.num_train_epochs.saturating_mul(updates_per_epoch));
        self.schedule.total_steps = self.total_steps;
        self.options.insert("photos".into(), dataset.fingerprint());
        if !matches!(self.schedule.kind, ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup) {
            self.options.insert("max-train-steps".into(), self.total_steps.to_string());
        }
        let resumed = self.resume(config, observer)?;
        let logs = self.folder.join(&config.logging_dir);
        // Refused, where it must be, before the run that is there goes.
        std::fs::create_dir_all(&logs).map_err(|error| Error::io("create", &logs, error))?;
        self.folder.remove_run(&logs)?;
        let log = self.folder.join("metrics.jsonl");
        if self.metrics.is_none() {
            self.metrics = Some(MetricsLog::create(&log)?);
        }
        self.events = Some(EventWriter::create(&logs, resumed)?);
        self.tell_first_screen(config, dataset, updates_per_epoch, observer);
        self.write_run_json(config, "running")?;
        self.training_began = Instant::now();
        observer.on(Event::Begin { phase: "training".into(), total: self.total_steps, done: self.step });
        Ok(())
    }

    /// What will be trained, on what, how many parameters, and where it will be.
    fn tell_first_screen(
        &self,
        config: &DreamBoothConfig,
        dataset: &DreamBoothDataset,
        updates_per_epoch: u64,
        observer: &mut dyn Observer,
    ) {
        let instances = dataset.instance_count();
        let class = match dataset.class_count() {
            0 => String::new(),
            class => format!(", and {class} of the class, {:?}", config.class_prompt.as_deref().unwrap_or_default()),
        };
        observer.fact("photos", format!("{instances} of the subject, {:?}{class}", config.instance_prompt));
        let epochs = self.total_steps as f64 / updates_per_epoch.max(1) as f64;
        observer.fact(
            "training",
            format!(
                "{} steps ({epochs:.1} epochs), batch {}, {} px, lr {:e}, seed {}",
                self.total_steps, config.train_batch_size, config.resolution, self.schedule.learning_rate, self.seed
            ),
        );
        for (part, adapter) in &self.adapters {
            let (name, lora) = (part.name().replace('_', " "), &adapter.config);
            let mut kinds: Vec<&str> = adapter.targets.iter().map(|path| short_name(path)).collect();
            kinds.sort_unstable();
            kinds.dedup();
            let mut ranks: Vec<i64> = adapter.targets.iter().map(|path| lora.rank_of(path)).collect();
            ranks.sort_unstable();
            ranks.dedup();
            let ranks: Vec<String> = ranks.iter().map(i64::to_string).collect();
            let (ranks, alpha, modules) = (ranks.join(" and "), lora.lora_alpha, adapter.targets.len());
            observer.fact(
                &name,
                format!("LoRA of rank {ranks}, alpha {alpha}, on {modules} modules: {}", kinds.join(", ")),
            );
            observer.fact("", adapter.summary());
        }
        observer.fact("output", self.folder.path().display().to_string());
    }

    fn attach_adapters(&mut self, config: &DreamBoothConfig, networks: &Networks) -> Result<()> {
        let mut generator = Generator::new(self.seed);
        let mut parts = vec![(Part::UNet, &networks.unet.sites)];
        if let (true, Some(text_encoder)) = (config.train_text_encoder, &networks.text_encoder) {
            parts.push((Part::TextEncoder, &text_encoder.sites));
        }
        for (part, sites) in parts {
            let given = match &config.init_adapter {
                Some(folder) => Some(super::dreambooth_outputs::read_part(folder, part)?),
                None => None,
            };
            let attached = match given {
                Some((lora, tensors)) => attach(sites, "default", lora, Init::Tensors(&tensors))?,
                None => attach(sites, "default", lora_config(config, part), Init::Draw(&mut generator))?,
            };
            self.params.extend(
                attached.params.iter().map(|(name, param)| (format!("{}.{name}", part.name()), param.shallow_clone())),
            );
            self.adapters.push((part, attached));
        }
        Ok(())
    }

    /// Restores a checkpoint; the step that it was made at.
    fn resume(&mut self, config: &DreamBoothConfig, observer: &mut dyn Observer) -> Result<Option<u64>> {
        let Some(which) = &config.resume_from_checkpoint else { return Ok(None) };
        let folder = match which.as_str() {
            "latest" => checkpoint::latest(self.folder.path())?,
            name => {
                let inside = self.folder.join(name);
                Some(if inside.is_dir() { inside } else { PathBuf::from(name) })
            }
        };
        let Some(folder) = folder else {
            observer.warning(format!("{} holds no checkpoint yet; starting from step 0", self.folder.path().display()));
            return Ok(None);
        };
        let saved = checkpoint::load(&folder, self.device)?;
        saved.state.check_options(&self.options)?;
        checkpoint::restore_parameters(&self.params, &saved.params)?;
        self.optimizer.load_state(&self.params, &saved.optimizer)?;
        self.step = saved.state.step;
        self.resumed_at = self.step;
        self.micro_step = saved.state.micro_step;
        if let Some(state) = saved.state.scaler {
            self.scaler = Some(LossScaler::from_state(state)?);
            self.skipped = state.skipped_steps;
        }
        let log = self.folder.join("metrics.jsonl");
        if std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) < saved.state.metrics_bytes {
            observer.warning(format!("{} lacks lines of the steps before; it goes on without them", log.display()));
        }
        self.metrics = Some(MetricsLog::resume(&log, saved.state.metrics_bytes)?);
        observer.fact("resumed", format!("{} at step {}", folder.display(), self.step));
        Ok(Some(self.step))
    }

    /// Steps that the optimizer took: overflowed ones are not counted, so the learning rate waits for them.
    pub fn optimizer_steps(&self) -> u64 {
        self.step - self.skipped
    }

    /// Peak memory so far: the device's, or what this process added since it started.
    pub fn peak_bytes(&self) -> Result<u64> {
        match self.device {
            Device::Cuda(_) => Ok(memory::device_peak(self.device)?.1.max(0) as u64),
            _ => Ok(memory::host_peak()),
        }
    }

    /// Stops a run whose numbers are lost; counts float16's overflows.
    pub fn check_divergence(&mut self, loss_is_lost: bool, diverged: bool, finite: bool) -> Result<()> {
        self.skipped_in_a_row = if finite { 0 } else { self.skipped_in_a_row + 1 };
        self.skipped += u64::from(!finite);
        if !diverged && self.skipped_in_a_row <= MOST_SKIPPED && !(loss_is_lost && self.scaler.is_none()) {
            return Ok(());
        }
        Err(self.diverged("the loss is"))
    }

    /// Refuses to save weights that are no numbers: a large step can make them so behind a loss that was one.
    fn check_weights(&self) -> Result<()> {
        let params: Vec<Tensor> = self.params.values().map(Tensor::detach).collect();
        match all_finite(&params)? {
            true => Ok(()),
            false => Err(self.diverged("the trained weights are")),
        }
    }

    fn diverged(&self, what: &str) -> Error {
        let kept = match checkpoint::latest(self.folder.path()) {
            Ok(Some(folder)) => format!("the last good state is kept in {}", folder.display()),
            _ => "no checkpoint was made before it".to_owned(),
        };
        let cure = match self.kind {
            Kind::Half => "use --mixed-precision bf16 or no, or a lower --learning-rate",
            _ if self.step == 1 => "lower --learning-rate; if that does not help, the model's weights are damaged",
            _ => "lower --learning-rate, or raise --lr-warmup-steps",
        };
        let (step, learning_rate) = (self.step, self.schedule.learning_rate);
        Error::Diverged(format!("{what} not a number at step {step} (learning rate {learning_rate:e}); {kept}; {cure}"))
    }

    /// Writes a step's numbers to the logs and tells the observer.
    pub fn note(&mut self, metrics: StepMetrics, observer: &mut dyn Observer) -> Result<()> {
        if let Some(log) = &mut self.metrics {
            log.append(&metrics)?;
        }
        if let Some(events) = &mut self.events {
            let values = [
                ("loss", metrics.loss),
                ("instance_loss", metrics.instance_loss),
                ("prior_loss", metrics.prior_loss),
                ("lr", Some(metrics.lr)),
                ("grad_norm", metrics.grad_norm),
            ];
            for (tag, value) in values {
                if let Some(value) = value {
                    events.scalar(tag, value, metrics.step)?;
                }
            }
        }
        observer.on(Event::Step { metrics, total: self.total_steps });
        Ok(())
    }

    /// Puts a picture in the TensorBoard events.
    pub fn events_image(&mut self, tag: &str, png: &[u8], size: (u32, u32)) -> Result<()> {
        match &mut self.events {
            Some(events) => events.png(tag, png, size, self.step),
            None => Ok(()),
        }
    }

    /// Writes `checkpoint-N` and removes those that need not be kept.
    pub fn save_checkpoint(&mut self, keep: Option<usize>, epoch: usize) -> Result<PathBuf> {
        self.check_weights()?;
        let metrics_bytes = self.metrics.as_mut().map_or(Ok(0), MetricsLog::sync)?;
        let state = TrainingState {
            step: self.step,
            micro_step: self.micro_step,
            epoch: epoch as u64,
            seed: self.seed,
            scaler: scaler_state(&self.scaler),
            metrics_bytes,
            options: self.options.clone(),
        };
        let folder = checkpoint::save(self.folder.path(), &state, &self.params, &self.optimizer.state())?;
        if let Some(keep) = keep {
            checkpoint::prune(self.folder.path(), keep)?;
        }
        Ok(folder)
    }

    /// Writes the adapters, run.json and the loss curve.
    pub fn finish(mut self, config: &DreamBoothConfig, observer: &mut dyn Observer) -> Result<Finished> {
        self.check_weights()?;
        if let Some(log) = &mut self.metrics {
            log.sync()?;
        }
        super::dreambooth_outputs::write(&self.folder, &self.adapters, observer)?;
        let lines = metrics::read(&self.folder.join("metrics.jsonl"))?;
        loss_curve::draw(&self.folder.join("loss.png"), &lines)?;
        self.write_run_json(config, "finished")?;
        let last: Vec<f64> = lines.iter().rev().take((lines.len() / 10).max(1)).filter_map(|line| line.loss).collect();
        Ok(Finished {
            output_dir: self.folder.path().to_owned(),
            steps: self.step,
            resumed_at: self.resumed_at,
            final_loss: (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64),
        })
    }

    /// Writes `run.json` as far as the run is.
    pub fn write_run_json(&self, config: &DreamBoothConfig, status: &str) -> Result<()> {
        let trainable: i64 = self.adapters.iter().map(|(_, adapter)| adapter.trainable()).sum();
        let total: i64 = self.adapters.iter().map(|(_, adapter)| adapter.base_elements).sum();
        let device_peak = memory::device_peak(self.device)?.0;
        let run = json!({
            "status": status,
            "lorabooth": env!("CARGO_PKG_VERSION"),
            "libtorch": "2.11",
            "options": config,
            "device": format!("{:?}", self.device),
            "precision": format!("{:?}", self.kind),
            "seed": self.seed,
            "steps": self.step,
            "skipped_steps": self.skipped,
            "trainable_parameters": trainable,
            "total_parameters": total + trainable,
            "seconds": {
                "before_training": (self.training_began - self.began).as_secs_f64(),
                "training": self.training_began.elapsed().as_secs_f64(),
            },
            "peak_memory_bytes": {
                "host": memory::host_peak(),
                "host_above_start": memory::host_peak().saturating_sub(self.host_start),
                "device": device_peak,
            },
        });
        write_json(&self.folder.join("run.json"), &run)
    }
}
