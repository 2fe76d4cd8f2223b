//! Pseudo numerical methods: a linear multistep method of order 4, after a Runge-Kutta warm-up or (as Stable
//! Diffusion has it) after one repeated step.
//! Paper: arXiv 2202.09778. Reference: diffusers `scheduling_pndm.py`.

use super::config::{refuse, PredictionType, SchedulerConfig};
use super::noise_schedule::NoiseSchedule;
use super::{diffusers_rs, spacing, NoiseSource, Scheduler};
use crate::error::{Error, Result};
use tch::Tensor;

/// `PNDMScheduler`.
struct Pndm {
    timesteps: Vec<f64>,
    /// How many of the timesteps are the warm-up's: four each Runge-Kutta step.
    warm_up: usize,
    /// Training timesteps a step.
    stride: i64,
    alphas: Vec<f32>,
    last_alpha: f32,
    prediction_type: PredictionType,
    /// The model's outputs of the last steps, the newest last.
    outputs: Vec<Tensor>,
    /// Where the step that is now taken in parts began.
    start: Option<Tensor>,
    /// The warm-up's weighted sum of outputs.
    sum: Option<Tensor>,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    refuse(config.prediction_type() == PredictionType::Sample, "prediction_type", "sample")?;
    let plain = spacing::whole(config, steps)?;
    if let Some(sampler) = diffusers_rs::pndm(config, steps) {
        return Ok(sampler);
    }
    // It does not know the shift to zero SNR.
    let config = &SchedulerConfig { rescale_betas_zero_snr: None, ..config.clone() };
    let alphas = Vec::<f32>::try_from(NoiseSchedule::new(config)?.alphas_cumprod())?;
    let stride = config.num_train_timesteps() / steps as i64;
    let skip_warm_up = config.skip_prk_steps.unwrap_or(false);
    let mut timesteps = Vec::new();
    if skip_warm_up {
        // The second timestep stands twice.
        timesteps.extend(plain.iter().take(2).chain(plain.iter().skip(1)));
    } else if steps < 4 {
        return Err(Error::invalid(format!(
            "pndm with `skip_prk_steps: false` needs at least 4 steps for its warm-up, not {steps}"
        )));
    } else {
        for (i, t) in plain[..3].iter().enumerate() {
            let middle = plain[i + 1] + stride / 2;
            timesteps.extend([*t, middle, middle, plain[i + 1]]);
        }
        timesteps.extend(&plain[3..]);
    }
    Ok(Box::new(Pndm {
        timesteps: timesteps.iter().map(|t| *t as f64).collect(),
        warm_up: if skip_warm_up { 0 } else { 12 },
        stride,
        last_alpha: if config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { alphas[0] },
        alphas,
        prediction_type: config.prediction_type(),
        outputs: Vec::new(),
        start: None,
        sum: None,
    }))
}

impl Pndm {
    /// Equation 11 of the paper: `sample` from `timestep` to `next` along the direction `output`.
    fn transfer(&self, sample: &Tensor, timestep: i64, next: i64, output: &Tensor) -> Tensor {
        let at = |t: i64| self.alphas[(t.max(0) as usize).min(self.alphas.len() - 1)];
        let alpha = at(timestep);
        let alpha_next = if next >= 0 { at(next) } else { self.last_alpha };
        let (beta, beta_next) = (1.0 - alpha, 1.0 - alpha_next);
        let epsilon = match self.prediction_type {
            PredictionType::VPrediction => f64::from(alpha.sqrt()) * output + f64::from(beta.sqrt()) * sample,
            _ => output.shallow_clone(),
        };
        let denominator = alpha * beta_next.sqrt() + (alpha * beta * alpha_next).sqrt();
        let direction = f64::from(alpha_next - alpha) * epsilon / f64::from(denominator);
        f64::from((alpha_next / alpha).sqrt()) * sample - direction
    }

    /// One of the four parts of a Runge-Kutta step.
    fn step_runge_kutta(&mut self, output: &Tensor, step_index: usize, sample: &Tensor) -> Tensor {
        let part = step_index % 4;
        let weight = if part == 0 || part == 3 { 1.0 / 6.0 } else { 1.0 / 3.0 };
        let mut sum = weight * output;
        if let Some(before) = self.sum.take() {
            sum += before;
        }
        if part == 0 {
            self.outputs.push(output.shallow_clone());
            self.start = Some(sample.shallow_clone());
        }
        let timestep = self.timesteps[step_index] as i64;
        let next = if matches!(part, 0 | 2) { timestep - self.stride / 2 } else { timestep };
        let from = self.timesteps[step_index - part] as i64;
        let start = self.start.as_ref().unwrap_or(sample);
        if part == 3 {
            return self.transfer(start, from, next, &sum);
        }
        let sample = self.transfer(start, from, next, output);
        self.sum = Some(sum);
        sample
    }

    /// One step of the linear multistep method; the second call repeats the first step with the mean of two outputs.
    fn step_multistep(&mut self, output: &Tensor, step_index: usize, sample: &Tensor) -> Tensor {
        let timestep = self.timesteps[step_index] as i64;
        if step_index == 1 {
            if let (Some(start), [first]) = (self.start.take(), self.outputs.as_slice()) {
                let mean = (output + first) / 2.0;
                return self.transfer(&start, timestep + self.stride, timestep, &mean);
            }
        }
        let kept = self.outputs.len().saturating_sub(3);
        self.outputs.drain(..kept);
        self.outputs.push(output.shallow_clone());
        if step_index == 0 {
            self.start = Some(sample.shallow_clone());
        }
        let direction = match self.outputs.as_slice() {
            [b, a] => (3.0 * a - b) / 2.0,
            [c, b, a] => (23.0 * a - 16.0 * b + 5.0 * c) / 12.0,
            [d, c, b, a] => 1.0 / 24.0 * (55.0 * a - 59.0 * b + 37.0 * c - 9.0 * d),
            _ => output.shallow_clone(),
        };
        self.transfer(sample, timestep, timestep - self.stride, &direction)
    }
}

impl Scheduler for Pndm {
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
        if step_index < self.warm_up {
            self.step_runge_kutta(model_output, step_index, sample)
        } else {
            self.step_multistep(model_output, step_index, sample)
        }
    }
}
