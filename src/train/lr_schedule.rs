//! Learning rate schedules: the curves of `diffusers.optimization.get_scheduler` (and of transformers').
//!
//! Warm-up and total are counted in optimizer steps. PEFT's and diffusers' scripts hand both to `get_scheduler`
//! multiplied by `gradient_accumulation_steps`, but accelerate's scheduler moves only with the optimizer, once a process:
//! on one process with accumulation of 4 their warm-up lasts four times as many optimizer steps as was asked for, and
//! the decay ends at a quarter of its curve. Without accumulation the curves are the same; with it these keep the
//! promise of the flags' names.

use crate::error::{Error, Result};
use clap::ValueEnum;
use std::f64::consts::PI;

/// What a polynomial decay ends at (`lr_end` of the reference).
const POLYNOMIAL_END: f64 = 1e-7;

/// The shape of the curve after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(missing_docs, reason = "docs would be help of the command line, where the names say all")]
pub enum ScheduleKind {
    // Straight down to 0.
    Linear,
    // Half a cosine down to 0.
    Cosine,
    // `num_cycles` half cosines, each starting at the top.
    CosineWithRestarts,
    // `remaining^power` down to 1e-7.
    Polynomial,
    // The same rate throughout: no warm-up either.
    Constant,
    // The same rate after the warm-up.
    ConstantWithWarmup,
}

/// A schedule and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    /// The curve.
    pub kind: ScheduleKind,
    /// The learning rate at the top of the curve.
    pub learning_rate: f64,
    /// Optimizer steps over which the rate rises from 0.
    pub warmup_steps: u64,
    /// Optimizer steps of the whole run, those of the warm-up included.
    pub total_steps: u64,
    /// Restarts of [`ScheduleKind::CosineWithRestarts`].
    pub num_cycles: u64,
    /// Exponent of [`ScheduleKind::Polynomial`].
    pub power: f64,
}

impl LrSchedule {
    /// A constant rate; the other fields as the reference's defaults.
    pub fn constant(learning_rate: f64) -> Self {
        let kind = ScheduleKind::Constant;
        Self { kind, learning_rate, warmup_steps: 0, total_steps: 0, num_cycles: 1, power: 1.0 }
    }

    /// Refuses numbers with which the curve is not defined.
    pub fn check(&self) -> Result<()> {
        let rate = self.learning_rate;
        if !rate.is_finite() || rate < 0.0 {
            return Err(Error::invalid(format!("⟨learning_rate⟩ is {rate}; it must be a number of at least 0")));
        }
        if self.kind == ScheduleKind::Polynomial && rate <= POLYNOMIAL_END {
            return Err(Error::invalid(format!(
                "⟨learning_rate⟩ is {rate}; the polynomial schedule ends at {POLYNOMIAL_END:e} and must start above it"
            )));
        }
        if !self.power.is_finite() || self.power < 0.0 {
            return Err(Error::invalid(format!("⟨lr_power⟩ is {}; it must be a number of at least 0", self.power)));
        }
        Ok(())
    }

    /// The learning rate of the optimizer step after `step` finished ones.
    pub fn lr(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    /// What the top rate is multiplied by after `step` finished optimizer steps.
    pub fn factor(&self, step: u64) -> f64 {
        if self.kind == ScheduleKind::Constant {
            return 1.0;
        }
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / decay_steps;
        match self.kind {
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => 1.0,
            ScheduleKind::Linear => ((self.total_steps as f64 - step as f64) / decay_steps).max(0.0),
            ScheduleKind::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            ScheduleKind::CosineWithRestarts if progress >= 1.0 => 0.0,
            ScheduleKind::CosineWithRestarts => {
                (0.5 * (1.0 + (PI * (self.num_cycles as f64 * progress).fract()).cos())).max(0.0)
            }
            ScheduleKind::Polynomial if step > self.total_steps => POLYNOMIAL_END / self.learning_rate,
            ScheduleKind::Polynomial => {
                let range = self.learning_rate - POLYNOMIAL_END;
                (range * (1.0 - progress).powf(self.power) + POLYNOMIAL_END) / self.learning_rate
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_longer_than_the_run_divides_by_nothing() {
        for &kind in ScheduleKind::value_variants() {
            let schedule = LrSchedule { kind, warmup_steps: 10, total_steps: 5, ..LrSchedule::constant(1e-4) };
            assert!((0..20).all(|step| schedule.factor(step).is_finite()), "{kind:?}");
        }
    }

    #[test]
    fn a_rate_that_is_no_number_is_refused() {
        assert!(LrSchedule::constant(f64::NAN).check().is_err());
        assert!(LrSchedule::constant(1e-4).check().is_ok());
    }
}
