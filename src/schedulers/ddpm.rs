//! Denoising diffusion probabilistic models: ancestral sampling with fresh noise at every step but the last.
//! Paper: arXiv 2006.11239, equations 7 and 15. Reference: diffusers `scheduling_ddpm.py`.

use super::config::{PredictionType, SchedulerConfig};
use super::noise_schedule::NoiseSchedule;
use super::{spacing, NoiseSource, Scheduler};
use crate::error::Result;
use tch::Tensor;

/// `DDPMScheduler`. diffusers-rs' draws its noise from the global generator, so that images depend on their batch.
struct Ddpm {
    timesteps: Vec<f64>,
    /// ᾱ of this step and of the next.
    alphas: Vec<(f32, f32)>,
    prediction_type: PredictionType,
    clip: Option<f64>,
    variance: Variance,
}

/// The variance of the fresh noise.
enum Variance {
    /// That of the posterior.
    Small,
    /// The same by way of its logarithm.
    SmallByLogarithm,
    /// Beta.
    Large,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    let known = ["fixed_small", "fixed_small_log", "fixed_large"];
    SchedulerConfig::check_text("variance_type", &config.variance_type, &known)?;
    let timesteps = spacing::whole(config, steps)?;
    let alphas = Vec::<f32>::try_from(NoiseSchedule::new(config)?.alphas_cumprod())?;
    let at = |i: usize| timesteps.get(i).map_or(1.0, |t| alphas[*t as usize]);
    Ok(Box::new(Ddpm {
        alphas: (0..timesteps.len()).map(|i| (at(i), at(i + 1))).collect(),
        timesteps: timesteps.iter().map(|t| *t as f64).collect(),
        prediction_type: config.prediction_type(),
        clip: config.clip_range(true),
        variance: match config.variance_type.as_deref() {
            Some("fixed_small_log") => Variance::SmallByLogarithm,
            Some("fixed_large") => Variance::Large,
            _ => Variance::Small,
        },
    }))
}

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        step_index: usize,
        sample: &Tensor,
        noise: &mut NoiseSource<'_>,
    ) -> Tensor {
        let (alpha, alpha_next) = self.alphas[step_index];
        let (beta, beta_next) = (1.0 - alpha, 1.0 - alpha_next);
        let current_alpha = alpha / alpha_next;
        let current_beta = 1.0 - current_alpha;
        let (signal, sigma) = (f64::from(alpha.sqrt()), f64::from(beta.sqrt()));
        let mut original = match self.prediction_type {
            PredictionType::Epsilon => (sample - sigma * model_output) / signal,
            PredictionType::Sample => model_output.shallow_clone(),
            PredictionType::VPrediction => signal * sample - sigma * model_output,
        };
        if let Some(range) = self.clip {
            original = original.clamp(-range, range);
        }
        let original_part = f64::from(alpha_next.sqrt() * current_beta / beta);
        let sample_part = f64::from(current_alpha.sqrt() * beta_next / beta);
        let mean = original_part * original + sample_part * sample;
        if self.timesteps[step_index] <= 0.0 {
            return mean;
        }
        let small = (beta_next / beta * current_beta).max(1e-20);
        let deviation = match self.variance {
            Variance::Small => small.sqrt(),
            Variance::SmallByLogarithm => (0.5 * small.ln()).exp(),
            Variance::Large => current_beta.sqrt(),
        };
        mean + f64::from(deviation) * noise(&sample.size()).to_device(sample.device())
    }
}
