//! Euler's method along the noise levels, and its ancestral form that adds fresh noise at every step.
//! Paper: arXiv 2206.00364, algorithm 2. Reference: diffusers `scheduling_euler_discrete.py`,
//! `scheduling_euler_ancestral_discrete.py`.

use super::config::{refuse, PredictionType, SchedulerConfig, TimestepSpacing};
use super::sigmas::{final_sigma, training_sigmas, Sigmas};
use super::{spacing, NoiseSource, Scheduler};
use crate::error::Result;
use tch::Tensor;

/// `EulerDiscreteScheduler`.
struct Euler {
    sigmas: Sigmas,
}

/// `EulerAncestralDiscreteScheduler`.
struct EulerAncestral {
    sigmas: Sigmas,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    config.check_sigmas()?;
    SchedulerConfig::check_text("interpolation_type", &config.interpolation_type, &["linear"])?;
    SchedulerConfig::check_text("timestep_type", &config.timestep_type, &["discrete"])?;
    let training = training_sigmas(config, true, (0.0001, 0.02))?;
    let timesteps = spacing::continuous(config, steps, TimestepSpacing::Linspace);
    let use_karras = config.use_karras_sigmas == Some(true);
    let sigmas = Sigmas::new(config, &training, timesteps, final_sigma(config, &training), use_karras);
    Ok(Box::new(Euler { sigmas }))
}

pub(super) fn new_ancestral(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    refuse(config.prediction_type() == PredictionType::Sample, "prediction_type", "sample")?;
    let training = training_sigmas(config, true, (0.0001, 0.02))?;
    let timesteps = spacing::continuous(config, steps, TimestepSpacing::Linspace);
    Ok(Box::new(EulerAncestral { sigmas: Sigmas::new(config, &training, timesteps, 0.0, false) }))
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.sigmas.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.sigmas.init_noise_sigma()
    }

    fn scale_model_input(&self, sample: &Tensor, step_index: usize) -> Tensor {
        self.sigmas.scale_model_input(sample, step_index)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        step_index: usize,
        sample: &Tensor,
        _noise: &mut NoiseSource<'_>,
    ) -> Tensor {
        let (sigma, next) = (self.sigmas.levels[step_index], self.sigmas.levels[step_index + 1]);
        let derivative = (sample - self.sigmas.original(model_output, sigma, sample)) / f64::from(sigma);
        sample + derivative * f64::from(next - sigma)
    }
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.sigmas.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.sigmas.init_noise_sigma()
    }

    fn scale_model_input(&self, sample: &Tensor, step_index: usize) -> Tensor {
        self.sigmas.scale_model_input(sample, step_index)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        step_index: usize,
        sample: &Tensor,
        noise: &mut NoiseSource<'_>,
    ) -> Tensor {
        let (sigma, next) = (self.sigmas.levels[step_index], self.sigmas.levels[step_index + 1]);
        let derivative = (sample - self.sigmas.original(model_output, sigma, sample)) / f64::from(sigma);
        // Down below the next level, and up to it with fresh noise.
        let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
        let down = (next * next - up * up).sqrt();
        let fresh = noise(&sample.size()).to_device(sample.device());
        sample + derivative * f64::from(down - sigma) + fresh * f64::from(up)
    }
}
