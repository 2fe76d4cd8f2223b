//! What is wrong with the options of a DreamBooth run by themselves, before anything is read.

use super::dreambooth_config::{DreamBoothConfig, MAX_RANK, MAX_RESOLUTION};
use super::pattern_flag::PatternFlag;
use crate::data::photos::count_images;
use crate::error::{Error, Result};
use std::path::{Component, Path};

/// More images, or places in a batch, than any run has.
const MAX_IMAGES: u64 = 1_000_000;
/// More steps than any run has.
const MAX_STEPS: u64 = 1_000_000_000;
/// The largest alpha, weight or gamma: float32 overflows where such numbers meet.
const MAX_FACTOR: f64 = 1e6;

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::invalid(message))
}

/// What a run writes in its output folder, beside checkpoints and TensorBoard's events.
const OWN_NAMES: &[&str] =
    &["unet", "text_encoder", "samples", "run.json", "metrics.jsonl", "loss.png", "pytorch_lora_weights.safetensors"];

impl DreamBoothConfig {
    /// Refuses options that cannot be meant, each by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        self.check_counts()?;
        self.check_numbers()?;
        self.check_adapter()?;
        self.check_logging_dir()?;
        self.check_class_images()?;
        if self.accepted.push_to_hub {
            return refuse("--push-to-hub is not supported; upload the output folder with the hub's own tool".into());
        }
        Ok(())
    }

    fn check_class_images(&self) -> Result<()> {
        if !self.with_prior_preservation {
            return Ok(());
        }
        let (Some(folder), Some(_)) = (&self.class_data_dir, &self.class_prompt) else {
            return refuse("--with-prior-preservation needs --class-data-dir and --class-prompt".into());
        };
        if self.num_class_images == 0 && count_images(folder)? == 0 {
            return refuse(format!(
                "--num-class-images is 0 and {} holds no image, but --with-prior-preservation learns from class images; \
                 have some made (100 is usual), or leave --with-prior-preservation out",
                folder.display()
            ));
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<()> {
        let resolution = self.resolution;
        if resolution > MAX_RESOLUTION {
            return refuse(format!("--resolution is {resolution}; it can be at most {MAX_RESOLUTION}"));
        }
        if resolution == 0 || !resolution.is_multiple_of(8) {
            let near = ((resolution + 4) / 8 * 8).max(8);
            return refuse(format!("--resolution {resolution} is not a multiple of 8; the nearest is {near}"));
        }
        for (flag, number, least, most) in [
            ("--train-batch-size", self.train_batch_size as u64, 1, MAX_IMAGES),
            ("--sample-batch-size", self.sample_batch_size as u64, 1, MAX_IMAGES),
            ("--num-class-images", self.num_class_images as u64, 0, MAX_IMAGES),
            ("--num-validation-images", self.num_validation_images as u64, 1, MAX_IMAGES),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps, 1, MAX_IMAGES),
            ("--checkpointing-steps", self.checkpointing_steps, 1, u64::MAX),
            ("--validation-steps", self.validation_steps, 1, u64::MAX),
            ("--max-train-steps", self.max_train_steps.unwrap_or(0), 0, MAX_STEPS),
            ("--num-train-epochs", self.num_train_epochs, u64::from(self.max_train_steps.is_none()), MAX_STEPS),
            ("--lr-warmup-steps", self.lr_warmup_steps, 0, MAX_STEPS),
            ("--keep-checkpoints", self.keep_checkpoints.unwrap_or(1) as u64, 1, u64::MAX),
        ] {
            if number < least {
                return refuse(format!("{flag} is {number}; it must be at least {least}"));
            }
            if number > most {
                return refuse(format!("{flag} is {number}; it can be at most {most}"));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        for (flag, number, most) in [
            ("--learning-rate", self.learning_rate, 1e3),
            ("--prior-loss-weight", self.prior_loss_weight, MAX_FACTOR),
            ("--noise-offset", self.noise_offset, 100.0),
            ("--max-grad-norm", self.max_grad_norm, f64::MAX),
            ("--snr-gamma", self.snr_gamma.unwrap_or(1.0), MAX_FACTOR),
            ("--lr-power", self.lr_power, MAX_FACTOR),
            ("--adam-epsilon", self.adam_epsilon, 1.0),
            ("--adam-weight-decay", self.adam_weight_decay, MAX_FACTOR),
        ] {
            in_range(flag, number, most)?;
        }
        if self.adam_epsilon == 0.0 {
            return refuse("--adam-epsilon is 0, but LoRA's first gradients of A are 0, and 0/0 is no number".into());
        }
        if self.max_grad_norm == 0.0 {
            return refuse(
                "--max-grad-norm is 0, which makes every gradient 0; 1 is usual, and 1e9 cuts nothing".into(),
            );
        }
        if self.snr_gamma == Some(0.0) {
            return refuse("--snr-gamma is 0, which makes every loss 0; 5 is usual".into());
        }
        Ok(())
    }

    fn check_adapter(&self) -> Result<()> {
        let check_rank = |flag: &str, rank: i64| match (1..=MAX_RANK).contains(&rank) {
            true => Ok(()),
            false => refuse(format!("{flag} is {rank}; it must be 1 to {MAX_RANK}")),
        };
        let check_alpha = |flag: &str, alpha: f64| match alpha == 0.0 {
            true => {
                refuse(format!("{flag} is 0, with which an adapter changes nothing; its rank, or twice it, is usual"))
            }
            false => in_range(flag, alpha, MAX_FACTOR),
        };
        for (flag, dropout) in
            [("--lora-dropout", self.lora_dropout), ("--lora-text-encoder-dropout", self.lora_text_encoder_dropout)]
        {
            if !(0.0..1.0).contains(&dropout) {
                return refuse(format!("{flag} is {dropout}; it must be at least 0 and below 1"));
            }
        }
        for (flag, rank) in [("--lora-r", self.lora_r), ("--lora-text-encoder-r", self.lora_text_encoder_r)] {
            check_rank(flag, rank)?;
        }
        for (flag, alpha) in
            [("--lora-alpha", self.lora_alpha), ("--lora-text-encoder-alpha", self.lora_text_encoder_alpha)]
        {
            check_alpha(flag, alpha)?;
        }
        let ranks = [&self.lora_rank_pattern, &self.lora_text_encoder_rank_pattern];
        for (flag, PatternFlag(ranks)) in
            ["--lora-rank-pattern", "--lora-text-encoder-rank-pattern"].iter().zip(ranks).filter_map(given)
        {
            ranks.iter().try_for_each(|(name, &rank)| check_rank(&format!("{flag} of {name}"), rank))?;
        }
        let alphas = [&self.lora_alpha_pattern, &self.lora_text_encoder_alpha_pattern];
        for (flag, PatternFlag(alphas)) in
            ["--lora-alpha-pattern", "--lora-text-encoder-alpha-pattern"].iter().zip(alphas).filter_map(given)
        {
            alphas.iter().try_for_each(|(name, &alpha)| check_alpha(&format!("{flag} of {name}"), alpha))?;
        }
        Ok(())
    }

    /// A folder inside the output folder, or an absolute path: PEFT's script joins the two as paths.
    fn check_logging_dir(&self) -> Result<()> {
        let (given, path) = (&self.logging_dir, Path::new(&self.logging_dir));
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::RootDir);
        if path.file_name().is_none() || !path.components().all(inside) {
            return refuse(format!(
                "--logging-dir `{given}` is no folder inside the output folder; give a name, such as logs, or an absolute path"
            ));
        }
        let logs = self.output_dir.join(path);
        let inside = logs.strip_prefix(&self.output_dir).unwrap_or(path);
        let first = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let first = first.unwrap_or_default();
        let taken = OWN_NAMES.contains(&first.as_str()) || first.starts_with("checkpoint-");
        if taken || logs.is_file() {
            return refuse(format!("--logging-dir `{given}` has another use in the output folder; take another name"));
        }
        Ok(())
    }

    /// Sentences about options that have no effect.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.with_prior_preservation && (self.class_data_dir.is_some() || self.class_prompt.is_some()) {
            warnings.push("class options have no effect without --with-prior-preservation".to_owned());
        }
        if self.with_prior_preservation && self.prior_loss_weight == 0.0 {
            warnings.push("--prior-loss-weight is 0: the class images cost time and teach nothing".to_owned());
        }
        if self.learning_rate == 0.0 {
            warnings.push("--learning-rate is 0: nothing is learned".to_owned());
        }
        match self.accepted.report_to.as_deref() {
            None | Some("tensorboard") => {}
            Some(other) => {
                warnings.push(format!("--report-to {other} is not supported; TensorBoard events are written"))
            }
        }
        warnings
    }
}

/// A flag and its value, where it was given.
fn given<'a, T>((flag, value): (&'a &'static str, &'a Option<T>)) -> Option<(&'static str, &'a T)> {
    value.as_ref().map(|value| (*flag, value))
}

fn in_range(flag: &str, number: f64, most: f64) -> Result<()> {
    if !number.is_finite() || number < 0.0 {
        return refuse(format!("{flag} is {number}; it must be a number of at least 0"));
    }
    match number <= most {
        true => Ok(()),
        false => refuse(format!("{flag} is {number:e}; it can be at most {most}")),
    }
}
