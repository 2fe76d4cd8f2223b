//! The one training loop: batches forward and backward, gradients to an optimizer step, numbers to the logs, checkpoints.

use super::control::{Control, Order, SampleRequest};
use super::observer::{Event, Observer};
use super::rehearsal::rehearse;
use super::run::Run;
use crate::adapters::{Lost, Probe, Sites};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::train::gradients;
use crate::train::metrics::StepMetrics;
use std::collections::BTreeMap;
use std::ops::Range;
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

    /// The networks that a micro-step runs, by name; one that is alone has none.
    fn networks(&self) -> Vec<(&'static str, &Sites)>;

    /// What the plan calls the phase of [`Job::evaluate`].
    fn evaluation_phase(&self) -> &'static str;

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

/// Optimizer steps until the run's last one, or until `control` asks it to stop, with the state saved. It is saved too where memory is
/// full or numbers are lost, as it was before the step.
pub fn train(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    let outcome = steps(job, run, control, observer).and_then(|()| run.ranks.meet());
    if let Err(Error::OutOfMemory { .. } | Error::Diverged(_)) = &outcome {
        observer.on(Event::End);
        // What cannot be saved was saved last at an earlier step, or begins anew.
        drop(rescue(job, run, observer));
    }
    outcome.map_err(|error| run.without_a_rank(error))
}

fn steps(job: &mut dyn Job, run: &mut Run, control: &Control, observer: &mut dyn Observer) -> Result<()> {
    if run.step == 0 || run.evaluation_is_owed {
        evaluate(job, run, control, observer)?;
    }
    job.set_training(true);
    rehearse(job, run, observer)?;
    run.report_training(observer);
    obey(job, run, control, observer)?;
    while run.step < run.total_steps {
        let before = run.mark();
        let outcome = catching(|| step(job, run, control.interrupt()));
        if let Ok(Some(metrics)) = outcome {
            run.ranks.has_done(run.step)?;
            run.note(metrics, observer)?;
            between_steps(job, run, control, observer)?;
            continue;
        }
        let micro_steps = before.micro_step..run.micro_step.max(before.micro_step + 1);
        run.go_back(&before)?;
        outcome?;
        let lost = look_for_loss(job, run, micro_steps);
        run.share_lost(lost)?;
        run.go_back(&before)?;
        run.search_scale_anew();
        // What is said of it names the checkpoint.
        drop(rescue(job, run, observer));
        return Err(run.numbers_are_lost());
    }
    job.set_training(false);
    observer.on(Event::End);
    Ok(())
}

/// An optimizer step; none where its numbers are lost, and the weights as they were.
fn step(job: &mut dyn Job, run: &mut Run, interrupt: &Interrupt) -> Result<Option<StepMetrics>> {
    let began = Instant::now();
    let (epoch, first) = run.position();
    run.is_in_exchange = true;
    run.accumulated = run.training.accumulation_divisor(first, run.batches_per_epoch);
    // The other ranks wait for this one's gradients: one whose memory is full says so in their place.
    let losses = match catching(|| micro_steps(job, run)) {
        Err(error @ Error::OutOfMemory { .. }) => return Err(run.share_full_memory(error, job.parts(), interrupt)),
        losses => losses?,
    };
    let metrics = optimizer_step(job.parts(), run, &losses, interrupt, began)?;
    run.is_in_exchange = false;
    Ok(metrics.map(|metrics| StepMetrics { epoch: epoch as u64, ..metrics }))
}

/// Forward and backward, for as many batches as one optimizer step adds up. As in accelerate, the last batch of an epoch ends the
/// addition.
fn micro_steps(job: &mut dyn Job, run: &mut Run) -> Result<Vec<Losses>> {
    let mut losses: Vec<Losses> = Vec::new();
    loop {
        let is_last = losses.len() as u64 + 1 == run.training.gradient_accumulation_steps
            || (run.micro_step + 1).is_multiple_of(run.batches_per_epoch.max(1) as u64);
        if let (true, Some(reduction)) = (is_last, &mut run.reduction) {
            reduction.arm();
        }
        losses.push(job.micro_step(run)?);
        run.micro_step += 1;
        if is_last {
            return Ok(losses);
        }
    }
}

/// Makes `micro_steps` again, with every layer looking for the first number that is none.
fn look_for_loss(job: &mut dyn Job, run: &mut Run, micro_steps: Range<u64>) -> Option<Lost> {
    let probe = Probe::default();
    job.networks().iter().for_each(|(name, sites)| sites.look_with(Some(probe.of_network(name))));
    for micro_step in micro_steps {
        run.micro_step = micro_step;
        // What fails here has not failed before: nothing is found then.
        drop(catching(|| job.micro_step(run)));
        if probe.found().is_some() {
            break;
        }
    }
    job.networks().iter().for_each(|(_, sites)| sites.look_with(None));
    probe.found()
}

/// Saves the state as it was before the step that failed.
fn rescue(job: &dyn Job, run: &mut Run, observer: &mut dyn Observer) -> Result<()> {
    run.optimizer.zero_grad(&run.trained.params)?;
    memory::release_cached(run.device)?;
    match run.step > 0 && !run.is_torn {
        true => catching(|| save(job, run, observer)),
        false => Ok(()),
    }
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
        // However long that takes: an exchange waits for ⟨timeout⟩ alone.
        run.ranks.meet()?;
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
    let phase = std::mem::replace(&mut run.phase, job.evaluation_phase());
    let outcome = catching(|| job.evaluate(run, control.interrupt(), observer)).and_then(|()| run.ranks.meet());
    run.evaluation_is_owed = matches!(outcome, Err(Error::Interrupted(_) | Error::OutOfMemory { .. }));
    if let Err(Error::Interrupted(_)) = outcome {
        save(job, run, observer)?;
        return Err(run.interrupted());
    }
    if outcome.is_ok() {
        run.phase = phase;
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

/// Clips, steps and reports; nothing where numbers are lost. The numbers of a step come to the host here, in one go.
fn optimizer_step(
    parts: &[&str],
    run: &mut Run,
    losses: &[Losses],
    interrupt: &Interrupt,
    began: Instant,
) -> Result<Option<StepMetrics>> {
    let mean =
        |of: &dyn Fn(&Losses) -> Tensor| Tensor::stack(&losses.iter().map(of).collect::<Vec<_>>(), 0).mean(Kind::Float);
    let total = mean(&|losses| losses.total.shallow_clone());
    let means = (0..parts.len()).map(|part| mean(&|losses| losses.parts[part].shallow_clone()));
    let (total, means, asked) = run.share_step(total, means.collect(), interrupt)?;
    let grads = gradients::gradients(&run.trained.params);
    let overflow = run.scaler.as_ref().map(|scaler| scaler.unscale(&grads)).transpose()?.flatten();
    let norm = gradients::grad_norm(&grads)?.to_device(run.device);
    let overflow = overflow.unwrap_or_else(|| norm.zeros_like());
    let factor = run.schedule.factor(run.optimizer_steps());
    let lr = run.schedule.learning_rate * factor;
    let numbers: Vec<Tensor> =
        [total, norm.view([]), overflow.view([])].into_iter().chain(means).chain(asked).collect();
    let numbers = Vec::<f32>::try_from(Tensor::stack(&numbers, 0))?; // the host waits here, and nowhere else in a step
    let number = |i: usize| Some(f64::from(numbers[i])).filter(|number| number.is_finite());
    run.heed_ranks(&numbers[3 + parts.len()..])?;
    let finite = numbers[2] == 0.0;
    if let Some(scaler) = &mut run.scaler {
        scaler.update(finite);
    }
    let (loss, grad_norm) = (number(0), number(1).filter(|_| finite));
    // A loss that is not a number would make the weights no numbers: they stay as they were.
    let diverged = loss.is_none() || (grad_norm.is_none() && run.scaler.is_none());
    if finite && !diverged {
        gradients::clip(&grads, numbers[1], run.training.max_grad_norm)?;
        run.is_torn = true;
        run.is_in_exchange = run.has_stepped;
        run.groups.iter().try_for_each(|(params, rate)| run.optimizer.step(params, rate * factor))?;
        if !std::mem::replace(&mut run.has_stepped, true) {
            // Each rank's optimizer has its memory, or all start again.
            run.ranks.meet()?;
        }
        run.is_torn = false;
    }
    run.optimizer.zero_grad(&run.trained.params)?;
    run.step += 1;
    if run.has_diverged(diverged, finite) {
        return Ok(None);
    }
    let parts: BTreeMap<String, Option<f64>> =
        parts.iter().enumerate().map(|(i, name)| ((*name).to_owned(), number(3 + i))).collect();
    Ok(Some(StepMetrics {
        step: run.step,
        epoch: 0,
        loss,
        parts,
        lr,
        grad_norm,
        step_s: began.elapsed().as_secs_f64(),
        peak_mib: run.peak_bytes()? as f64 / f64::from(1 << 20),
    }))
}
