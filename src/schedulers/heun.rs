//! Heun's method along the noise levels: two calls of the model a step, except the last.
//! Paper: arXiv 2206.00364, algorithm 1. Reference: diffusers `scheduling_heun_discrete.py`.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::sigmas::{training_sigmas, Sigmas};
use super::{spacing, NoiseSource, Scheduler};
use crate::error::Result;
use tch::Tensor;

/// `HeunDiscreteScheduler`. Levels and timesteps but the first stand twice, once for each half of a step.
struct Heun {
    sigmas: Sigmas,
    clip: Option<f64>,
    /// Latents, derivative and step size of the first half.
    first: Option<(Tensor, Tensor, f32)>,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    config.check_sigmas()?;
    let training = training_sigmas(config, false, (0.00085, 0.012))?;
    let timesteps = spacing::continuous(config, steps, TimestepSpacing::Linspace);
    let mut sigmas = Sigmas::new(config, &training, timesteps, 0.0, config.use_karras_sigmas == Some(true));
    let last = sigmas.levels.len() - 1;
    let levels = &sigmas.levels;
    let twice = |i: usize, count: usize| if i == 0 || i == count { 1 } else { 2 };
    sigmas.levels =
        levels.iter().enumerate().flat_map(|(i, level)| std::iter::repeat_n(*level, twice(i, last))).collect();
    let timesteps = sigmas.timesteps.iter().enumerate();
    sigmas.timesteps = timesteps.flat_map(|(i, t)| std::iter::repeat_n(*t, twice(i, last))).collect();
    Ok(Box::new(Heun { sigmas, clip: config.clip_range(false), first: None }))
}

impl Scheduler for Heun {
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
        let sigma = self.sigmas.levels[step_index];
        let mut original = self.sigmas.original(model_output, sigma, sample);
        if let Some(range) = self.clip {
            original = original.clamp(-range, range);
        }
        let derivative = (sample - original) / f64::from(sigma);
        match self.first.take() {
            None => {
                let dt = self.sigmas.levels[step_index + 1] - sigma;
                let next = sample + &derivative * f64::from(dt);
                self.first = Some((sample.shallow_clone(), derivative, dt));
                next
            }
            Some((start, first, dt)) => start + (first + derivative) / 2.0 * f64::from(dt),
        }
    }
}
