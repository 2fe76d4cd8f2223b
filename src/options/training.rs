//! The options that every training has, whatever it trains: steps, optimizer, precision, checkpoints.

use super::checks::{counted, in_range, refuse, MAX_FACTOR, MAX_PLACES};
use super::hub::HubArgs;
use super::precision::MixedPrecision;
use super::ranks::RanksArgs;
use super::storage::{Offload, StorageArgs};
use super::values::{name_of, optional_name_of};
use crate::error::Result;
use crate::libtorch::startup;
use crate::train::adamw::AdamWConfig;
use crate::train::checkpoint;
use crate::train::data_parallel::Ranks;
use crate::train::lr_schedule::{LrSchedule, ScheduleKind};
use crate::train::measure::Measure;
use crate::train::precision::Precision;
use crate::train::run_folder::{is_written_by_a_run, ExistingRun, RunFolder};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::{Component, Path, PathBuf};
use tch::Device;

/// More steps than any run has.
const MAX_STEPS: u64 = 1_000_000_000;

/// `--gradient-accumulation-average`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccumulationAverage {
    /// By the full number of accumulation steps, as accelerate does.
    Full,
    /// By the batches that are there.
    Present,
}

/// `--on-oom`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub enum OnOom {
    /// The run ends, with its state saved.
    Stop,
    /// It turns on what saves memory, one option after another, and makes the step again.
    StepDown,
}

/// Options of a training.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TrainingArgs {
    /// Number of epochs, if --max-train-steps is not given. With neither: one epoch of records; of photos 120 steps a photo, from
    /// 400 to 1200
    #[arg(long, alias = "max-train-epochs", help_heading = "Training")]
    pub num_train_epochs: Option<u64>,
    /// Optimizer steps; 0 writes the initial adapter
    #[arg(long, visible_alias = "steps", value_name = "STEPS", help_heading = "Training")]
    pub max_train_steps: Option<u64>,
    /// Batches to accumulate gradients over before each optimizer step; the last group of an epoch can be shorter
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    pub gradient_accumulation_steps: u64,
    /// What the gradients of an epoch's last, shorter group are divided by: full (the accumulation steps, as in accelerate, so
    /// that the group counts for less) or present (the number of its batches)
    #[arg(long, value_enum, default_value_t = AccumulationAverage::Full, help_heading = "Training")]
    pub gradient_accumulation_average: AccumulationAverage,
    /// Recompute activations in the backward pass to save memory
    #[arg(long, help_heading = "Training")]
    pub gradient_checkpointing: bool,
    /// When memory is full: stop, or turn on checkpointing, slicing, offload and a smaller batch with accumulation, one after
    /// another, and make the step again. By default stop; on the page and in the demo step-down
    #[arg(long, value_enum, help_heading = "Memory")]
    #[serde(serialize_with = "optional_name_of")]
    pub on_oom: Option<OnOom>,
    /// Scale the learning rate by the batch size, the accumulation steps and the number of processes
    #[arg(long, help_heading = "Training")]
    pub scale_lr: bool,
    /// Learning-rate schedule
    #[arg(long, value_enum, default_value_t = ScheduleKind::Constant, help_heading = "Training")]
    #[serde(serialize_with = "name_of")]
    pub lr_scheduler: ScheduleKind,
    /// Optimizer steps of linear warmup at the start
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub lr_warmup_steps: u64,
    /// Number of cycles of cosine_with_restarts
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    pub lr_num_cycles: u64,
    /// Exponent of the polynomial schedule
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub lr_power: f64,
    /// Use 8-bit AdamW: an optimizer state of 2 bytes a parameter in place of 8
    #[arg(long, help_heading = "Training")]
    pub use_8bit_adam: bool,
    /// AdamW's beta1: decay rate of the gradients' mean
    #[arg(long, default_value_t = 0.9, help_heading = "Training")]
    pub adam_beta1: f64,
    /// AdamW's beta2: decay rate of their squares' mean
    #[arg(long, default_value_t = 0.999, help_heading = "Training")]
    pub adam_beta2: f64,
    /// AdamW's weight decay
    #[arg(long, default_value_t = 1e-2, help_heading = "Training")]
    pub adam_weight_decay: f64,
    /// AdamW's epsilon
    #[arg(long, default_value_t = 1e-8, help_heading = "Training")]
    pub adam_epsilon: f64,
    /// Clip the gradient norm to this value
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub max_grad_norm: f64,
    /// How frozen weights are kept.
    #[command(flatten)]
    #[serde(flatten)]
    pub weights: StorageArgs,
    /// Dtype of the frozen weights and the computation; the adapter itself is trained in fp32
    #[arg(long, value_enum, default_value_t = MixedPrecision::Auto, help_heading = "Training")]
    pub mixed_precision: MixedPrecision,
    /// Layers to keep and compute in fp32 where the others are in 16 bits, by their paths, such as
    /// unet.mid_block.resnets.0.conv2, or vae; a run adds those whose numbers overflow in fp16
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', help_heading = "Training")]
    pub fp32_layers: Vec<String>,
    /// On a GPU use deterministic kernels alone, so that runs repeat and resume to the same bits there as they do on the CPU;
    /// somewhat slower
    #[arg(long, help_heading = "Training")]
    pub deterministic: bool,
    /// Replace what is already in the output folder: another run, or an adapter of another program
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Continue from a checkpoint: latest, or the folder checkpoint-N (with --overwrite where later ones are beside it)
    #[arg(long, visible_alias = "resume", num_args = 0..=1, default_missing_value = "latest", help_heading = "Output")]
    pub resume_from_checkpoint: Option<String>,
    /// Save a checkpoint every so many optimizer steps
    #[arg(long, visible_alias = "save-every", default_value_t = 500, help_heading = "Output")]
    pub checkpointing_steps: u64,
    /// Keep only the newest checkpoints, this many; all by default
    #[arg(long, alias = "checkpoints-total-limit", help_heading = "Output")]
    pub keep_checkpoints: Option<usize>,
    /// Folder for TensorBoard logs: a name in the output folder, or an absolute path
    #[arg(long, default_value = "logs", help_heading = "Output")]
    pub logging_dir: String,
    /// Whether the adapter goes to the hub.
    #[command(flatten)]
    #[serde(flatten)]
    pub hub: HubArgs,
    /// On how many GPUs it is.
    #[command(flatten)]
    #[serde(flatten)]
    pub ranks_args: RanksArgs,
    /// The command line that asked for the run, for run.json.
    #[arg(skip)]
    #[serde(skip)]
    pub command: Option<String>,
    /// The processes that train together, of which this is one.
    #[arg(skip)]
    #[serde(skip)]
    pub ranks: Ranks,
}

impl TrainingArgs {
    /// Refuses what cannot be meant, each by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        self.weights.check()?;
        self.ranks_args.check()?;
        for (flag, number, least, most) in [
            ("⟨gradient_accumulation_steps⟩", self.gradient_accumulation_steps, 1, MAX_PLACES),
            ("⟨checkpointing_steps⟩", self.checkpointing_steps, 1, u64::MAX),
            ("⟨max_train_steps⟩", self.max_train_steps.unwrap_or(0), 0, MAX_STEPS),
            (
                "⟨num_train_epochs⟩",
                self.num_train_epochs.unwrap_or(1),
                u64::from(self.max_train_steps.is_none()),
                MAX_STEPS,
            ),
            ("⟨lr_warmup_steps⟩", self.lr_warmup_steps, 0, MAX_STEPS),
            ("⟨lr_num_cycles⟩", self.lr_num_cycles, 0, MAX_STEPS),
            ("⟨keep_checkpoints⟩", self.keep_checkpoints.unwrap_or(1) as u64, 1, u64::MAX),
        ] {
            counted(flag, number, least, most)?;
        }
        for (flag, number, most) in [
            ("⟨max_grad_norm⟩", self.max_grad_norm, f64::MAX),
            ("⟨lr_power⟩", self.lr_power, MAX_FACTOR),
            ("⟨adam_epsilon⟩", self.adam_epsilon, 1.0),
            ("⟨adam_weight_decay⟩", self.adam_weight_decay, MAX_FACTOR),
        ] {
            in_range(flag, number, most)?;
        }
        if self.adam_epsilon == 0.0 {
            return refuse(
                "⟨adam_epsilon⟩ is 0, but LoRA's first gradients of A are 0, and 0/0 is not a number".into(),
            );
        }
        if self.max_grad_norm == 0.0 {
            return refuse(
                "⟨max_grad_norm⟩ is 0, which makes every gradient 0; 1 is usual, and 1e9 cuts nothing".into(),
            );
        }
        Ok(())
    }

    /// Options that have no effect, each in a sentence.
    pub fn warnings(&self) -> Vec<String> {
        let has_warmup = !matches!(self.lr_scheduler, ScheduleKind::Constant);
        let mut warnings = Vec::new();
        if self.lr_warmup_steps > 0 && !has_warmup {
            warnings.push(
                "⟨lr_warmup_steps⟩ has no effect with ⟨lr_scheduler⟩ constant; constant_with_warmup has a warm-up"
                    .to_owned(),
            );
        }
        warnings
    }

    /// `--logging-dir` is a folder inside `output`, or an absolute path: PEFT's script joins the two as paths.
    pub fn check_logging_dir(&self, output: &Path) -> Result<()> {
        let (given, path) = (&self.logging_dir, Path::new(&self.logging_dir));
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::RootDir);
        if path.file_name().is_none() || !path.components().all(inside) {
            return refuse(format!(
                "⟨logging_dir⟩ `{given}` is not a folder inside the output folder; give a name, such as logs, or an absolute path"
            ));
        }
        let logs = output.join(path);
        let inside = logs.strip_prefix(output).unwrap_or(path);
        let first = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        if is_written_by_a_run(&first.unwrap_or_default()) {
            return refuse(format!(
                "⟨logging_dir⟩ `{given}` is a name that a run uses itself in the output folder; choose another name"
            ));
        }
        if logs.exists() && !logs.is_dir() {
            let path = logs.display();
            return refuse(format!(
                "{path} is a file, and the run needs a folder of that name for its TensorBoard logs; move it away, or name another \
                 folder with ⟨logging_dir⟩"
            ));
        }
        Ok(())
    }

    /// Refuses to read, as `flag` says, what the run itself writes to `output`: it would be replaced.
    pub fn check_stays(flag: &str, path: &Path, output: &Path) -> Result<()> {
        let (Ok(real), Ok(real_output)) = (path.canonicalize(), output.canonicalize()) else { return Ok(()) };
        let Ok(inside) = real.strip_prefix(&real_output) else { return Ok(()) };
        let first = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        match first.is_none_or(|first| is_written_by_a_run(&first)) {
            true => refuse(format!(
                "{flag} {} is what a run writes to ⟨output_dir⟩ {}, which this one would replace; give another ⟨output_dir⟩",
                path.display(),
                output.display()
            )),
            false => Ok(()),
        }
    }

    /// The dtype of the computation on `device`.
    pub fn precision(&self, device: Device) -> Precision {
        self.mixed_precision.on(device)
    }

    /// Has libtorch use deterministic kernels alone where that was asked for. On the CPU all are.
    pub fn choose_kernels(&self, device: Device) -> Result<()> {
        match device {
            Device::Cuda(_) => startup::use_deterministic_kernels(self.deterministic),
            _ => Ok(()),
        }
    }

    /// Turns on what `measure` is, where it is of every training; `batch` is the batch size.
    pub fn take(&mut self, measure: &Measure, batch: &mut usize) {
        match measure {
            Measure::GradientCheckpointing => self.gradient_checkpointing = true,
            Measure::Offload => self.weights.offload = Offload::Cpu,
            Measure::Batch { size, accumulation } => {
                // The last, shorter batch of an epoch counted in full.
                if self.gradient_accumulation_steps == 1 {
                    self.gradient_accumulation_average = AccumulationAverage::Present;
                }
                (*batch, self.gradient_accumulation_steps) = (*size, *accumulation);
            }
            // Of what draws, which not every training does.
            Measure::Slicing | Measure::VaeTiling | Measure::SampleBatch { .. } => {}
            Measure::Fp32 { layer } => self.fp32_layers.push(layer.clone()),
        }
    }

    /// The optimizer's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            betas: (self.adam_beta1, self.adam_beta2),
            weight_decay: self.adam_weight_decay,
            eps: self.adam_epsilon,
        }
    }

    /// By what learning rates are multiplied: the examples of a step where that is asked for.
    pub fn learning_rate_factor(&self, batch_size: usize) -> f64 {
        match self.scale_lr {
            true => self.gradient_accumulation_steps as f64 * batch_size as f64 * self.ranks.count() as f64,
            false => 1.0,
        }
    }

    /// The learning rate's course, whose number of steps is not known yet.
    pub fn schedule(&self, learning_rate: f64, batch_size: usize) -> LrSchedule {
        LrSchedule {
            kind: self.lr_scheduler,
            learning_rate: learning_rate * self.learning_rate_factor(batch_size),
            warmup_steps: self.lr_warmup_steps,
            total_steps: 0,
            num_cycles: self.lr_num_cycles,
            power: self.lr_power,
        }
    }

    /// Optimizer steps of a run with `steps_per_epoch`; `usual` where neither steps nor epochs are given.
    pub fn steps(&self, steps_per_epoch: u64, usual: Option<u64>) -> u64 {
        self.max_train_steps.unwrap_or(match (self.num_train_epochs, usual) {
            (None, Some(usual)) => usual,
            (epochs, _) => epochs.unwrap_or(1).saturating_mul(steps_per_epoch),
        })
    }

    /// By how many batches the gradients of a group are divided that begins with an epoch's batch `first`.
    pub fn accumulation_divisor(&self, first: usize, batches_per_epoch: usize) -> u64 {
        let full = self.gradient_accumulation_steps;
        match self.gradient_accumulation_average {
            AccumulationAverage::Full => full,
            AccumulationAverage::Present => full.min(batches_per_epoch.saturating_sub(first).max(1) as u64),
        }
    }

    /// What becomes of what is in the output folder already. A checkpoint of another folder goes on in this one as a new run does.
    pub fn existing(&self, output: &Path) -> ExistingRun {
        // Joined to the folder, a name is of it, and an absolute path stays what it is.
        let is_inside =
            |which: &str| which == "latest" || is_in(&output.join(which), output) || is_in(Path::new(which), output);
        match (&self.resume_from_checkpoint, self.overwrite) {
            (Some(which), _) if is_inside(which) => ExistingRun::Resume,
            (_, true) => ExistingRun::Overwrite,
            (_, false) => ExistingRun::Refuse,
        }
    }

    /// The folder of the checkpoint that is named to resume from: in the folder `output`, or by its path. None for the latest.
    pub fn named_checkpoint(&self, output: &Path) -> Option<PathBuf> {
        let which = self.resume_from_checkpoint.as_deref().filter(|which| *which != "latest")?;
        Some([output.join(which), PathBuf::from(which)].into_iter().find(|path| path.is_dir()).unwrap_or(which.into()))
    }

    /// Of a run that its launcher started again after a process of it died: it goes on where it left something.
    pub fn go_on_after_a_restart(&mut self, output: &Path) {
        if self.ranks.restarts() > 0 && RunFolder::has_traces(output) {
            self.resume_from_checkpoint = Some("latest".to_owned());
            self.overwrite = false;
        }
    }

    /// Refuses to resume from a checkpoint that is not there, and unasked from one whose run went on behind it in the same folder: two
    /// histories would mix there, of which a later `--resume` takes the older.
    pub fn check_resumed(&self, output: &Path) -> Result<()> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let Some(folder) = self.named_checkpoint(output) else { return Ok(()) };
        if !folder.is_dir() {
            return refuse(format!(
                "⟨resume⟩ {}: no such checkpoint in {}, nor is it a folder's path; name a checkpoint-N, or give ⟨resume⟩ alone \
                 for the latest",
                folder.display(),
                output.display()
            ));
        }
        if self.overwrite || self.existing(output) != ExistingRun::Resume {
            return Ok(());
        }
        let later = checkpoint::later_than(&folder, output)?;
        let names: Vec<String> = later.iter().map(|path| path.display().to_string()).collect();
        let there = match names.as_slice() {
            [] => return Ok(()),
            [one] => format!("{one} was saved after it"),
            [first, .., last] => format!("{} checkpoints were saved after it, {first} to {last}", names.len()),
        };
        refuse(format!(
            "⟨resume⟩ {}: {there}; add ⟨overwrite⟩ to continue from here and remove what came after, with its lines of \
             metrics.jsonl, or keep it and continue in another ⟨output_dir⟩",
            folder.display()
        ))
    }
}

/// Whether `path` lies in `folder`.
fn is_in(path: &Path, folder: &Path) -> bool {
    match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn args(text: &str) -> TrainingArgs {
        let command = TrainingArgs::augment_args(clap::Command::new("train").no_binary_name(true));
        TrainingArgs::from_arg_matches(&command.get_matches_from(text.split_whitespace())).unwrap()
    }

    #[test]
    fn a_usual_length_is_taken_where_nothing_else_is_asked_for() {
        for (text, with_usual, without) in [
            ("", 600, 5),
            ("--num-train-epochs 1", 5, 5),
            ("--num-train-epochs 3", 15, 15),
            ("--max-train-steps 7", 7, 7),
            ("--max-train-steps 0", 0, 0),
            ("--max-train-steps 7 --num-train-epochs 3", 7, 7),
        ] {
            let args = args(text);
            assert_eq!((args.steps(5, Some(600)), args.steps(5, None)), (with_usual, without), "{text}");
        }
    }

    #[test]
    fn a_checkpoint_of_another_folder_goes_on_as_a_new_run_does() {
        let folder = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|name| folder.path().join(name).join("checkpoint-1"));
        [&own, &other].iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
        let existing = |text: &str| args(text).existing(own.parent().unwrap());
        let (own_path, other_path) = (own.display(), other.display());
        for text in
            ["--resume", "--resume latest", "--resume checkpoint-1", &format!("--resume {own_path} --overwrite")]
        {
            assert_eq!(existing(text), ExistingRun::Resume, "{text}");
        }
        assert_eq!(existing(&format!("--resume {other_path}")), ExistingRun::Refuse);
        assert_eq!(existing(&format!("--resume {other_path} --overwrite")), ExistingRun::Overwrite);
        assert_eq!((existing(""), existing("--overwrite")), (ExistingRun::Refuse, ExistingRun::Overwrite));
    }

    #[test]
    fn a_short_group_is_divided_by_what_it_is_told_to_be() {
        let divisors = |text: &str| [0, 4, 8].map(|first| args(text).accumulation_divisor(first, 9));
        assert_eq!(divisors("--gradient-accumulation-steps 4"), [4, 4, 4]);
        let present = "--gradient-accumulation-steps 4 --gradient-accumulation-average present";
        assert_eq!(divisors(present), [4, 4, 1]);
        assert_eq!(args(present).accumulation_divisor(0, 2), 2);
    }
}
