//! Trains the text encoder and the UNet together: the velocity of noised latents, from captions of which some are empty.
//!
//! Shapes: b batch, n pictures that were encoded, t text length, d text width.

use crate::captions::{self, COLOURS};
use crate::cutouts::{self, Cutout, View};
use crate::grid;
use crate::pipeline_folder::{copy_descriptions, write_network, Network};
use crate::training::{named, Training, TrainingArgs};
use clap::Args;
use image::RgbImage;
use lorabooth::data::tokenizers::clip::ClipTokenizer;
use lorabooth::error::Result;
use lorabooth::libtorch::random::Generator;
use lorabooth::models::stable_diffusion::{AutoencoderKl, ClipTextModel, Loaded, PipelineFiles, UNet2DConditionModel};
use lorabooth::sample::text_to_image::{decode, sample_latents, Conditioning, Sampling};
use lorabooth::schedulers::NoiseSchedule;
use lorabooth::schedulers::SchedulerConfig;
use lorabooth::train::Parameters;
use lorabooth::weights::Placement;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Reduction, Tensor};

const FLOAT32: Placement = Placement { device: Device::Cpu, kind: Kind::Float };
/// Prompts that are drawn at each checkpoint.
const WATCHED: usize = 40;
const COLUMNS: u32 = 10;

#[derive(Args)]
pub struct DiffusionArgs {
    #[command(flatten)]
    training: TrainingArgs,
    /// Composites of each object on each background
    #[arg(long, default_value_t = 10)]
    views: usize,
}

#[derive(Args)]
pub struct SampleArgs {
    /// The pipeline
    #[arg(long)]
    model: PathBuf,
    /// What prepare_corpus.py wrote
    #[arg(long)]
    corpus: PathBuf,
    /// The PNG to write
    #[arg(long)]
    output: PathBuf,
    /// Of the noise
    #[arg(long, default_value_t = 0)]
    seed: i64,
}

pub fn run(args: &DiffusionArgs) -> Result<()> {
    let options = &args.training;
    let kind = options.placement().kind;
    let files = PipelineFiles::open(&options.model, None)?;
    let concepts = cutouts::load(&options.corpus.join("concepts.jsonl"))?;
    let models = Models::load(&files, options.placement())?;
    let pictures = Pictures::encode(&models.vae, &concepts, args.views, options.seed);
    let params: Parameters = named(Network::Unet, models.unet.sites.train_weights(|_| true))
        .chain(named(Network::TextEncoder, models.text_encoder.sites.train_weights(|_| true)))
        .collect();
    let noise_schedule = NoiseSchedule::new(&models.scheduler)?;
    let watched = watched_prompts(&concepts);

    let mut training = Training::begin(options, params)?;
    while let Some(mut draw) = training.next_step() {
        // 1. Pictures and what is said of them
        let (latents, captions) = pictures.batch(&mut draw, &concepts, options.batch_size);
        let text = models.encode(&captions)?;

        // 2. Noise
        let noise = draw.randn(&latents.size());
        let timesteps = draw.randint(0, noise_schedule.num_train_timesteps(), &[latents.size()[0]]);
        let noisy = noise_schedule.add_noise(&latents, &noise, &timesteps);
        let target = noise_schedule.target(models.scheduler.prediction_type(), &latents, &noise, &timesteps);

        // 3. Prediction and step
        let prediction = models.unet.model.forward(&noisy.to_kind(kind), &timesteps.to_kind(Kind::Float), &text, false);
        training.learn(&prediction.to_kind(Kind::Float).mse_loss(&target, Reduction::Mean))?;

        // 4. A look at it
        if training.save_is_due() {
            training.save()?;
            write_model(&training, &options.model, &options.output.join("model"))?;
            let images = training.with_average(|| models.draw(&watched, 0))?;
            grid::write(&options.output.join(format!("grid-{}.png", training.step())), &images, COLUMNS)?;
        }
    }
    Ok(())
}

/// The `sample` command.
pub fn sample(args: &SampleArgs) -> Result<()> {
    let files = PipelineFiles::open(&args.model, None)?;
    let concepts = cutouts::load(&args.corpus.join("concepts.jsonl"))?;
    let models = Models::load(&files, FLOAT32)?;
    let prompts = watched_prompts(&concepts);
    for row in prompts.chunks(COLUMNS as usize) {
        eprintln!("{}", row.join(" | "));
    }
    grid::write(&args.output, &tch::no_grad(|| models.draw(&prompts, args.seed))?, COLUMNS)
}

/// Concepts spread over the corpus, each with the colour that it was never trained with.
fn watched_prompts(concepts: &[Cutout]) -> Vec<String> {
    let prompt = |i: usize| {
        let concept = i * concepts.len() / WATCHED;
        captions::full(&concepts[concept].text, captions::held_out_colour(concept))
    };
    (0..WATCHED.min(concepts.len())).map(prompt).collect()
}

/// Latents of all composites.
struct Pictures {
    /// `[n, 4, h, w]`, in the UNet's scale
    latents: Tensor,
    /// Concept and colour of each.
    shows: Vec<(usize, usize)>,
}

impl Pictures {
    /// Encodes `views` composites of each concept on each colour but the one held out.
    fn encode(vae: &AutoencoderKl, concepts: &[Cutout], views: usize, seed: i64) -> Self {
        let pairs = (0..concepts.len()).flat_map(|concept| (0..COLOURS.len()).map(move |colour| (concept, colour)));
        let trained = pairs.filter(|&(concept, colour)| colour != captions::held_out_colour(concept));
        let shows: Vec<(usize, usize)> = trained.flat_map(|pair| std::iter::repeat_n(pair, views)).collect();
        let backgrounds = COLOURS.map(|(_, rgb)| cutouts::plain(rgb));
        let mut draw = Generator::new(seed);
        let mut composite = |&(concept, colour): &(usize, usize)| {
            concepts[concept].on(&backgrounds[colour], View::draw(&mut draw, (0.7, 1.0)))
        };
        let encode = |shows: &[(usize, usize)]| {
            let images = Tensor::stack(&shows.iter().map(&mut composite).collect::<Vec<_>>(), 0);
            tch::no_grad(|| vae.encode(&images).mean) * vae.config().scaling_factor
        };
        let latents: Vec<Tensor> = shows.chunks(64).map(encode).collect();
        let latents = Tensor::cat(&latents, 0);
        let (mean, deviation) = (latents.mean(Kind::Float).double_value(&[]), latents.std(true).double_value(&[]));
        eprintln!(
            "{} pictures of {} concepts, latents with mean {mean:.2} and deviation {deviation:.2}",
            shows.len(),
            concepts.len()
        );
        Self { latents, shows }
    }

    /// Latents `[b, 4, h, w]` and captions.
    fn batch(&self, draw: &mut Generator, concepts: &[Cutout], size: usize) -> (Tensor, Vec<String>) {
        let picks = draw.randint(0, self.shows.len() as i64, &[size as i64]);
        let caption = |i: usize| {
            let (concept, colour) = self.shows[picks.int64_value(&[i as i64]) as usize];
            captions::draw(draw, &concepts[concept].text, colour)
        };
        let captions = (0..size).map(caption).collect();
        (self.latents.index_select(0, &picks), captions)
    }
}

/// A pipeline in memory.
struct Models {
    unet: Loaded<UNet2DConditionModel>,
    text_encoder: Loaded<ClipTextModel>,
    vae: AutoencoderKl,
    tokenizer: ClipTokenizer,
    scheduler: SchedulerConfig,
}

impl Models {
    fn load(files: &PipelineFiles, placement: Placement) -> Result<Self> {
        Ok(Self {
            unet: files.load_unet(placement)?,
            text_encoder: files.load_text_encoder(placement)?,
            vae: files.load_vae(FLOAT32)?.model,
            tokenizer: ClipTokenizer::from_folder(&files.tokenizer_folder()?)?,
            scheduler: SchedulerConfig::from_json(&files.scheduler_config_json()?.to_string())?.for_stable_diffusion(),
        })
    }

    /// `[b, t, d]`
    fn encode(&self, captions: &[String]) -> Result<Tensor> {
        let ids = captions.iter().map(|caption| self.tokenizer.encode(caption)).collect::<Result<Vec<_>>>()?;
        Ok(self.text_encoder.model.forward(&ClipTextModel::ids(&ids, Device::Cpu), false))
    }

    /// One picture a prompt, all of them at once; the i-th from the noise of `seed` + i.
    fn draw(&self, prompts: &[String], seed: i64) -> Result<Vec<RgbImage>> {
        let on = Conditioning { prompt: self.encode(prompts)?, negative: self.encode(&[String::new()])? };
        let side = cutouts::SIDE / self.vae.config().scale_factor();
        let sampling =
            Sampling { steps: 25, guidance_scale: 3.0, scheduler: None, latent_height: side, latent_width: side };
        let seeds: Vec<i64> = (0..prompts.len() as i64).map(|i| seed + i).collect();
        let latents = sample_latents(&self.unet.model, &self.scheduler, &on, &sampling, &seeds, &mut |_, _| Ok(()))?;
        decode(&self.vae.decoder, &latents, Kind::Float)
    }
}

/// The averaged weights as a pipeline, with the autoencoder of `start`.
fn write_model(training: &Training, start: &Path, model: &Path) -> Result<()> {
    copy_descriptions(start, model)?;
    write_network(model, Network::Vae, &Network::Vae.read(&PipelineFiles::open(start, None)?)?, Kind::Float)?;
    for network in [Network::Unet, Network::TextEncoder] {
        write_network(model, network, &training.average_of(network), Kind::Float)?;
    }
    Ok(())
}
