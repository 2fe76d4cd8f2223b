//! diffusers-rs' samplers, for the configurations that they compute as Python's diffusers does: those of Stable
//! Diffusion 1.x (PNDM) and 2.x (DDIM). They know the leading spacing and no clipping, and no betas but two kinds.

use super::config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};
use super::{NoiseSource, Scheduler};
use diffusers::schedulers::ddim::{DDIMScheduler, DDIMSchedulerConfig};
use diffusers::schedulers::pndm::{PNDMScheduler, PNDMSchedulerConfig};
use diffusers::schedulers::{BetaSchedule as TheirBetas, PredictionType as TheirPrediction};
use tch::Tensor;

/// A sampler of diffusers-rs behind [`Scheduler`].
struct Adapted<S> {
    sampler: S,
    timesteps: Vec<f64>,
}

/// diffusers-rs' PNDM, where it equals `PNDMScheduler.from_config(config)`.
pub fn pndm(config: &SchedulerConfig, steps: usize) -> Option<Box<dyn Scheduler>> {
    // Theirs has no Runge-Kutta warm-up, and looks for a second timestep.
    if config.skip_prk_steps != Some(true) || steps < 2 {
        return None;
    }
    let sampler = PNDMScheduler::new(
        steps,
        PNDMSchedulerConfig {
            beta_start: config.beta_start?,
            beta_end: config.beta_end?,
            beta_schedule: their_betas(config)?,
            set_alpha_to_one: config.set_alpha_to_one.unwrap_or(false),
            prediction_type: their_prediction(config),
            steps_offset: config.steps_offset() as usize,
            train_timesteps: config.num_train_timesteps() as usize,
        },
    );
    let timesteps = sampler.timesteps().iter().map(|t| *t as f64).collect();
    Some(Box::new(Adapted { sampler, timesteps }))
}

/// diffusers-rs' DDIM, where it equals `DDIMScheduler.from_config(config)`.
pub fn ddim(config: &SchedulerConfig, steps: usize) -> Option<Box<dyn Scheduler>> {
    let clips = config.clip_sample.unwrap_or(true);
    if clips || config.set_alpha_to_one.unwrap_or(true) || config.zero_snr() {
        return None;
    }
    let sampler = DDIMScheduler::new(
        steps,
        DDIMSchedulerConfig {
            beta_start: config.beta_start?,
            beta_end: config.beta_end?,
            beta_schedule: their_betas(config)?,
            eta: 0.0,
            steps_offset: config.steps_offset() as usize,
            prediction_type: their_prediction(config),
            train_timesteps: config.num_train_timesteps() as usize,
        },
    );
    let timesteps = sampler.timesteps().iter().map(|t| *t as f64).collect();
    Some(Box::new(Adapted { sampler, timesteps }))
}

/// Their betas, where they compute them right (their cosine schedule divides whole numbers) and space leading.
fn their_betas(config: &SchedulerConfig) -> Option<TheirBetas> {
    let leading = config.timestep_spacing.is_none_or(|spacing| spacing == TimestepSpacing::Leading);
    if !leading || config.trained_betas.is_some() {
        return None;
    }
    match config.beta_schedule.unwrap_or_default() {
        BetaSchedule::Linear => Some(TheirBetas::Linear),
        BetaSchedule::ScaledLinear => Some(TheirBetas::ScaledLinear),
        BetaSchedule::SquaredcosCapV2 => None,
    }
}

fn their_prediction(config: &SchedulerConfig) -> TheirPrediction {
    match config.prediction_type() {
        PredictionType::Epsilon => TheirPrediction::Epsilon,
        PredictionType::VPrediction => TheirPrediction::VPrediction,
        PredictionType::Sample => TheirPrediction::Sample,
    }
}

impl Scheduler for Adapted<PNDMScheduler> {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, output: &Tensor, step_index: usize, sample: &Tensor, _noise: &mut NoiseSource<'_>) -> Tensor {
        self.sampler.step(output, self.timesteps[step_index] as usize, sample)
    }
}

impl Scheduler for Adapted<DDIMScheduler> {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, output: &Tensor, step_index: usize, sample: &Tensor, _noise: &mut NoiseSource<'_>) -> Tensor {
        self.sampler.step(output, self.timesteps[step_index] as usize, sample)
    }
}
