//! The noise of training: how much signal and how much noise the latents hold at each timestep.
//! Paper: arXiv 2006.11239. Reference: diffusers `scheduling_ddpm.py`, and `compute_snr` of `training_utils.py`.
//!
//! Legend: b images, T training timesteps, ᾱ the cumulative product of `1 - beta`.

use super::config::{BetaSchedule, PredictionType, SchedulerConfig};
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// ᾱ of every training timestep and what follows from it. All arithmetic is float32, in diffusers' order.
#[derive(Debug)]
pub struct NoiseSchedule {
    alphas_cumprod: Tensor,
}

impl NoiseSchedule {
    /// The schedule that `DDPMScheduler.from_config` trains with, on the CPU.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        let mut betas = betas(config, 0.0001, 0.02);
        if config.zero_snr() {
            betas = rescale_zero_terminal_snr(&betas);
        }
        Ok(Self { alphas_cumprod: cumulative(&betas) })
    }

    /// The same schedule on `device`, so that no draw of a training step has to travel.
    pub fn to_device(&self, device: Device) -> Self {
        Self { alphas_cumprod: self.alphas_cumprod.to_device(device) }
    }

    /// Number of training timesteps T.
    pub fn num_train_timesteps(&self) -> i64 {
        self.alphas_cumprod.numel() as i64
    }

    /// ᾱ, `[T]` float32.
    pub fn alphas_cumprod(&self) -> &Tensor {
        &self.alphas_cumprod
    }

    /// `sqrt(ᾱ) latents + sqrt(1 - ᾱ) noise`.
    /// `latents` and `noise` `[b, 4, height/8, width/8]`, `timesteps` `[b]` int64, one for each image.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
        let (signal, sigma) = self.coefficients(latents, timesteps);
        signal * latents + sigma * noise
    }

    /// `sqrt(ᾱ) noise - sqrt(1 - ᾱ) latents`, shapes as in [`NoiseSchedule::add_noise`].
    pub fn velocity(&self, latents: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
        let (signal, sigma) = self.coefficients(latents, timesteps);
        signal * noise - sigma * latents
    }

    /// What the model is trained to predict, shapes as in [`NoiseSchedule::add_noise`].
    pub fn target(
        &self,
        prediction_type: PredictionType,
        latents: &Tensor,
        noise: &Tensor,
        timesteps: &Tensor,
    ) -> Tensor {
        match prediction_type {
            PredictionType::Epsilon => noise.shallow_clone(),
            PredictionType::VPrediction => self.velocity(latents, noise, timesteps),
            PredictionType::Sample => latents.shallow_clone(),
        }
    }

    /// The signal-to-noise ratio `ᾱ / (1 - ᾱ)`: `[b]` int64 -> `[b]` float32.
    pub fn snr(&self, timesteps: &Tensor) -> Tensor {
        let (signal, sigma) = self.roots(timesteps);
        (signal / sigma).square()
    }

    /// The weight of each image's loss (arXiv 2303.09556): `min(SNR, gamma) / SNR` where the noise is predicted, and
    /// `min(SNR, gamma) / (SNR + 1)` where the velocity is, as in the paper, diffusers' text-to-image script and kohya
    /// (diffusers' train_dreambooth.py has `min(SNR, gamma) / SNR + 1` there). `[b]` int64 -> `[b]` float32.
    pub fn min_snr_weights(&self, prediction_type: PredictionType, gamma: f64, timesteps: &Tensor) -> Tensor {
        let snr = self.snr(timesteps);
        let capped = snr.clamp_max(gamma);
        match prediction_type {
            PredictionType::Epsilon => capped / snr,
            PredictionType::VPrediction => capped / (snr + 1.0),
            PredictionType::Sample => capped,
        }
    }

    /// `sqrt(ᾱ)` and `sqrt(1 - ᾱ)` at `timesteps`, `[b]` float32 each.
    fn roots(&self, timesteps: &Tensor) -> (Tensor, Tensor) {
        let alphas = self.alphas_cumprod.index_select(0, &timesteps.to_device(self.alphas_cumprod.device()));
        let noise: Tensor = 1.0 - &alphas;
        (alphas.sqrt(), noise.sqrt())
    }

    /// [`NoiseSchedule::roots`] as `[b, 1, 1, 1]` beside `latents`. They are rounded to the latents' kind last:
    /// in bf16 ᾱ itself would round to 1 and leave the first timesteps without noise.
    fn coefficients(&self, latents: &Tensor, timesteps: &Tensor) -> (Tensor, Tensor) {
        let mut shape = vec![1; latents.dim()];
        if let Some(batch) = shape.first_mut() {
            *batch = -1;
        }
        let (signal, sigma) = self.roots(timesteps);
        let like = |root: Tensor| root.reshape(&shape).to_device(latents.device()).to_kind(latents.kind());
        (like(signal), like(sigma))
    }
}

/// Beta of every training timestep, `[T]` float32 on the CPU; the last two arguments are a sampler's own defaults.
pub(super) fn betas(config: &SchedulerConfig, default_start: f64, default_end: f64) -> Tensor {
    let steps = config.num_train_timesteps();
    let (start, end) = (config.beta_start.unwrap_or(default_start), config.beta_end.unwrap_or(default_end));
    let options = (Kind::Float, Device::Cpu);
    if let Some(betas) = &config.trained_betas {
        return Tensor::from_slice(betas).to_kind(Kind::Float);
    }
    match config.beta_schedule.unwrap_or_default() {
        BetaSchedule::Linear => Tensor::linspace(start, end, steps, options),
        BetaSchedule::ScaledLinear => Tensor::linspace(start.sqrt(), end.sqrt(), steps, options).square(),
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            let beta = |i: i64| {
                let (t1, t2) = (i as f64 / steps as f64, (i + 1) as f64 / steps as f64);
                (1.0 - alpha_bar(t2) / alpha_bar(t1)).min(0.999)
            };
            Tensor::from_slice(&(0..steps).map(beta).collect::<Vec<_>>()).to_kind(Kind::Float)
        }
    }
}

/// Betas whose last timestep has ᾱ = 0 (arXiv 2305.08891, algorithm 1): `[T]` -> `[T]`.
pub(super) fn rescale_zero_terminal_snr(betas: &Tensor) -> Tensor {
    let roots = cumulative(betas).sqrt();
    let (first, last) = (roots.get(0), roots.get(-1));
    let scale = &first / (&first - &last);
    let alphas_cumprod = ((roots - last) * scale).square();
    let later = alphas_cumprod.slice(0, 1, None, 1) / alphas_cumprod.slice(0, None, -1, 1);
    1.0 - Tensor::cat(&[alphas_cumprod.slice(0, 0, 1, 1), later], 0)
}

/// ᾱ from betas: `[T]` -> `[T]`.
pub(super) fn cumulative(betas: &Tensor) -> Tensor {
    let alphas: Tensor = 1.0 - betas;
    alphas.cumprod(0, Kind::Float)
}
