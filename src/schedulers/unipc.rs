//! UniPC: each step predicts, and the next model output corrects it first.
//! Paper: arXiv 2302.04867. Reference: diffusers `scheduling_unipc_multistep.py`.

use super::config::{refuse, FinalSigmas, SchedulerConfig};
use super::solver_levels::{Solver, SolverLevels};
use super::{NoiseSource, Scheduler};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use tch::Tensor;

/// `UniPCMultistepScheduler`.
struct UniPc {
    levels: SolverLevels,
    order: usize,
    lower_order_final: bool,
    /// B(h) is h instead of `exp(h) - 1`.
    bh1: bool,
    without_corrector: Vec<usize>,
    /// Predicted samples of the last steps, the newest first.
    originals: VecDeque<Tensor>,
    /// The latents that the last step began with, and its order.
    last: Option<(Tensor, usize)>,
}

/// A step between two levels.
struct Span {
    from: usize,
    to: usize,
    order: usize,
}

/// What a step weighs: `phi` and `b_h` of the paper, 1 / r of each earlier output, and the linear system of weights.
struct Weights {
    phi: Tensor,
    b_h: Tensor,
    ratios: Vec<Tensor>,
    system: (Tensor, Tensor),
}

pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    let known = ["bh1", "bh2", "midpoint", "heun", "logrho"];
    SchedulerConfig::check_text("solver_type", &config.solver_type, &known)?;
    refuse(config.predict_x0 == Some(false), "predict_x0", "false")?;
    refuse(config.solver_p.as_ref().is_some_and(|solver| !solver.is_null()), "solver_p", "(another solver)")?;
    let order = config.solver_order.unwrap_or(2);
    refuse(!(1..=3).contains(&order), "solver_order", &order.to_string())?;
    let lower_order_final = config.lower_order_final.unwrap_or(true);
    let bh1 = config.solver_type.as_deref() == Some("bh1");
    let to_zero = config.final_sigmas_type.unwrap_or_default() == FinalSigmas::Zero;
    if to_zero && (bh1 || (!lower_order_final && order > 1)) {
        return Err(Error::invalid(
            "unipc with `lower_order_final: false` or `solver_type: bh1` has no number for its last step; \
             set `final_sigmas_type: sigma_min`",
        ));
    }
    Ok(Box::new(UniPc {
        levels: SolverLevels::new(config, steps, Solver::UniPc)?,
        order,
        lower_order_final,
        bh1,
        without_corrector: config.disable_corrector.clone().unwrap_or_default(),
        originals: VecDeque::new(),
        last: None,
    }))
}

impl UniPc {
    fn weights(&self, span: &Span) -> Weights {
        let (now, next) = (self.levels.at(span.from), self.levels.at(span.to));
        let h = &next.lambda - &now.lambda;
        let mut ratios: Vec<Tensor> =
            (1..span.order).map(|i| (self.levels.at(span.from - i).lambda - &now.lambda) / &h).collect();
        let hh = -h;
        let phi = hh.expm1();
        let b_h = if self.bh1 { hh.shallow_clone() } else { hh.expm1() };
        ratios.push(phi.ones_like());
        let powers = Tensor::stack(&ratios, 0);
        ratios.pop();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        let (mut phi_k, mut factorial) = (&phi / &hh - 1.0, 1.0);
        for i in 1..=span.order {
            rows.push(powers.pow_tensor_scalar(i as i64 - 1));
            targets.push(&phi_k * factorial / &b_h);
            factorial *= (i + 1) as f64;
            phi_k = phi_k / &hh - 1.0 / factorial;
        }
        Weights { phi, b_h, ratios, system: (Tensor::stack(&rows, 0), Tensor::stack(&targets, 0)) }
    }

    /// `sample` taken over `span`: with `corrected`, the prediction at its end, by the corrector.
    fn advance(&self, span: &Span, sample: &Tensor, corrected: Option<&Tensor>) -> Tensor {
        let Weights { phi, b_h, ratios, system: (rows, targets) } = self.weights(span);
        let (now, next) = (self.levels.at(span.from), self.levels.at(span.to));
        let newest = &self.originals[0];
        let earlier = (span.order - 1) as i64;
        let half = || Tensor::from_slice(&[0.5f32]);
        let rhos = match (corrected.is_some(), span.order) {
            (true, 1) | (false, 2) => Some(half()),
            (true, _) => Some(Tensor::linalg_solve(&rows, &targets, true)),
            (false, 1) => None,
            (false, _) => {
                let rows = rows.narrow(0, 0, earlier).narrow(1, 0, earlier);
                Some(Tensor::linalg_solve(&rows, &targets.narrow(0, 0, earlier), true))
            }
        };
        let mut moved = next.sigma / now.sigma * sample - &next.alpha * phi * newest;
        let mut change = newest.zeros_like();
        if let Some(rhos) = rhos {
            for (i, ratio) in ratios.iter().enumerate() {
                change += rhos.get(i as i64) * ((&self.originals[i + 1] - newest) / ratio);
            }
            if let Some(prediction) = corrected {
                change += rhos.get(earlier) * (prediction - newest);
            }
            moved -= next.alpha * b_h * change;
        }
        moved
    }
}

impl Scheduler for UniPc {
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
        let mut sample = sample.shallow_clone();
        if let Some((start, order)) = self.last.take() {
            if !self.without_corrector.contains(&(step_index - 1)) {
                let span = Span { from: step_index - 1, to: step_index, order };
                sample = self.advance(&span, &start, Some(&original));
            }
        }
        self.originals.push_front(original);
        self.originals.truncate(self.order);
        let mut order = self.order.min(step_index + 1);
        if self.lower_order_final {
            order = order.min(self.levels.timesteps.len() - step_index);
        }
        self.last = Some((sample.shallow_clone(), order));
        self.advance(&Span { from: step_index, to: step_index + 1, order }, &sample, None)
    }
}
