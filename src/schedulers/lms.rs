//! The linear multistep method along the noise levels, of order 4.
//! Reference: diffusers `scheduling_lms_discrete.py`, after k-diffusion's `sample_lms`.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::sigmas::{training_sigmas, Sigmas};
use super::{spacing, NoiseSource, Scheduler};
use crate::error::Result;
use std::collections::VecDeque;
use tch::Tensor;

const ORDER: usize = 4;

/// `LMSDiscreteScheduler`.
struct Lms {
    sigmas: Sigmas,
    /// Of the last steps, the newest first.
    derivatives: VecDeque<Tensor>,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    config.check_sigmas()?;
    // Here diffusers does not look at `sigma_min` and `sigma_max`.
    let config = &SchedulerConfig { sigma_min: None, sigma_max: None, ..config.clone() };
    let training = training_sigmas(config, false, (0.0001, 0.02))?;
    let timesteps = spacing::continuous(config, steps, TimestepSpacing::Linspace);
    let sigmas = Sigmas::new(config, &training, timesteps, 0.0, config.use_karras_sigmas == Some(true));
    Ok(Box::new(Lms { sigmas, derivatives: VecDeque::new() }))
}

/// The integral over the step from `levels[t]` to `levels[t + 1]` of the Lagrange polynomial that is 1 at
/// `levels[t - current]` and 0 at the other levels of the last `order` steps.
fn coefficient(levels: &[f32], t: usize, order: usize, current: usize) -> f64 {
    let level = |i: usize| f64::from(levels[i]);
    let polynomial = |tau: f64| -> f64 {
        let others = (0..order).filter(|k| *k != current);
        others.map(|k| (tau - level(t - k)) / (level(t - current) - level(t - k))).product()
    };
    // Gauss and Legendre's rule with two points is exact for the cubics of order 4.
    let (middle, half) = ((level(t) + level(t + 1)) / 2.0, (level(t + 1) - level(t)) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}

impl Scheduler for Lms {
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
        let levels = &self.sigmas.levels;
        let sigma = levels[step_index];
        let derivative = (sample - self.sigmas.original(model_output, sigma, sample)) / f64::from(sigma);
        self.derivatives.push_front(derivative);
        self.derivatives.truncate(ORDER);
        let order = self.derivatives.len();
        let terms = self.derivatives.iter().enumerate();
        let change: Tensor = terms.map(|(k, xs)| coefficient(levels, step_index, order, k) * xs).sum();
        sample + change
    }
}
