//! DPM-Solver++, multistep, of order 1 to 3 (order 2 is known as DPM++ 2M).
//! Paper: arXiv 2211.01095. Reference: diffusers `scheduling_dpmsolver_multistep.py`.

use super::config::{refuse, FinalSigmas, SchedulerConfig};
use super::solver_levels::{Solver, SolverLevels};
use super::{NoiseSource, Scheduler};
use crate::error::Result;
use std::collections::VecDeque;
use tch::Tensor;

/// `DPMSolverMultistepScheduler`.
struct DpmSolver {
    levels: SolverLevels,
    order: usize,
    heun: bool,
    /// The last step is of first order.
    first_order_at_end: bool,
    /// The last step but one is of second order at most.
    second_order_before: bool,
    /// Predicted samples of the last steps, the newest first.
    originals: VecDeque<Tensor>,
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    SchedulerConfig::check_text("algorithm_type", &config.algorithm_type, &["dpmsolver++", "deis"])?;
    let known = ["midpoint", "heun", "logrho", "bh1", "bh2"];
    SchedulerConfig::check_text("solver_type", &config.solver_type, &known)?;
    // Of a model of images that predicts its variance as well.
    SchedulerConfig::check_text("variance_type", &config.variance_type, &known_variances())?;
    refuse(config.lambda_min_clipped.is_some(), "lambda_min_clipped", "(a number)")?;
    let order = config.solver_order.unwrap_or(2);
    refuse(!(1..=3).contains(&order), "solver_order", &order.to_string())?;
    let lower_order_final = config.lower_order_final.unwrap_or(true) && steps < 15;
    let ends_at_zero = config.final_sigmas_type.unwrap_or_default() == FinalSigmas::Zero;
    Ok(Box::new(DpmSolver {
        levels: SolverLevels::new(config, steps, Solver::DpmSolver)?,
        order,
        heun: config.solver_type.as_deref() == Some("heun"),
        first_order_at_end: config.euler_at_final == Some(true) || lower_order_final || ends_at_zero,
        second_order_before: lower_order_final,
        originals: VecDeque::new(),
    }))
}

pub(super) fn new_karras(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    new(&SchedulerConfig { use_karras_sigmas: Some(true), ..config.clone() }, steps)
}

/// DDPM's own, which DPM-Solver does not look at.
fn known_variances() -> [&'static str; 4] {
    ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]
}

impl DpmSolver {
    /// The order of the step at `index`: no more than the steps before it allow.
    fn order_at(&self, index: usize) -> usize {
        let steps = self.levels.timesteps.len();
        let order = self.order.min(self.originals.len());
        if index + 1 == steps && self.first_order_at_end {
            return 1;
        }
        if index + 2 == steps && self.second_order_before {
            return order.min(2);
        }
        order
    }

    /// The first two derivatives of the prediction over the log-SNR, times the step and its square: `[b, ...]` each.
    fn derivatives(&self, index: usize, order: usize, h: &Tensor) -> (Option<Tensor>, Option<Tensor>) {
        let lambda = |back: usize| self.levels.at(index - back).lambda;
        let slope = |back: usize| {
            let ratio = (lambda(back) - lambda(back + 1)) / h;
            (1.0 / &ratio * (&self.originals[back] - &self.originals[back + 1]), ratio)
        };
        match order {
            1 => (None, None),
            2 => (Some(slope(0).0), None),
            _ => {
                let ((first, r0), (second, r1)) = (slope(0), slope(1));
                let (change, both) = (&first - second, &r0 + r1);
                (Some(first + r0 / &both * &change), Some(1.0 / both * change))
            }
        }
    }
}

impl Scheduler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        step_index: usize,
        sample: &Tensor,
        _noise: &mut NoiseSource<'_>,
    ) -> Tensor {
        let original = self.levels.original(model_output, step_index, sample);
        self.originals.push_front(original.shallow_clone());
        self.originals.truncate(self.order);
        let order = self.order_at(step_index);
        let (now, next) = (self.levels.at(step_index), self.levels.at(step_index + 1));
        let h = &next.lambda - &now.lambda;
        let decay = (-&h).exp() - 1.0;
        let gain = &next.alpha * &decay;
        let mut next_sample = &next.sigma / &now.sigma * sample - &gain * original;
        let (first, second) = self.derivatives(step_index, order, &h);
        if let Some(first) = first {
            next_sample = if order == 2 && !self.heun {
                next_sample - 0.5 * gain * first
            } else {
                next_sample + &next.alpha * (&decay / &h + 1.0) * first
            };
        }
        if let Some(second) = second {
            next_sample -= next.alpha * ((decay + &h) / h.square() - 0.5) * second;
        }
        next_sample
    }
}
