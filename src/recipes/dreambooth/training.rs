//! DreamBooth LoRA: from a folder of photos to adapter files.
//! Paper: arXiv 2208.12242. Reference: PEFT's `examples/lora_dreambooth/train_dreambooth.py`.

use super::adapters::{check_init_adapter, Adapters};
use super::class_images::make_class_images;
use super::encodings::{encode_photos, encode_prompts, Embeddings};
use super::networks::Networks;
use super::options::{free_options, usual_steps, why_so_long, with_output};
use super::photos::{check_prompts, instance_files, open_dataset};
use super::plan::{peak_and_advice, plan_input, NetworkConfigs};
use super::samples::{Samples, Series, Texts};
use crate::adapters::Sites;
use crate::data::dreambooth_dataset::{BatchOrder, DreamBoothDataset, PreparedBatch};
use crate::data::latent_cache::LatentCache;
use crate::data::photos::Photo;
use crate::data::prefetch::Prefetch;
use crate::data::tokenizers::ClipTokenizer;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::random::Generator;
use crate::libtorch::upload::upload;
use crate::models::stable_diffusion::{LatentDistribution, PipelineFiles, SizeIds};
use crate::options::dreambooth::DreamBoothConfig;
use crate::plain_text;
use crate::recipes::prompt_checks::shown;
use crate::recipes::training::adaptation::Adaptation;
use crate::recipes::training::control::{Control, SampleRequest};
use crate::recipes::training::memory_advice::report_memory;
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::{Finished, Run, RunOptions, TextSample, TrainingData, TRAINING};
use crate::recipes::training::training_loop::{self, Job, Losses};
use crate::sample::pipeline::scheduler_config;
use crate::sample::text_to_image::EncodedPrompts;
use crate::schedulers::{NoiseSchedule, PredictionType};
use crate::train::losses::dreambooth_loss;
use crate::weights::{Keeping, Placement};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Trains on `device` as `config` says, telling `observer` and doing what `control` asks for: stopping, with the state saved, and
/// more.
pub fn train(
    config: &DreamBoothConfig,
    device: Device,
    seed: i64,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Finished> {
    let config = with_output(config);
    Adaptation::of_starts(&config.training, config.output(), device, |adaptation| {
        start(&config, adaptation, (device, seed), control, &mut *observer)
    })
}

/// One start of the run, with all that it has changed of itself.
fn start(
    asked: &DreamBoothConfig,
    adaptation: &mut Adaptation,
    (device, seed): (Device, i64),
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Finished> {
    // 1. Everything that can be refused is refused before time is spent.
    let observer: &mut dyn Observer = &mut adaptation.hearing(observer);
    let interrupt = control.interrupt();
    let watch = interrupt.watch();
    let mut config = adaptation.measures().fold(asked.clone(), DreamBoothConfig::taking);
    adaptation.go_on(&mut config.training);
    config.check()?;
    check_init_adapter(&config)?;
    config.warnings().into_iter().for_each(|text| observer.warning(text));
    let files = open_files(&config, observer)?;
    let config = &config.for_model(&files)?;
    if let Some(path) = &config.init_adapter {
        crate::recipes::read_adapter(path, &files, observer)?;
    }
    let mut run = open_run(&asked.for_model(&files)?, config, adaptation, device, seed)?;
    crate::recipes::report_model(&config.model.name, None, observer);
    crate::recipes::report_device(device, run.kind, observer)?;
    crate::recipes::report_weights(&config.training.weights, device, observer);
    let outcome = catching(|| {
        let mut job = prepare(config, &files, &mut run, interrupt, observer)?;
        run.prepare(job.parts(), job.adapters.trained(), job.training_data(), observer)?;
        job.report_setup(&run, observer);
        run.begin()?;
        drop(watch);
        // 3. The loop.
        training_loop::train(&mut job, &mut run, control, observer)?;
        // 4. The adapter files.
        if !run.ranks.is_first() {
            return Ok(run.finish_elsewhere());
        }
        let finished = run.finish(&[], observer, |folder, observer| job.adapters.write(folder, observer))?;
        let sample = TextSample { prompt: job.dataset.trained_prompt().to_owned(), room: None };
        Ok(Finished { resolution: config.resolution, sample: Some(sample), ..finished })
    });
    outcome.map_err(|error| {
        observer.on(Event::End);
        let networks = NetworkConfigs::of(&files);
        let planned = || match &networks {
            Ok(networks) => plan_input(config, networks, None, device),
            Err(error) => Err(Error::invalid(error.to_string())),
        };
        adaptation.weigh(error, run, planned, observer)
    })
}

/// Opens the model.
fn open_files(config: &DreamBoothConfig, observer: &mut dyn Observer) -> Result<PipelineFiles> {
    let mut files = crate::recipes::open_model(&config.model.name, &config.model.options(), observer)?;
    files.store_in(Keeping {
        storage: config.training.weights.storage(),
        fp32_layers: config.training.fp32_layers.as_slice().into(),
        slicing: config.slicing,
    });
    files.check_layers()?;
    Ok(files)
}

/// The run that was `asked` for, with `config` in its place.
fn open_run(
    asked: &DreamBoothConfig,
    config: &DreamBoothConfig,
    adaptation: &mut Adaptation,
    device: Device,
    seed: i64,
) -> Result<Run> {
    let options = RunOptions {
        training: &config.training,
        learning_rate: config.learning_rate,
        batch_size: config.train_batch_size,
        asked_batch_size: asked.train_batch_size,
        output_dir: config.output(),
        given: &config.given,
        all: serde_json::to_value(asked).map_err(|error| Error::invalid(error.to_string()))?,
        free: &free_options(config),
        measures: adaptation.taken(),
        earlier: adaptation.take_earlier(),
    };
    Run::start(options, device, seed)
}

/// All that comes before the loop.
fn prepare<'a>(
    config: &'a DreamBoothConfig,
    files: &'a PipelineFiles,
    run: &mut Run,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<DreamBoothJob<'a>> {
    let (device, seed) = (run.device, run.seed);
    run.room_for_convolutions =
        report_memory(|budget| peak_and_advice(config, files, run.device, budget), run.device, observer)?;
    let tokenizer = ClipTokenizer::from_folder(&files.tokenizer_folder()?)?;
    check_prompts(config, &instance_files(config)?.files, &tokenizer, observer)?;
    // 2. The frozen parts that do not train run once, and are freed: photos to latents, prompts to embeddings.
    make_class_images(config, files, run, interrupt, observer)?;
    let mut dataset = open_dataset(config, observer)?;
    let (cache, vae_encoder) = encode_photos(config, files, run, &mut dataset, observer)?;
    let scheduler = scheduler_config(files)?;
    observer.begin("loading the model", 2, "networks");
    let (embeddings, encoders) = encode_prompts(config, files, run, &dataset)?;
    observer.on(Event::Progress { done: 1 });
    run.phase = TRAINING;
    let unet = files.load_unet(Placement { device, kind: run.kind })?;
    observer.on(Event::Progress { done: 2 });
    observer.on(Event::End);
    let networks = Networks {
        unet,
        text_encoders: encoders.trained,
        vae_encoder,
        kind: run.kind,
        vae_kind: files.vae_kind(run.kind),
        device,
    };
    Ok(DreamBoothJob {
        config,
        files,
        adapters: Adapters::attach(config, &networks, files, encoders.carried, seed)?,
        networks,
        cache,
        order: dataset
            .order(config.train_batch_size, seed, !config.no_shuffle)?
            .dealt(run.ranks.rank(), run.ranks.count()),
        embeddings,
        noise: NoiseSchedule::new(&scheduler)?.to_device(device),
        prediction: scheduler.prediction_type(),
        scaling_factor: files.vae_config()?.scaling_factor,
        dataset: Arc::new(dataset),
        batches: None,
        next_batch: 0,
    })
}

/// Photos, prompts and networks, as the loop asks for them.
struct DreamBoothJob<'a> {
    config: &'a DreamBoothConfig,
    files: &'a PipelineFiles,
    networks: Networks,
    adapters: Adapters,
    dataset: Arc<DreamBoothDataset>,
    cache: LatentCache,
    order: BatchOrder,
    embeddings: Embeddings,
    noise: NoiseSchedule,
    prediction: PredictionType,
    scaling_factor: f64,
    batches: Option<Prefetch<Result<PreparedBatch>>>,
    /// The number of the one that comes next.
    next_batch: u64,
}

impl DreamBoothJob<'_> {
    /// What will be trained, on what, how many parameters, and where it will be.
    fn report_setup(&self, run: &Run, observer: &mut dyn Observer) {
        let config = self.config;
        self.report_photos(observer);
        let each = format!("batch {}, {} px", config.train_batch_size, config.side());
        let fields = json!({ "batch_size": config.train_batch_size, "resolution": config.side() });
        run.report_length(&each, fields, observer);
        if let Some(why) = why_so_long(config, self.dataset.instance_count() as u64) {
            observer.fact("length", why);
        }
        crate::recipes::report_start(self.adapters.start(config), config.init_adapter.as_deref(), run, observer);
        self.adapters.report(observer);
        crate::recipes::report_output(run.folder.path(), observer);
    }

    /// How many photos there are, what they are trained with, and the folders that they are in.
    fn report_photos(&self, observer: &mut dyn Observer) {
        let (photos, captions) = (self.dataset.instance_count(), self.dataset.caption_count());
        let prompt = shown(&self.config.instance_prompt);
        let example = self.dataset.photos().iter().find_map(|photo| photo.caption()).map(shown).unwrap_or_default();
        let trained_with = match captions {
            0 => format!("all are trained with \"{prompt}\""),
            _ if captions == photos => format!("such as \"{example}\""),
            _ => format!("such as \"{example}\"; the others are trained with \"{prompt}\""),
        };
        let mut text = format!("{}, {captions} with captions; {trained_with}", plain_text::counted(photos, "photo"));
        let (images, class_prompt) = (self.dataset.class_count(), self.config.class_prompt.as_deref());
        if images > 0 {
            let prompt = shown(class_prompt.unwrap_or_default());
            text.push_str(&format!("\nand {} trained with \"{prompt}\"", plain_text::counted(images, "class image")));
        }
        let fields = json!({
            "instance_images": photos, "captions": captions, "instance_prompt": self.config.instance_prompt,
            "class_images": images, "class_prompt": class_prompt,
        });
        observer.fact_with("photos", text, fields);
        for (folder, photos, repeats) in self.dataset.folders() {
            let text = format!(
                "{}: {}, {} an epoch",
                folder.display(),
                plain_text::counted(photos, "photo"),
                plain_text::counted(repeats, "repeat")
            );
            let fields = json!({ "path": folder.display().to_string(), "photos": photos, "repeats": repeats });
            observer.fact_with("folder", text, fields);
        }
    }

    fn samples(&self) -> Samples<'_> {
        Samples { config: self.config, files: self.files, networks: &self.networks }
    }

    /// Encodes a prompt, and what must not be on an image, with the text encoders as they are.
    fn encode(&self, texts: Texts) -> Result<EncodedPrompts> {
        self.embeddings.encode(texts, &self.networks, self.files, self.adapters.carried())
    }

    /// What it learns from, and for how long where the options do not say.
    fn training_data(&self) -> TrainingData {
        let dataset = &self.dataset;
        let file = |(index, photo): (usize, &Photo)| {
            json!({
                "file": photo.path().display().to_string(),
                "kind": if index < dataset.instance_count() { "instance" } else { "class" },
                "caption": dataset.prompt(index),
                "bytes": std::fs::metadata(photo.path()).map(|about| about.len()).ok(),
            })
        };
        TrainingData {
            name: "photos",
            fingerprint: dataset.fingerprint(),
            files: dataset.photos().iter().enumerate().map(file).collect(),
            prediction_type: Some(self.prediction.name()),
            batches_per_epoch: self.order.batches_per_epoch(),
            batches: self.order.places().div_ceil(self.config.train_batch_size),
            usual_steps: Some(usual_steps(dataset.instance_count() as u64)),
        }
    }

    /// The batches from the run's place on, each decoded while the one before it trains.
    fn next_batch(&mut self, run: &Run) -> Result<PreparedBatch> {
        let (dataset, order, known) = (self.dataset.clone(), self.order.clone(), self.cache.known());
        let (seed, first, ranks) = (run.seed, run.micro_step, run.ranks.clone());
        let prefetched = || {
            Prefetch::new((first..).map(move |micro_step| {
                let generator = Generator::new(ranks.seed(seed, micro_step));
                dataset.prepare(order.micro_batch(micro_step as usize), generator, |photo| known[photo])
            }))
        };
        if self.next_batch != first {
            self.batches = None;
        }
        self.next_batch = first + 1;
        let batches = match &mut self.batches {
            Some(batches) => batches,
            none => none.insert(prefetched()?),
        };
        batches.next().ok_or_else(|| Error::invalid("the photos' thread ended"))?
    }
}

impl Job for DreamBoothJob<'_> {
    fn parts(&self) -> &'static [&'static str] {
        &["instance_loss", "prior_loss"]
    }

    /// The batch's draws are numbered in the order in which they are made.
    fn micro_step(&mut self, run: &Run) -> Result<Losses> {
        let mut batch = self.next_batch(run)?;
        let (config, networks, device) = (self.config, &self.networks, run.device);
        let photos = &batch.batch.photos;
        let n = photos.len() as i64;
        // The crops were drawn when the batch was prepared (1).
        let encoded = match (batch.pixels()?, &networks.vae_encoder) {
            (Some(pixels), Some(vae)) => {
                Some(tch::no_grad(|| vae.model.encode(&upload(&pixels, device).to_kind(networks.vae_kind))))
            }
            _ => None,
        };
        let encoded = encoded.as_ref().map(|posterior| (&posterior.mean, &posterior.log_variance));
        let (mean, log_variance) = self.cache.posteriors(photos, encoded)?;
        let posterior = LatentDistribution { mean: upload(&mean, device), log_variance: upload(&log_variance, device) };
        let shape = posterior.mean.size();
        let generator = &mut batch.generator;
        let latents = posterior.sample(&upload(&generator.randn(&shape), device)) * self.scaling_factor; // (2)
        let mut noise = generator.randn(&shape); // (3)
        if config.noise_offset > 0.0 {
            noise += generator.randn(&[n, shape[1], 1, 1]) * config.noise_offset;
            // (4)
        }
        let noise = upload(&noise, device);
        let timesteps = upload(&generator.randint(0, self.noise.num_train_timesteps(), &[n]), device); // (5)
        generator.becomes_global()?; // (6) dropout, in the forwards below
        if let Device::Cuda(_) = device {
            tch::Cuda::manual_seed_all(run.ranks.seed(run.seed, run.micro_step) as u64);
        }

        let noisy = self.noise.add_noise(&latents, &noise, &timesteps);
        let sizes: Vec<SizeIds> =
            std::iter::zip(photos, &batch.crops).map(|(&photo, &crop)| self.dataset.size_ids(photo, crop)).collect();
        let on = self.embeddings.of(photos, &sizes, networks, config.training.gradient_checkpointing);
        let unet = &networks.unet.model;
        let prediction =
            unet.forward(&noisy.to_kind(run.kind), &timesteps, &on, config.training.gradient_checkpointing);
        let target = self.noise.target(self.prediction, &latents, &noise, &timesteps);
        let weights = config.snr_gamma.map(|gamma| self.noise.min_snr_weights(self.prediction, gamma, &timesteps));
        let prior_weight = config.with_prior_preservation.then_some(config.prior_loss_weight);
        let loss = dreambooth_loss(&prediction, &target, prior_weight, weights.as_ref());
        run.backward(&loss.total);
        let prior = loss.prior.unwrap_or_else(|| Tensor::full([], f64::NAN, (Kind::Float, device)));
        Ok(Losses { total: loss.total.detach(), parts: vec![loss.instance, prior] })
    }

    fn set_training(&self, training: bool) {
        self.networks.set_training(training);
    }

    fn networks(&self) -> Vec<(&'static str, &Sites)> {
        self.networks.named()
    }

    fn evaluation_phase(&self) -> &'static str {
        "sample images"
    }

    fn evaluate(&mut self, run: &mut Run, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<()> {
        let Some(prompt) = &self.config.validation_prompt else { return Ok(()) };
        let samples = self.samples();
        let pictures = samples.pictures((prompt, None), run.seed, self.config.num_validation_images)?;
        samples.draw(&pictures, &self.encode((prompt, None))?, Series::Validation, run, interrupt, observer)
    }

    fn sample(
        &mut self,
        run: &mut Run,
        request: &SampleRequest,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let samples = self.samples();
        let usual = self.config.validation_prompt.as_deref().unwrap_or(self.dataset.trained_prompt());
        let pictures = samples.requested(request, usual, run.seed)?;
        let on = self.encode((&pictures.prompts[0], pictures.negative_prompt.as_deref()))?;
        samples.draw(&pictures, &on, Series::Asked, run, interrupt, observer)
    }

    fn evaluation_is_due(&self, run: &Run) -> bool {
        let last = run.step == run.total_steps;
        self.config.validation_prompt.is_some() && (run.step.is_multiple_of(self.config.validation_steps) || last)
    }

    fn write_adapter(&self, folder: &Path) -> Result<()> {
        self.adapters.write_peft(folder)
    }
}
