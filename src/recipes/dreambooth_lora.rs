//! DreamBooth LoRA: from a folder of photos to adapter files.
//! Paper: arXiv 2208.12242. Reference: PEFT's `examples/lora_dreambooth/train_dreambooth.py`.

use super::dreambooth_config::DreamBoothConfig;
use super::dreambooth_phases::{self as phases, Embeddings, Networks};
use super::dreambooth_plan::outlook;
use super::dreambooth_run::{Finished, Run};
use super::observer::{Event, Observer};
use crate::data::dreambooth_dataset::{BatchOrder, DreamBoothDataset, PreparedBatch};
use crate::data::latent_cache::LatentCache;
use crate::data::prefetch::Prefetch;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::libtorch::random::Generator;
use crate::models::stable_diffusion::{vae_kind, LatentDistribution, PipelineFiles};
use crate::schedulers::{NoiseSchedule, PredictionType};
use crate::train::gradients;
use crate::train::interrupt::Interrupt;
use crate::train::losses::dreambooth_loss;
use crate::train::metrics::StepMetrics;
use crate::train::precision::LossScaler;
use crate::weights::Placement;
use std::sync::Arc;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// What the training loop reads and never changes.
struct Job {
    dataset: Arc<DreamBoothDataset>,
    cache: LatentCache,
    order: BatchOrder,
    embeddings: Embeddings,
    noise: NoiseSchedule,
    prediction: PredictionType,
    scaling_factor: f64,
}

/// Losses of one micro-step, on the training device: total, instance, prior (zero without prior preservation).
type Losses = [Tensor; 3];

/// Trains on `device` as `config` says, telling `observer` and stopping, with the state saved, once `interrupt` is set.
pub fn train(
    config: &DreamBoothConfig,
    device: Device,
    seed: i64,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Finished> {
    // 1. Everything that can be refused is refused before time is spent.
    config.check()?;
    config.warnings().into_iter().for_each(|text| observer.warning(text));
    let mut run = Run::start(config, device, seed, observer)?;
    let (folder, files) = (run.folder.clone(), run.files.clone());
    let outcome = prepare(config, &mut run, interrupt, observer).and_then(|(job, networks)| {
        run.begin_training(config, &job.dataset, &job.order, &networks, observer)?;
        // 3. The loop.
        let outcome = train_loop(config, &job, &networks, &mut run, interrupt, observer);
        observer.on(Event::End);
        outcome.map_err(|error| with_advice(error, config, &files, device))?;
        // 4. The adapter files.
        run.finish(config, observer)
    });
    outcome.inspect_err(|_| folder.remove_if_unused())
}

/// Tells the planned peak, and what would lower it where the device has less free than that.
fn tell_memory(config: &DreamBoothConfig, run: &Run, observer: &mut dyn Observer) -> Result<()> {
    let free = memory::device_memory(run.device)?.0.max(0) as u64;
    let (peak, advice) = outlook(config, &run.files, run.device, free)?;
    // A process on the host is already there, with libtorch in it.
    let present = if run.device == Device::Cpu { memory::host_now() } else { 0 };
    observer.fact(
        "memory",
        format!("about {:.1} GiB at the peak, {:.1} GiB are free", memory::gib(peak + present), memory::gib(free)),
    );
    if free > 0 && peak > free {
        observer.warning(format!("this run may not fit: {advice}"));
    }
    Ok(())
}

/// Where memory ran out: what would have saved how much, in place of general advice.
fn with_advice(error: Error, config: &DreamBoothConfig, files: &PipelineFiles, device: Device) -> Error {
    match error {
        Error::OutOfMemory { .. } => match outlook(config, files, device, 0) {
            Ok((_, advice)) => error.advising(&advice),
            Err(_) => error,
        },
        other => other,
    }
}

/// All that comes before the loop.
fn prepare(
    config: &DreamBoothConfig,
    run: &mut Run,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<(Job, Networks)> {
    let (device, seed) = (run.device, run.seed);
    tell_memory(config, run, observer)?;
    // 2. The frozen parts that do not train run once, and are freed: photos to latents, prompts to embeddings.
    phases::make_class_images(config, run, interrupt, observer)?;
    let mut dataset = phases::open_dataset(config, observer)?;
    let (cache, vae_encoder) = phases::encode_photos(config, run, &mut dataset, observer)?;
    let scheduler = super::scheduler_config(&run.files)?;
    observer.begin("loading the model", 2);
    let (embeddings, text_encoder) = phases::encode_prompts(config, run, &dataset)?;
    observer.on(Event::Progress { done: 1 });
    let unet = run.files.load_unet(Placement { device, kind: run.kind })?;
    observer.on(Event::Progress { done: 2 });
    observer.on(Event::End);
    let networks = Networks { unet, text_encoder, vae_encoder, vae_kind: vae_kind(run.kind), device };
    let order = dataset.order(config.train_batch_size, seed, !config.no_shuffle)?;
    let job = Job {
        cache,
        order,
        embeddings,
        noise: NoiseSchedule::new(&scheduler)?.to_device(device),
        prediction: scheduler.prediction_type(),
        scaling_factor: run.files.vae_config()?.scaling_factor,
        dataset: Arc::new(dataset),
    };
    Ok((job, networks))
}

/// Optimizer steps until the run's last one.
fn train_loop(
    config: &DreamBoothConfig,
    job: &Job,
    networks: &Networks,
    run: &mut Run,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<()> {
    let mut batches = prefetched(job, run);
    if run.step == 0 {
        phases::write_samples(config, run, networks, &job.embeddings, interrupt, observer)?;
    }
    networks.set_training(true);
    while run.step < run.total_steps {
        let began = Instant::now();
        let first = run.micro_step;
        let mut losses: Vec<Losses> = Vec::new();
        // Forward and backward, for as many batches as one optimizer step adds up. As in accelerate, the last batch of
        // an epoch ends the addition.
        loop {
            let batch = batches.next().ok_or_else(|| Error::invalid("the photos' thread ended"))??;
            losses.push(catching(|| micro_step(config, job, networks, run, batch))?);
            run.micro_step += 1;
            let (_, index) = job.order.position(run.micro_step as usize);
            if index == 0 || losses.len() as u64 == config.gradient_accumulation_steps {
                break;
            }
        }
        let metrics = catching(|| optimizer_step(config, run, &losses, began))?;
        let epoch = job.order.position(first as usize).0 as u64;
        run.note(StepMetrics { epoch, ..metrics }, observer)?;
        let last = run.step == run.total_steps;
        if config.validation_prompt.is_some() && (run.step.is_multiple_of(config.validation_steps) || last) {
            networks.set_training(false);
            phases::write_samples(config, run, networks, &job.embeddings, interrupt, observer)?;
            networks.set_training(true);
        }
        let stop = interrupt.requested();
        if stop || last || run.step.is_multiple_of(config.checkpointing_steps) {
            let folder = run.save_checkpoint(config.keep_checkpoints, job.order.position(run.micro_step as usize).0)?;
            if stop && !last {
                run.write_run_json(config, "interrupted")?;
                return Err(Error::Interrupted(format!(
                    "step {} is saved in {}; go on with the same command and --resume",
                    run.step,
                    folder.display()
                )));
            }
        }
    }
    networks.set_training(false);
    Ok(())
}

/// The batches from the run's place on, each decoded while the one before it trains.
fn prefetched(job: &Job, run: &Run) -> Prefetch<Result<PreparedBatch>> {
    let (dataset, order, known) = (job.dataset.clone(), job.order, job.cache.known());
    let seed = run.seed;
    Prefetch::new((run.micro_step..).map(move |micro_step| {
        let generator = Generator::new(seed.wrapping_add(micro_step as i64));
        dataset.prepare(order.micro_batch(micro_step as usize), generator, |photo| known[photo])
    }))
}

/// One batch forward and backward. Its draws are numbered in the order in which they are made.
fn micro_step(
    config: &DreamBoothConfig,
    job: &Job,
    networks: &Networks,
    run: &Run,
    mut batch: PreparedBatch,
) -> Result<Losses> {
    let device = run.device;
    let photos = &batch.batch.photos;
    let n = photos.len() as i64;
    // The crops were drawn when the batch was prepared (1).
    let encoded = match (batch.pixels()?, &networks.vae_encoder) {
        (Some(pixels), Some(vae)) => {
            Some(tch::no_grad(|| vae.model.encode(&pixels.to_device(device).to_kind(networks.vae_kind))))
        }
        _ => None,
    };
    let encoded = encoded.as_ref().map(|posterior| (&posterior.mean, &posterior.log_variance));
    let (mean, log_variance) = job.cache.posteriors(photos, encoded)?;
    let posterior = LatentDistribution { mean: mean.to_device(device), log_variance: log_variance.to_device(device) };
    let shape = posterior.mean.size();
    let generator = &mut batch.generator;
    let latents = posterior.sample(&generator.randn(&shape).to_device(device)) * job.scaling_factor; // (2)
    let mut noise = generator.randn(&shape); // (3)
    if config.noise_offset > 0.0 {
        noise += generator.randn(&[n, shape[1], 1, 1]) * config.noise_offset; // (4)
    }
    let noise = noise.to_device(device);
    let timesteps = generator.randint(0, job.noise.num_train_timesteps(), &[n]).to_device(device); // (5)
    generator.becomes_global()?; // (6) dropout, in the forwards below
    if let Device::Cuda(_) = device {
        tch::Cuda::manual_seed_all(run.seed.wrapping_add(run.micro_step as i64) as u64);
    }

    let noisy = job.noise.add_noise(&latents, &noise, &timesteps);
    let text = job.embeddings.of(photos, networks, config.gradient_checkpointing);
    let unet = &networks.unet.model;
    let prediction = unet.forward(&noisy.to_kind(run.kind), &timesteps, &text, config.gradient_checkpointing);
    let target = job.noise.target(job.prediction, &latents, &noise, &timesteps);
    let weights = config.snr_gamma.map(|gamma| job.noise.min_snr_weights(job.prediction, gamma, &timesteps));
    let prior_weight = config.with_prior_preservation.then_some(config.prior_loss_weight);
    let loss = dreambooth_loss(&prediction, &target, prior_weight, weights.as_ref());
    let mut total = &loss.total / config.gradient_accumulation_steps as f64;
    if let Some(scaler) = &run.scaler {
        total = scaler.scale(&total);
    }
    total.backward();
    let prior = loss.prior.unwrap_or_else(|| Tensor::zeros([], (Kind::Float, device)));
    Ok([loss.total.detach(), loss.instance, prior])
}

/// Clips, steps and reports. The numbers of a step come to the host here, in one go.
fn optimizer_step(config: &DreamBoothConfig, run: &mut Run, losses: &[Losses], began: Instant) -> Result<StepMetrics> {
    let means: Vec<Tensor> = (0..3)
        .map(|part| {
            let parts: Vec<Tensor> = losses.iter().map(|losses| losses[part].shallow_clone()).collect();
            Tensor::stack(&parts, 0).mean(Kind::Float)
        })
        .collect();
    let grads = gradients::gradients(&run.params);
    let finite = match &mut run.scaler {
        Some(scaler) => scaler.unscale(&grads)?,
        None => true,
    };
    let norm = match finite {
        true => gradients::clip_grad_norm(&grads, config.max_grad_norm)?,
        false => Tensor::from(f32::NAN).to_device(run.device),
    };
    let lr = run.schedule.lr(run.optimizer_steps());
    let numbers = Vec::<f32>::try_from(Tensor::stack(&[&means[0], &means[1], &means[2], &norm.view([])], 0))?;
    let number = |i: usize| Some(f64::from(numbers[i])).filter(|number| number.is_finite());
    // A loss that is no number would make the weights no numbers: they stay as they were.
    let diverged = number(0).is_none() || (number(3).is_none() && run.scaler.is_none());
    if finite && !diverged {
        run.optimizer.step(&run.params, lr)?;
    }
    run.optimizer.zero_grad(&run.params)?;
    run.step += 1;
    run.check_divergence(number(0).is_none(), diverged, finite)?;
    Ok(StepMetrics {
        step: run.step,
        epoch: 0,
        loss: number(0),
        instance_loss: number(1),
        prior_loss: number(2).filter(|_| config.with_prior_preservation),
        lr,
        grad_norm: number(3),
        step_s: began.elapsed().as_secs_f64(),
        peak_mib: run.peak_bytes()? as f64 / f64::from(1 << 20),
    })
}

/// The last loss scaler's state, for a checkpoint.
pub(super) fn scaler_state(scaler: &Option<LossScaler>) -> Option<crate::train::precision::ScalerState> {
    scaler.as_ref().map(LossScaler::state)
}
