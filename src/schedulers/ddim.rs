//! Denoising diffusion implicit models, without noise on the way (eta 0).
//! Paper: arXiv 2010.02502, equation 12. Reference: diffusers `scheduling_ddim.py`.

use super::config::{PredictionType, SchedulerConfig};
use super::noise_schedule::NoiseSchedule;
use super::{diffusers_rs, spacing, NoiseSource, Scheduler};
use crate::error::Result;
use tch::Tensor;

/// `DDIMScheduler`.
struct Ddim {
    timesteps: Vec<f64>,
    /// ᾱ of this step and of the next.
    alphas: Vec<(f32, f32)>,
    prediction_type: PredictionType,
    clip: Option<f64>,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    let timesteps = spacing::whole(config, steps)?;
    if let Some(sampler) = diffusers_rs::ddim(config, steps) {
        return Ok(sampler);
    }
    let alphas = Vec::<f32>::try_from(NoiseSchedule::new(config)?.alphas_cumprod())?;
    let last = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { alphas[0] };
    let stride = config.num_train_timesteps() / steps as i64;
    let pair = |t: &i64| {
        let next = t - stride;
        (alphas[*t as usize], if next >= 0 { alphas[next as usize] } else { last })
    };
    Ok(Box::new(Ddim {
        alphas: timesteps.iter().map(pair).collect(),
        timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
        prediction_type: config.prediction_type(),
        clip: config.clip_range(true),
    }))
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        step_index: usize,
        sample: &Tensor,
        _noise: &mut NoiseSource<'_>,
    ) -> Tensor {
        let (alpha, alpha_next) = self.alphas[step_index];
        let (signal, sigma) = (f64::from(alpha.sqrt()), f64::from((1.0 - alpha).sqrt()));
        let (mut original, epsilon) = match self.prediction_type {
            PredictionType::Epsilon => ((sample - sigma * model_output) / signal, model_output.shallow_clone()),
            PredictionType::Sample => (model_output.shallow_clone(), (sample - signal * model_output) / sigma),
            PredictionType::VPrediction => {
                (signal * sample - sigma * model_output, signal * model_output + sigma * sample)
            }
        };
        if let Some(range) = self.clip {
            original = original.clamp(-range, range);
        }
        f64::from(alpha_next.sqrt()) * original + f64::from((1.0 - alpha_next).sqrt()) * epsilon
    }
}
