//! Noise levels `sigma = sqrt((1 - ᾱ) / ᾱ)`: the coordinate in which Euler, Heun, LMS, DPM-Solver and UniPC step.
//! Paper: arXiv 2206.00364. Reference: diffusers `scheduling_euler_discrete.py`.

use super::config::{FinalSigmas, PredictionType, SchedulerConfig, TimestepSpacing};
use super::noise_schedule::{betas, cumulative, rescale_zero_terminal_snr};
use super::spacing::linspace;
use crate::error::Result;
use tch::Tensor;

/// Noise levels of all training timesteps, from the lowest up. `zero_snr`: the sampler knows
/// `rescale_betas_zero_snr`; the default betas are the sampler's own.
pub(super) fn training_sigmas(config: &SchedulerConfig, zero_snr: bool, betas_from_to: (f64, f64)) -> Result<Vec<f32>> {
    let mut betas = betas(config, betas_from_to.0, betas_from_to.1);
    let rescale = zero_snr && config.zero_snr();
    if rescale {
        betas = rescale_zero_terminal_snr(&betas);
    }
    let mut alphas = Vec::<f32>::try_from(cumulative(&betas))?;
    if let (true, Some(last)) = (rescale, alphas.last_mut()) {
        // A level that is finite: 4096.
        *last = 2f32.powi(-24);
    }
    Ok(alphas.into_iter().map(|alpha| root((1.0 - alpha) / alpha)).collect())
}

/// Libtorch's square root: an ulp off the nearest float32 on some processors, and at high noise levels an ulp shows.
fn root(x: f32) -> f32 {
    Tensor::from(x).sqrt().double_value(&[]) as f32
}

/// `np.interp(timesteps, 0.., sigmas)`.
pub(super) fn interpolate(timesteps: &[f64], sigmas: &[f32]) -> Vec<f64> {
    let last = sigmas.len() - 1;
    let at = |t: f64| {
        let low = (t.max(0.0) as usize).min(last);
        let (left, right) = (f64::from(sigmas[low]), f64::from(sigmas[(low + 1).min(last)]));
        (right - left) * (t - low as f64).clamp(0.0, 1.0) + left
    };
    timesteps.iter().map(|t| at(*t)).collect()
}

/// The levels of Karras et al. between the first and the last of `range`, from the highest down, and their timesteps.
pub(super) fn karras(
    config: &SchedulerConfig,
    range: (f64, f64),
    training: &[f32],
    steps: usize,
) -> (Vec<f64>, Vec<f64>) {
    const RHO: f64 = 7.0;
    let (highest, lowest) = (config.sigma_max.unwrap_or(range.0), config.sigma_min.unwrap_or(range.1));
    let (from, to) = (highest.powf(1.0 / RHO), lowest.powf(1.0 / RHO));
    let sigmas: Vec<f64> =
        linspace(0.0, 1.0, steps).into_iter().map(|ramp| (from + ramp * (to - from)).powf(RHO)).collect();
    let timesteps = sigmas.iter().map(|sigma| timestep_of(*sigma, training)).collect();
    (sigmas, timesteps)
}

/// The training timestep, with a fraction, whose noise level is `sigma` (linear in its logarithm).
fn timestep_of(sigma: f64, training: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let below = training.iter().rposition(|level| f64::from(level.ln()) <= log_sigma).unwrap_or(0);
    let low = below.min(training.len().saturating_sub(2));
    let high = (low + 1).min(training.len() - 1);
    let (low_log, high_log) = (training[low].ln(), training[high].ln());
    if low_log == high_log {
        return low as f64;
    }
    let w = ((f64::from(low_log) - log_sigma) / f64::from(low_log - high_log)).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * high as f64
}

/// The noise level behind the last step.
pub(super) fn final_sigma(config: &SchedulerConfig, training: &[f32]) -> f64 {
    match config.final_sigmas_type.unwrap_or_default() {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => f64::from(training[0]),
    }
}

/// The levels of one pass, and what the samplers that step along them have in common.
pub(super) struct Sigmas {
    /// One level more than timesteps.
    pub levels: Vec<f32>,
    /// What the model is given.
    pub timesteps: Vec<f64>,
    /// What the model's output is.
    pub prediction_type: PredictionType,
    leading: bool,
}

impl Sigmas {
    /// Levels interpolated at `timesteps` (or Karras', where `use_karras`), and `last` behind them.
    pub fn new(config: &SchedulerConfig, training: &[f32], timesteps: Vec<f64>, last: f64, use_karras: bool) -> Self {
        let (mut levels, mut timesteps) = (interpolate(&timesteps, training), timesteps);
        if use_karras {
            let range = (levels[0], levels[levels.len() - 1]);
            (levels, timesteps) = karras(config, range, training, levels.len());
            timesteps.iter_mut().for_each(|t| *t = f64::from(*t as f32));
        }
        levels.push(last);
        Self {
            levels: levels.into_iter().map(|sigma| sigma as f32).collect(),
            timesteps,
            prediction_type: config.prediction_type(),
            leading: config.timestep_spacing == Some(TimestepSpacing::Leading),
        }
    }

    /// The standard deviation of the first latents: with the leading spacing they hold a unit of signal as well.
    pub fn init_noise_sigma(&self) -> f64 {
        let highest = self.levels.iter().copied().fold(0.0, f32::max);
        f64::from(if self.leading { root(highest * highest + 1.0) } else { highest })
    }

    /// Latents with unit variance.
    pub fn scale_model_input(&self, sample: &Tensor, step_index: usize) -> Tensor {
        let sigma = self.levels[step_index];
        sample / f64::from(root(sigma * sigma + 1.0))
    }

    /// The latents without noise, as the model sees them at noise level `sigma`.
    pub fn original(&self, model_output: &Tensor, sigma: f32, sample: &Tensor) -> Tensor {
        match self.prediction_type {
            PredictionType::Epsilon => sample - f64::from(sigma) * model_output,
            PredictionType::VPrediction => {
                let square = sigma * sigma + 1.0;
                model_output * f64::from(-sigma / root(square)) + sample / f64::from(square)
            }
            PredictionType::Sample => model_output.shallow_clone(),
        }
    }
}
