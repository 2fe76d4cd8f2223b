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
use lorabooth::data::tokenizers::PromptTokenizers;
use lorabooth::error::{Error, Result};
use lorabooth::libtorch::failure::catching;
use lorabooth::libtorch::random::Generator;
use lorabooth::models::stable_diffusion::{
    Conditioning, Loaded, PipelineFiles, SizeIds, TextEncoders, UNet2DConditionModel, VaeDecoder,
};
use lorabooth::recipes::demo::GUIDANCE;
use lorabooth::sample::drawn_image::DrawnImage;
use lorabooth::sample::painter::{DrawingListener, Painter, Pictures};
use lorabooth::sample::pipeline::scheduler_config;
use lorabooth::sample::text_to_image::{EncodedPrompts, Sampling};
use lorabooth::schedulers::{NoiseSchedule, SchedulerConfig};
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
    /// Text file of the objects to learn, as captions name them, one a line; all of the corpus where not given
    #[arg(long)]
    focus: Option<PathBuf>,
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
    /// Text file of the objects to draw from, as in training
    #[arg(long)]
    focus: Option<PathBuf>,
}

/// Numbers of the concepts that `focus` names; of all without it.
fn focused(concepts: &[Cutout], focus: Option<&Path>) -> Result<Vec<usize>> {
    let Some(path) = focus else { return Ok((0..concepts.len()).collect()) };
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    let number = |noun: &str| {
        let found = concepts.iter().position(|concept| concept.text == noun);
        found.ok_or_else(|| Error::file(path, format!("the corpus has no `{noun}`")))
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(number).collect()
}

pub fn run(args: &DiffusionArgs) -> Result<()> {
    let options = &args.training;
    let kind = options.placement().kind;
    let files = PipelineFiles::open(&options.model, None)?;
    let concepts = cutouts::load(&options.corpus.join("concepts.jsonl"))?;
    let learned = focused(&concepts, args.focus.as_deref())?;
    let networks = Networks::load(&files, options.placement())?;
    let composites = Composites::encode(&files, &concepts, &learned, args.views, options.seed)?;
    let params: Parameters = named(Network::Unet.folder(), networks.unet.sites.train_weights(|_| true))
        .chain(
            networks.text_encoders.sites().flat_map(|(part, sites)| named(part.name(), sites.train_weights(|_| true))),
        )
        .collect();
    let noise_schedule = NoiseSchedule::new(&networks.scheduler)?;
    let watched = watched_prompts(&concepts, &learned);

    let mut training = Training::begin(options, params)?;
    while let Some(mut draw) = training.next_step() {
        // 1. Pictures and what is said of them
        let (latents, captions) = composites.batch(&mut draw, &concepts, options.batch_size);
        let text = networks.embed(&captions)?;

        // 2. Noise
        let noise = draw.randn(&latents.size());
        let timesteps = draw_timesteps(&mut draw, noise_schedule.num_train_timesteps(), latents.size()[0]);
        let noisy = noise_schedule.add_noise(&latents, &noise, &timesteps);
        let target = noise_schedule.target(networks.scheduler.prediction_type(), &latents, &noise, &timesteps);

        // 3. Prediction and step
        let prediction =
            networks.unet.model.forward(&noisy.to_kind(kind), &timesteps.to_kind(Kind::Float), &text, false);
        training.learn(&prediction.to_kind(Kind::Float).mse_loss(&target, Reduction::Mean))?;

        // 4. A look at it
        if training.save_is_due() {
            training.save()?;
            write_model(&training, &options.model, &options.output.join("model"))?;
            let images = training.with_average(|| images_of(&networks, &watched, 0))?;
            grid::write(&options.output.join(format!("grid-{}.png", training.step())), &images, COLUMNS)?;
        }
    }
    Ok(())
}

/// Half of them anywhere, half in the noisiest two fifths: there it is decided which object comes on which background, and a
/// small model learns that last.
fn draw_timesteps(draw: &mut Generator, count: i64, batch: i64) -> Tensor {
    let anywhere = draw.randint(0, count, &[batch / 2]);
    Tensor::cat(&[anywhere, draw.randint(count * 3 / 5, count, &[batch - batch / 2])], 0)
}

/// The `sample` command.
pub fn sample(args: &SampleArgs) -> Result<()> {
    let files = PipelineFiles::open(&args.model, None)?;
    let concepts = cutouts::load(&args.corpus.join("concepts.jsonl"))?;
    let networks = Networks::load(&files, FLOAT32)?;
    let prompts = watched_prompts(&concepts, &focused(&concepts, args.focus.as_deref())?);
    for row in prompts.chunks(COLUMNS as usize) {
        eprintln!("{}", row.join(" | "));
    }
    grid::write(&args.output, &images_of(&networks, &prompts, args.seed)?, COLUMNS)
}

/// Some of the `learned` concepts, spread over them, each with the colour that it was never trained with.
fn watched_prompts(concepts: &[Cutout], learned: &[usize]) -> Vec<String> {
    let prompt = |i: usize| {
        let concept = learned[i * learned.len() / WATCHED.min(learned.len())];
        captions::full(&concepts[concept].text, captions::held_out_colour(concept))
    };
    (0..WATCHED.min(learned.len())).map(prompt).collect()
}

/// Latents of all composites.
struct Composites {
    /// `[n, 4, h, w]`, in the UNet's scale
    latents: Tensor,
    /// Concept and colour of each.
    shows: Vec<(usize, usize)>,
}

impl Composites {
    /// Encodes `views` composites of each `learned` concept on each colour but the one held out.
    fn encode(files: &PipelineFiles, concepts: &[Cutout], learned: &[usize], views: usize, seed: i64) -> Result<Self> {
        let (vae, scaling_factor) = (files.load_vae_encoder(FLOAT32)?.model, files.vae_config()?.scaling_factor);
        let pairs = learned.iter().flat_map(|&concept| (0..COLOURS.len()).map(move |colour| (concept, colour)));
        let trained = pairs.filter(|&(concept, colour)| colour != captions::held_out_colour(concept));
        let shows: Vec<(usize, usize)> = trained.flat_map(|pair| std::iter::repeat_n(pair, views)).collect();
        let backgrounds = COLOURS.map(|(_, rgb)| cutouts::plain(rgb));
        let mut draw = Generator::new(seed);
        let mut composite = |&(concept, colour): &(usize, usize)| {
            concepts[concept].on(&backgrounds[colour], View::near_the_middle(&mut draw))
        };
        let encode = |shows: &[(usize, usize)]| {
            let images = Tensor::stack(&shows.iter().map(&mut composite).collect::<Vec<_>>(), 0);
            tch::no_grad(|| vae.encode(&images).mean) * scaling_factor
        };
        let latents: Vec<Tensor> = shows.chunks(64).map(encode).collect();
        let latents = Tensor::cat(&latents, 0);
        let (mean, deviation) = (latents.mean(Kind::Float).double_value(&[]), latents.std(true).double_value(&[]));
        eprintln!(
            "{} pictures of {} concepts, latents with mean {mean:.2} and deviation {deviation:.2}",
            shows.len(),
            learned.len()
        );
        Ok(Self { latents, shows })
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

/// The networks of a pipeline, of which two train.
struct Networks {
    unet: Loaded<UNet2DConditionModel>,
    text_encoders: TextEncoders,
    vae_decoder: Loaded<VaeDecoder>,
    vae: Placement,
    files: PipelineFiles,
    tokenizers: PromptTokenizers,
    scheduler: SchedulerConfig,
}

impl Networks {
    fn load(files: &PipelineFiles, placement: Placement) -> Result<Self> {
        let vae = Placement { kind: files.vae_kind(placement.kind), ..placement };
        Ok(Self {
            unet: files.load_unet(placement)?,
            text_encoders: files.load_text_encoders(placement)?,
            vae_decoder: files.load_vae_decoder(vae)?,
            vae,
            files: files.clone(),
            tokenizers: PromptTokenizers::of(files)?,
            scheduler: scheduler_config(files)?.for_stable_diffusion(),
        })
    }

    /// Embeddings of captions, with the graph that leads to them.
    fn embed(&self, captions: &[String]) -> Result<Conditioning> {
        let rows = captions.iter().map(|caption| self.tokenizers.encode(caption, None)).collect::<Result<Vec<_>>>()?;
        catching(|| Ok(self.text_encoders.forward(&rows, false)))
    }
}

/// Collects what is drawn.
struct Images(Vec<RgbImage>);

impl DrawingListener for Images {
    fn on_step(&mut self, _done: usize) -> Result<()> {
        Ok(())
    }

    fn on_image(&mut self, drawn: DrawnImage) -> Result<()> {
        self.0.push(drawn.image);
        Ok(())
    }
}

/// One picture a prompt, all of them at once, the i-th from the noise of `seed` + i.
fn images_of(networks: &Networks, prompts: &[String], seed: i64) -> Result<Vec<RgbImage>> {
    let side = cutouts::SIDE / networks.vae_decoder.model.config().scale_factor();
    let sampling = Sampling {
        steps: 25,
        guidance_scale: GUIDANCE,
        scheduler: None,
        latent_height: side,
        latent_width: side,
        guidance_rescale: 0.0,
        size_ids: SizeIds::of_whole(cutouts::SIDE, cutouts::SIDE),
    };
    let pictures = Pictures {
        prompts: prompts.to_vec(),
        prompt_2: None,
        negative_prompt: None,
        seeds: (0..prompts.len() as i64).map(|i| seed + i).collect(),
        batch_size: prompts.len(),
        sampling,
    };
    let (tokenizers, encoders) = (&networks.tokenizers, &networks.text_encoders);
    let on = EncodedPrompts::encode(tokenizers, encoders, (prompts, None), None)?;
    let load_exact = || networks.files.load_vae_decoder(Placement { kind: Kind::Float, ..networks.vae });
    let painter = Painter {
        unet: &networks.unet.model,
        vae_decoder: &networks.vae_decoder.model,
        vae_kind: networks.vae.kind,
        load_exact: &load_exact,
        movable: &[],
        scheduler: &networks.scheduler,
        model: "",
        adapters: &[],
    };
    let mut images = Images(Vec::new());
    painter.draw(&pictures, &on, &mut images)?;
    Ok(images.0)
}

/// The averaged weights as a pipeline, with the autoencoder of `start`.
fn write_model(training: &Training, start: &Path, model: &Path) -> Result<()> {
    copy_descriptions(start, model)?;
    write_network(model, Network::Vae, &Network::Vae.read(&PipelineFiles::open(start, None)?)?, Kind::Float)?;
    for network in [Network::Unet, Network::TextEncoder] {
        write_network(model, network, &training.average_of(network.folder()), Kind::Float)?;
    }
    Ok(())
}
