//! The one training loop: batches forward and backward, gradients to an optimizer step, numbers to the logs, checkpoints.

use super::observer::{Event, Observer};
use super::run::Run;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::train::gradients;
use crate::train::interrupt::Interrupt;
use crate::train::metrics::StepMetrics;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Losses of one batch, each a number on the training device.
pub struct Losses {
    /// What is minimised.
    pub total: Tensor,
    /// What it is made of; NaN where this batch has none of it.
    pub parts: Vec<Tensor>,
}

/// What a recipe does in the loop.
pub trait Job {
    /// Names of the losses' parts in the logs.
    fn parts(&self) -> &'static [&'static str];

    /// The batch of number `run.micro_step` forward and, by [`Run::backward`], backward.
    fn micro_step(&mut self, run: &Run) -> Result<Losses>;

    /// The epoch of a batch, and its place in it.
    fn position(&self, micro_step: u64) -> (usize, usize);

    /// Batches of an epoch.
    fn batches_per_epoch(&self) -> usize;

    /// Turns dropout on or off.
    fn set_training(&self, training: bool);

    /// Evaluates on held-out data or draws samples, where that is due: called before the first step and after each one,
    /// with dropout off. Interrupted with [`Error::Interrupted`] once `interrupt` is set.
    fn evaluate(&mut self, run: &mut Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()>;

    /// Whether [`Job::evaluate`] has something to do after the present step.
    fn evaluation_is_due(&self, run: &Run) -> bool;

    /// Writes what is trained, as it is now, to `folder` as PEFT has it.
    fn write_adapter(&self, folder: &Path) -> Result<()>;
}

impl Run {
    /// Gradients of a batch's `loss`, as its share of an optimizer step.
    pub fn backward(&self, loss: &Tensor) {
        let mut loss = loss / self.accumulated as f64;
        if let Some(scaler) = &self.scaler {
            loss = scaler.scale(&loss);
        }
        loss.backward();
    }
}

/// Optimizer steps until the run's last one, or until `interrupt` is set, with the state saved.
pub fn train(job: &mut dyn Job, run: &mut Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()> {
    if run.step == 0 || run.evaluation_is_owed {
        evaluate(job, run, interrupt, observer)?;
    }
    run.report_training(observer);
    job.set_training(true);
    while run.step < run.total_steps {
        let began = Instant::now();
        let first = run.micro_step;
        run.accumulated = run.training.accumulation_divisor(job.position(first).1, job.batches_per_epoch());
        let mut losses: Vec<Losses> = Vec::new();
        // Forward and backward, for as many batches as one optimizer step adds up. As in accelerate, the last batch of
        // an epoch ends the addition.
        loop {
            losses.push(catching(|| job.micro_step(run))?);
            run.micro_step += 1;
            let (_, index) = job.position(run.micro_step);
            if index == 0 || losses.len() as u64 == run.training.gradient_accumulation_steps {
                break;
            }
        }
        let metrics = catching(|| optimizer_step(job.parts(), run, &losses, began))?;
        let epoch = job.position(first).0 as u64;
        run.note(StepMetrics { epoch, ..metrics }, observer)?;
        if job.evaluation_is_due(run) {
            job.set_training(false);
            evaluate(job, run, interrupt, observer)?;
            job.set_training(true);
            if run.step < run.total_steps {
                run.report_training(observer);
            }
        }
        let (stop, last) = (interrupt.requested(), run.step == run.total_steps);
        if stop || last || run.step.is_multiple_of(run.training.checkpointing_steps) {
            save(job, run, observer)?;
            if stop && !last {
                return Err(run.interrupted());
            }
            if !last {
                run.report_training(observer);
            }
        }
    }
    job.set_training(false);
    observer.on(Event::End);
    Ok(())
}

/// [`Job::evaluate`]. One that is broken off is made up for when the run goes on, so that it ends as if it had never stopped.
fn evaluate(job: &mut dyn Job, run: &mut Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()> {
    let outcome = job.evaluate(run, interrupt, observer);
    run.evaluation_is_owed = matches!(outcome, Err(Error::Interrupted(_)));
    if run.evaluation_is_owed {
        save(job, run, observer)?;
        return Err(run.interrupted());
    }
    outcome
}

fn save(job: &dyn Job, run: &mut Run, observer: &mut dyn Observer) -> Result<()> {
    let (epoch, _) = job.position(run.micro_step);
    observer.begin("writing", 1, "");
    run.save_checkpoint(epoch, |folder| job.write_adapter(folder))?;
    observer.on(Event::End);
    Ok(())
}

/// Clips, steps and reports. The numbers of a step come to the host here, in one go.
fn optimizer_step(parts: &[&str], run: &mut Run, losses: &[Losses], began: Instant) -> Result<StepMetrics> {
    let mean =
        |of: &dyn Fn(&Losses) -> Tensor| Tensor::stack(&losses.iter().map(of).collect::<Vec<_>>(), 0).mean(Kind::Float);
    let total = mean(&|losses| losses.total.shallow_clone());
    let means = (0..parts.len()).map(|part| mean(&|losses| losses.parts[part].shallow_clone()));
    let grads = gradients::gradients(&run.trained.params);
    let finite = match &mut run.scaler {
        Some(scaler) => scaler.unscale(&grads)?,
        None => true,
    };
    let norm = match finite {
        true => gradients::clip_grad_norm(&grads, run.training.max_grad_norm)?,
        false => Tensor::from(f32::NAN).to_device(run.device),
    };
    let lr = run.schedule.lr(run.optimizer_steps());
    let numbers: Vec<Tensor> = [total, norm.view([])].into_iter().chain(means).collect();
    let numbers = Vec::<f32>::try_from(Tensor::stack(&numbers, 0))?;
    let number = |i: usize| Some(f64::from(numbers[i])).filter(|number| number.is_finite());
    let (loss, grad_norm) = (number(0), number(1));
    // A loss that is not a number would make the weights no numbers: they stay as they were.
    let diverged = loss.is_none() || (grad_norm.is_none() && run.scaler.is_none());
    if finite && !diverged {
        run.optimizer.step(&run.trained.params, lr)?;
    }
    run.optimizer.zero_grad(&run.trained.params)?;
    run.step += 1;
    run.check_divergence(loss.is_none(), diverged, finite)?;
    let parts: BTreeMap<String, Option<f64>> =
        parts.iter().enumerate().map(|(i, name)| ((*name).to_owned(), number(2 + i))).collect();
    Ok(StepMetrics {
        step: run.step,
        epoch: 0,
        loss,
        parts,
        lr,
        grad_norm,
        step_s: began.elapsed().as_secs_f64(),
        peak_mib: run.peak_bytes()? as f64 / f64::from(1 << 20),
    })
}
