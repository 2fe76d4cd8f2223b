//! What the trainings share: flags, the optimizer's step, averaged weights, checkpoints, the log.

use clap::Args;
use lorabooth::error::{Error, Result};
use lorabooth::interrupt::Interrupt;
use lorabooth::libtorch::memory;
use lorabooth::libtorch::random::Generator;
use lorabooth::train::adamw::AdamWConfig;
use lorabooth::train::checkpoint::{self, TrainingState};
use lorabooth::train::gradients::{clip, grad_norm, gradients};
use lorabooth::train::lr_schedule::{LrSchedule, ScheduleKind};
use lorabooth::train::metrics::{MetricsLog, StepMetrics};
use lorabooth::train::optimizer::Optimizer;
use lorabooth::train::Parameters;
use lorabooth::weights::Placement;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Steps between two lines of the log.
const LOG_EVERY: u64 = 50;
/// Checkpoints that are kept.
const KEEP: usize = 2;
/// Prefix of the averages' names in a checkpoint.
const AVERAGE: &str = "average/";

#[derive(Args)]
pub struct TrainingArgs {
    /// What it starts from: a pipeline with its weights, or a T5's folder without
    #[arg(long, visible_alias = "init-from")]
    pub model: PathBuf,
    /// What prepare_corpus.py wrote, or a file of pairs
    #[arg(long)]
    pub corpus: PathBuf,
    /// Folder of checkpoints, log, pictures and the trained `model`; a run that already exists goes on
    #[arg(long)]
    pub output: PathBuf,
    /// Optimizer steps: where the learning rate has fallen to 0
    #[arg(long)]
    pub steps: u64,
    /// Pictures, or pairs, a step
    #[arg(long)]
    pub batch_size: usize,
    /// At the top of the cosine
    #[arg(long, default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// Steps over which the learning rate rises
    #[arg(long, default_value_t = 200)]
    pub warmup: u64,
    /// The averaged weights' decay a step
    #[arg(long, default_value_t = 0.998)]
    pub average_decay: f64,
    /// Steps between checkpoints, each with a look at what it can do
    #[arg(long, default_value_t = 1000)]
    pub checkpoint_every: u64,
    /// Compute in bfloat16
    #[arg(long)]
    pub bf16: bool,
    /// Of all draws
    #[arg(long, default_value_t = 0)]
    pub seed: i64,
}

impl TrainingArgs {
    /// Where the networks compute.
    pub fn placement(&self) -> Placement {
        Placement { device: Device::Cpu, kind: if self.bf16 { Kind::BFloat16 } else { Kind::Float } }
    }
}

/// A run between two of its steps.
pub struct Training<'a> {
    args: &'a TrainingArgs,
    params: Parameters,
    average: Parameters,
    optimizer: Optimizer,
    schedule: LrSchedule,
    step: u64,
    log: MetricsLog,
    since_log: (Instant, f64),
    interrupt: Interrupt,
}

impl<'a> Training<'a> {
    /// A run of `params`, named `NETWORK.KEY`; it goes on where the last checkpoint in the output folder stands.
    pub fn begin(args: &'a TrainingArgs, params: Parameters) -> Result<Self> {
        let average = params.iter().map(|(name, param)| (name.clone(), param.detach().copy())).collect();
        std::fs::create_dir_all(&args.output).map_err(|error| Error::io("create", &args.output, error))?;
        let schedule = LrSchedule {
            kind: ScheduleKind::Cosine,
            warmup_steps: args.warmup,
            total_steps: args.steps,
            ..LrSchedule::constant(args.learning_rate)
        };
        let mut training = Self {
            args,
            params,
            average,
            optimizer: Optimizer::new(AdamWConfig::default(), false)?,
            schedule,
            step: 0,
            log: MetricsLog::resume(&args.output.join("metrics.jsonl"), 0)?,
            since_log: (Instant::now(), 0.0),
            interrupt: Interrupt::on_signals()?,
        };
        if let Some(folder) = checkpoint::latest(&args.output)? {
            let saved = checkpoint::load(&folder, Device::Cpu)?;
            checkpoint::restore_parameters(&training.everything(), &saved.params)?;
            training.optimizer.load_state(&training.params, &saved.optimizer)?;
            training.step = saved.state.step;
            training.log = MetricsLog::resume(&args.output.join("metrics.jsonl"), saved.state.metrics_bytes)?;
            eprintln!("goes on from {}", folder.display());
        }
        Ok(training)
    }

    /// Parameters and averages under their names in a checkpoint.
    fn everything(&self) -> Parameters {
        let shared = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
        let average = self.average.iter().map(|(name, tensor)| (format!("{AVERAGE}{name}"), tensor.shallow_clone()));
        self.params.iter().map(shared).chain(average).collect()
    }

    /// What the next step draws from, or none where the run ends here. The draws depend on the seed and the step alone.
    pub fn next_step(&self) -> Option<Generator> {
        let goes_on = self.step < self.args.steps && !self.interrupt.requested();
        goes_on.then(|| Generator::new(self.args.seed * 1_000_003 + self.step as i64))
    }

    /// One step down the slope of `loss`.
    pub fn learn(&mut self, loss: &Tensor) -> Result<()> {
        self.optimizer.zero_grad(&self.params)?;
        loss.backward();
        let grads = gradients(&self.params);
        let norm = f32::try_from(grad_norm(&grads)?)?;
        clip(&grads, norm, 1.0)?;
        let lr = self.schedule.lr(self.step);
        self.optimizer.step(&self.params, lr)?;
        self.step += 1;
        self.update_average();
        self.since_log.1 += loss.double_value(&[]);
        match self.step.is_multiple_of(LOG_EVERY) {
            true => self.write_log(lr, norm.into()),
            false => Ok(()),
        }
    }

    /// The averages follow fast at first, when all is still far from its place.
    fn update_average(&mut self) {
        let _no_grad = tch::no_grad_guard();
        let step = self.step as f64;
        let decay = self.args.average_decay.min((1.0 + step) / (10.0 + step));
        for (average, param) in self.average.values().zip(self.params.values()) {
            let _ = average.shallow_clone().lerp_(param, 1.0 - decay);
        }
    }

    fn write_log(&mut self, lr: f64, grad_norm: f64) -> Result<()> {
        let (started, losses) = std::mem::replace(&mut self.since_log, (Instant::now(), 0.0));
        let loss = losses / LOG_EVERY as f64;
        if !loss.is_finite() {
            return Err(Error::Diverged(format!("the loss is {loss} at step {}", self.step)));
        }
        let step_s = started.elapsed().as_secs_f64() / LOG_EVERY as f64;
        let (step, steps, rate) = (self.step, self.args.steps, self.args.batch_size as f64 / step_s);
        eprintln!("step {step} of {steps}, loss {loss:.4}, gradient {grad_norm:.2}, lr {lr:.2e}, {rate:.1} examples/s");
        self.log.append(&StepMetrics {
            step,
            epoch: 0,
            loss: Some(loss),
            parts: BTreeMap::new(),
            lr,
            grad_norm: Some(grad_norm),
            step_s,
            peak_mib: memory::host_peak() as f64 / f64::from(1 << 20),
        })
    }

    /// Whether it is time for a checkpoint.
    pub fn save_is_due(&self) -> bool {
        self.step.is_multiple_of(self.args.checkpoint_every)
            || self.step == self.args.steps
            || self.interrupt.requested()
    }

    /// Writes a checkpoint.
    pub fn save(&mut self) -> Result<()> {
        let state = TrainingState {
            step: self.step,
            micro_step: self.step,
            epoch: 0,
            batches_per_epoch: 0,
            seed: self.args.seed,
            scaler: None,
            metrics_bytes: self.log.sync()?,
            evaluation_is_owed: false,
            measures: Vec::new(),
            options: BTreeMap::new(),
        };
        checkpoint::save(&self.args.output, &state, &self.everything(), &self.optimizer.state(), |_| Ok(()))?;
        checkpoint::prune(&self.args.output, KEEP)
    }

    /// The step's number, for file names.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The averaged weights of the network of that name, by key.
    pub fn average_of(&self, network: &str) -> BTreeMap<String, Tensor> {
        let prefix = format!("{network}.");
        let of_network =
            |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.copy()));
        self.average.iter().filter_map(of_network).collect()
    }

    /// Runs `work` with the averaged weights in the networks, without gradients.
    pub fn with_average<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _no_grad = tch::no_grad_guard();
        let copies: Vec<Tensor> = self.params.values().map(|param| param.detach().copy()).collect();
        let put = |values: &mut dyn Iterator<Item = &Tensor>| {
            self.params.values().zip(values).for_each(|(param, value)| param.shallow_clone().copy_(value));
        };
        put(&mut self.average.values());
        let done = work();
        put(&mut copies.iter());
        done
    }
}

/// The trained tensors of a network under the names that a run has for them.
pub fn named(network: &str, weights: BTreeMap<String, Tensor>) -> impl Iterator<Item = (String, Tensor)> + use<'_> {
    weights.into_iter().map(move |(key, weight)| (format!("{network}.{key}"), weight))
}
