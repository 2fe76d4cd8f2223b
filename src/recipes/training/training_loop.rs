//! The one training loop: batches forward and backward, gradients to an optimizer step, numbers to the logs, checkpoints.

use super::control::{Control, Order, SampleRequest};
use super::observer::{Event, Observer};
use super::run::Run;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::train::gradients;
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

    /// Turns dropout on or off.
    fn set_training(&self, training: bool);

    /// Evaluates on held-out data or draws samples, where that is due: called before the first step and after each one,
    /// with dropout off. Interrupted with [`Error::Interrupted`] once `interrupt` is set.
    fn evaluate(&mut self, run: &mut Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()>;

    /// Whether [`Job::evaluate`] has something to do after the present step.
    fn evaluation_is_due(&self, run: &Run) -> bool;

    /// Makes a sample that another thread asked for, with dropout off. Interrupted with [`Error::Interrupted`] once `interrupt` is set.
    fn sample(
        &mut self,
        run: &mut Run,
        request: &SampleRequest,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<()>;

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

/// Numbers that ranks share with the gradients of a step: the loss, whether one was asked to stop, and the losses' `parts`.
pub(super) fn numbers(parts: &[&str]) -> usize {
    2 + parts.len()
}

/// Optimizer steps until the run's last one, or until `control` asks it to stop, with the state saved.
pub fn train(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    let outcome = steps(job, run, control, observer).and_then(|()| run.ranks.meet());
    outcome.map_err(|error| run.without_a_rank(error))
}

fn steps(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    if run.step == 0 || run.evaluation_is_owed {
        evaluate(job, run, control, observer)?;
    }
    run.report_training(observer);
    job.set_training(true);
    obey(job, run, control, observer)?;
    while run.step < run.total_steps {
        let began = Instant::now();
        let (epoch, first) = run.position();
        run.accumulated = run.training.accumulation_divisor(first, run.batches_per_epoch);
        let mut losses: Vec<Losses> = Vec::new();
        // Forward and backward, for as many batches as one optimizer step adds up. As in accelerate, the last batch of
        // an epoch ends the addition.
        loop {
            let is_last = losses.len() as u64 + 1 == run.training.gradient_accumulation_steps
                || (run.micro_step + 1).is_multiple_of(run.batches_per_epoch.max(1) as u64);
            if let (true, Some(reduction)) = (is_last, &mut run.reduction) {
                reduction.arm();
            }
            losses.push(catching(|| job.micro_step(run))?);
            run.micro_step += 1;
            if run.position().1 == 0 || losses.len() as u64 == run.training.gradient_accumulation_steps {
                break;
            }
        }
        let metrics = catching(|| optimizer_step(job.parts(), run, &losses, control.interrupt(), began))?;
        run.ranks.has_done(run.step)?;
        run.note(StepMetrics { epoch: epoch as u64, ..metrics }, observer)?;
        between_steps(job, run, control, observer)?;
    }
    job.set_training(false);
    observer.on(Event::End);
    Ok(())
}

/// What is due after a step: an evaluation, what other threads have asked for, a checkpoint, the end.
fn between_steps(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    if job.evaluation_is_due(run) {
        job.set_training(false);
        evaluate(job, run, control, observer)?;
        job.set_training(true);
        report_again(run, observer);
    }
    obey(job, run, control, observer)?;
    let stop = run.is_asked_to_stop(control.interrupt());
    if stop || run.is_done() || run.step.is_multiple_of(run.training.checkpointing_steps) {
        save(job, run, observer)?;
        if stop && !run.is_done() {
            return Err(run.interrupted());
        }
        report_again(run, observer);
    }
    Ok(())
}

/// Does what other threads have asked for, and waits while the run is to pause.
fn obey(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    let mut paused: Option<Instant> = None;
    loop {
        match control.next() {
            Order::Save => save(job, run, observer)?,
            Order::Sample(request) => sample(job, run, &request, control, observer)?,
            Order::Wait if !run.is_done() => {
                if paused.is_none() {
                    paused = Some(Instant::now());
                    observer.on(Event::End);
                    observer.on(Event::Paused { step: run.step });
                }
                control.wait();
                continue;
            }
            Order::Wait | Order::GoOn => break,
        }
        if paused.is_none() {
            report_again(run, observer);
        }
    }
    if let Some(since) = paused {
        run.paused += since.elapsed();
        observer.on(Event::Continued { step: run.step });
        report_again(run, observer);
    }
    Ok(())
}

/// [`Run::report_training`] after something else, where steps are left.
fn report_again(run: &Run, observer: &mut dyn Observer) {
    if !run.is_done() {
        run.report_training(observer);
    }
}

/// [`Job::evaluate`]. One that is broken off is made up for when the run goes on, so that it ends as if it had never stopped.
fn evaluate(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    let outcome = job.evaluate(run, control.interrupt(), observer).and_then(|()| run.ranks.meet());
    run.evaluation_is_owed = matches!(outcome, Err(Error::Interrupted(_)));
    if run.evaluation_is_owed {
        save(job, run, observer)?;
        return Err(run.interrupted());
    }
    outcome
}

/// [`Job::sample`]. A sample that cannot be made costs no run; one that is broken off has been asked to be.
fn sample(
    job: &mut dyn Job,
    run: &mut Run,
    request: &SampleRequest,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<()> {
    job.set_training(false);
    let outcome = catching(|| job.sample(run, request, control.interrupt(), observer));
    job.set_training(true);
    match outcome {
        Ok(()) | Err(Error::Interrupted(_)) => {}
        Err(error) => {
            observer.on(Event::End);
            observer.warning(format!("the sample was not made: {error}"));
        }
    }
    Ok(())
}

/// Writes the checkpoint of the present step, if it is not there yet.
fn save(job: &dyn Job, run: &mut Run, observer: &mut dyn Observer) -> Result<()> {
    if run.saved == Some((run.step, run.evaluation_is_owed)) {
        return Ok(());
    }
    observer.begin("writing", 1, "");
    run.save_checkpoint(|folder| job.write_adapter(folder))?;
    observer.on(Event::End);
    let path = run.folder.join(&format!("checkpoint-{}", run.step));
    observer.on(Event::Checkpoint { path, step: run.step });
    Ok(())
}

/// Clips, steps and reports. The numbers of a step come to the host here, in one go.
fn optimizer_step(
    parts: &[&str],
    run: &mut Run,
    losses: &[Losses],
    interrupt: &Interrupt,
    began: Instant,
) -> Result<StepMetrics> {
    let mean =
        |of: &dyn Fn(&Losses) -> Tensor| Tensor::stack(&losses.iter().map(of).collect::<Vec<_>>(), 0).mean(Kind::Float);
    let mut total = mean(&|losses| losses.total.shallow_clone());
    let means = (0..parts.len()).map(|part| mean(&|losses| losses.parts[part].shallow_clone()));
    let mut means: Vec<Tensor> = means.collect();
    // Of all ranks, where there are several: from here on each has the same numbers, and does the same.
    if let Some(reduction) = &mut run.reduction {
        let stop = Tensor::from(f32::from(u8::from(interrupt.requested()))).to_device(run.device);
        let own: Vec<Tensor> = [total, stop].into_iter().chain(means).collect();
        let mut shared = reduction.finish(&own, true)?.into_iter();
        (total, means) = (shared.next().unwrap_or_default(), Vec::new());
        let stop = shared.next().unwrap_or_default();
        means.extend(shared.chain([stop]));
    }
    let grads = gradients::gradients(&run.trained.params);
    let overflow = run.scaler.as_ref().map(|scaler| scaler.unscale(&grads)).transpose()?.flatten();
    let norm = gradients::grad_norm(&grads)?.to_device(run.device);
    let overflow = overflow.unwrap_or_else(|| norm.zeros_like());
    let lr = run.schedule.lr(run.optimizer_steps());
    let numbers: Vec<Tensor> = [total, norm.view([]), overflow.view([])].into_iter().chain(means).collect();
    let numbers = Vec::<f32>::try_from(Tensor::stack(&numbers, 0))?; // the host waits here, and nowhere else in a step
    let number = |i: usize| Some(f64::from(numbers[i])).filter(|number| number.is_finite());
    run.is_asked_to_stop = run.reduction.is_some() && numbers[3 + parts.len()] > 0.0;
    let finite = numbers[2] == 0.0;
    if let Some(scaler) = &mut run.scaler {
        scaler.update(finite);
    }
    let (loss, grad_norm) = (number(0), number(1).filter(|_| finite));
    // A loss that is not a number would make the weights no numbers: they stay as they were.
    let diverged = loss.is_none() || (grad_norm.is_none() && run.scaler.is_none());
    if finite && !diverged {
        gradients::clip(&grads, numbers[1], run.training.max_grad_norm)?;
        run.optimizer.step(&run.trained.params, lr)?;
    }
    run.optimizer.zero_grad(&run.trained.params)?;
    run.step += 1;
    run.check_divergence(loss.is_none(), diverged, finite)?;
    let parts: BTreeMap<String, Option<f64>> =
        parts.iter().enumerate().map(|(i, name)| ((*name).to_owned(), number(3 + i))).collect();
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
