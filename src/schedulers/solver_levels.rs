//! What the solvers in log-SNR time (DPM-Solver++, UniPC) have in common: levels, and the model's output as a
//! prediction of the latents without noise.
//! Reference: diffusers `scheduling_dpmsolver_multistep.py`, `scheduling_unipc_multistep.py`.

use super::config::{FinalSigmas, PredictionType, SchedulerConfig};
use super::sigmas::{final_sigma, interpolate, karras, training_sigmas};
use super::spacing;
use crate::error::Result;
use tch::Tensor;

/// The two solvers differ in the timesteps and the last level of Karras' levels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Solver {
    DpmSolver,
    UniPc,
}

/// The levels of one pass.
pub(super) struct SolverLevels {
    /// What the model is given.
    pub timesteps: Vec<f64>,
    /// One level more than timesteps.
    sigmas: Vec<f32>,
    prediction_type: PredictionType,
}

/// A noise level: signal `alpha`, noise `sigma`, and `lambda = ln(alpha / sigma)`. Numbers of float32 in tensors
/// without dimensions: differences of their logarithms and exponentials cancel, so they are rounded as Python's are.
pub(super) struct Level {
    pub alpha: Tensor,
    pub sigma: Tensor,
    pub lambda: Tensor,
}

impl SolverLevels {
    /// The levels for `steps` steps of `config`.
    pub fn new(config: &SchedulerConfig, steps: usize, solver: Solver) -> Result<Self> {
        config.check_sigmas()?;
        let training = training_sigmas(config, true, (0.0001, 0.02))?;
        let mut timesteps = spacing::without_last(config, steps);
        let mut sigmas = interpolate(&timesteps, &training);
        let mut last = final_sigma(config, &training);
        if config.use_karras_sigmas == Some(true) {
            let range = (f64::from(training[training.len() - 1]), f64::from(training[0]));
            (sigmas, timesteps) = karras(config, range, &training, steps);
            // To whole timesteps; diffusers rounds down for one class and schedule.
            let cosine = config.beta_schedule == Some(super::BetaSchedule::SquaredcosCapV2);
            let down = solver == Solver::DpmSolver && cosine;
            timesteps.iter_mut().for_each(|t| *t = if down { t.floor() } else { t.round_ties_even() });
            if solver == Solver::UniPc && config.final_sigmas_type == Some(FinalSigmas::SigmaMin) {
                last = sigmas[sigmas.len() - 1];
            }
        }
        sigmas.push(last);
        let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        Ok(Self { timesteps, sigmas, prediction_type: config.prediction_type() })
    }

    /// The level at `index`.
    pub fn at(&self, index: usize) -> Level {
        let ratio = Tensor::from(self.sigmas[index]);
        let alpha = 1.0 / (ratio.square() + 1.0).sqrt();
        let sigma = ratio * &alpha;
        let lambda = alpha.log() - sigma.log();
        Level { alpha, sigma, lambda }
    }

    /// The latents without noise, as the model sees them at step `index`.
    pub fn original(&self, model_output: &Tensor, index: usize, sample: &Tensor) -> Tensor {
        let Level { alpha, sigma, .. } = self.at(index);
        match self.prediction_type {
            PredictionType::Epsilon => (sample - sigma * model_output) / alpha,
            PredictionType::VPrediction => alpha * sample - sigma * model_output,
            PredictionType::Sample => model_output.shallow_clone(),
        }
    }
}
