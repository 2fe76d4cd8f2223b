//! Images from a prompt, with any number of adapters; a model that is loaded draws for one configuration after another.

use super::adapter_argument::path_and_scale;
use super::compute_dtype::Dtype;
use super::dreambooth_config::MAX_RESOLUTION;
use super::image_names::{self, is_png};
use super::model_args::ModelArgs;
use super::observer::{Event, Observer};
use super::prompt_checks::{warn_of_prompts, NamedPrompt};
use super::storage_args::StorageArgs;
use super::watched::WatchedDrawing;
use super::{report_device, report_given_adapter, report_model};
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::models::stable_diffusion::UNetConfig;
use crate::sample::drawn_image::{DrawnImage, ImageParameters, NamedStrength};
use crate::sample::painter::Pictures;
use crate::sample::pipeline::{short_name, Pipeline, PipelineAdapter, Residence};
use crate::sample::text_to_image::{check_guidance_scale, Sampling};
use crate::schedulers::default_name;
use crate::train::interrupt::Interrupt;
use crate::weights::Placement;
use crate::whole_file::{write_whole, WholeFile};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use tch::{Device, Kind};

/// More images than anyone looks at, and fewer than fill a machine with their names.
const MAX_IMAGES: usize = 100_000;
/// What to do where memory is full.
const DRAW_IN_LESS: &str = "lower --height and --width or --batch-size, turn on --vae-tiling, or use --dtype bf16";

/// How closely a picture follows its prompt where nothing else is asked for.
pub const GUIDANCE_SCALE: f64 = 7.5;

/// All options.
#[derive(Debug, Clone, Args)]
pub struct GenerateConfig {
    /// What the image shows
    #[arg(long)]
    pub prompt: String,
    /// What the image must not show
    #[arg(long, default_value = "")]
    pub negative_prompt: String,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times
    #[arg(long, value_name = "PATH[=SCALE]", action = clap::ArgAction::Append)]
    pub lora: Vec<String>,
    /// Number of sampling steps
    #[arg(long, alias = "num-inference-steps", default_value_t = 30)]
    pub steps: usize,
    /// Guidance scale: how closely to follow the prompt
    #[arg(long, default_value_t = GUIDANCE_SCALE)]
    pub guidance_scale: f64,
    /// Sampler: pndm, ddim, ddpm, euler, euler-a, heun, lms, dpm++2m, dpm++2m-karras or unipc; by default the model's own
    #[arg(long)]
    pub scheduler: Option<String>,
    /// Height in pixels; by default the model's own
    #[arg(long)]
    pub height: Option<i64>,
    /// Width in pixels; by default the model's own
    #[arg(long)]
    pub width: Option<i64>,
    /// Number of images; image i uses the seed --seed + i
    #[arg(long, default_value_t = 1)]
    pub num_images: usize,
    /// Images to sample at a time; they are decoded one by one
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
    /// Decode large images tile by tile, which needs the memory of one tile
    #[arg(long)]
    pub vae_tiling: bool,
    /// Dtype of the computation
    #[arg(long, visible_alias = "mixed-precision", value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
    /// FILE.png, or a folder in which images are numbered; by default image.png. Next to an earlier image the new one is numbered
    #[arg(long, visible_alias = "output-dir", value_name = "FILE.png|FOLDER")]
    pub output: Option<PathBuf>,
    /// Replace a file that already exists
    #[arg(long)]
    pub overwrite: bool,
    /// How the weights of UNet and text encoder are kept.
    #[command(flatten)]
    pub weights: StorageArgs,
    // Last: its heading holds for what follows.
    /// The model to draw with.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// A picture that was drawn and written.
#[derive(Debug, Clone)]
pub struct GeneratedImage {
    /// Where it is.
    pub path: PathBuf,
    /// What it was drawn with.
    pub parameters: ImageParameters,
}

/// Draws on `device` as `config` says, image i from the noise of `seed` + i: each image is told to `observer` as it is finished. The
/// text encoder is freed before the UNet is loaded. Ends within a step once `interrupt` is set; the images so far stay.
pub fn generate(
    config: &GenerateConfig,
    device: Device,
    seed: i64,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Vec<GeneratedImage>> {
    let mut model = ImageModel::open(config, device, Residence::InTurn, interrupt, observer)?;
    model.generate(config, seed, interrupt, observer)
}

/// A model that draws for one configuration after another.
pub struct ImageModel {
    pipeline: Pipeline,
    model: ModelArgs,
    weights: StorageArgs,
    device: Device,
    kind: Kind,
}

impl ImageModel {
    /// Opens the model of `config`; what of it stays in memory between two configurations says `residence`. Its networks are loaded
    /// when they are needed.
    pub fn open(
        config: &GenerateConfig,
        device: Device,
        residence: Residence,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        config.weights.check()?;
        config.model.check_paths()?;
        let _watch = interrupt.watch();
        let (name, kind) = (&config.model.name, config.dtype.kind(device));
        let mut files = super::open_model_unless(interrupt, name, &config.model.options(), observer)?;
        files.store_in(config.weights.storage());
        let pipeline = Pipeline::open(files, name, Placement { device, kind }, residence)?;
        Ok(Self { pipeline, model: config.model.clone(), weights: config.weights.clone(), device, kind })
    }

    /// Whether it is the model that `config` asks for, with its weights kept and computed with as it says.
    pub fn is_for(&self, config: &GenerateConfig, device: Device) -> bool {
        self.model == config.model
            && self.weights == config.weights
            && (self.device, self.kind) == (device, config.dtype.kind(device))
    }

    /// Draws as `config` says, whose model this must be ([`ImageModel::is_for`]), as [`generate`] does. Adapters that are on the model
    /// already, at the same strengths, cost nothing.
    pub fn generate(
        &mut self,
        config: &GenerateConfig,
        seed: i64,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Vec<GeneratedImage>> {
        let output = config.output.as_deref();
        let folder = output.and_then(|output| if is_png(output) { output.parent() } else { Some(output) });
        let made = folder.filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let _watch = interrupt.watch();
        // Caught here, where it is known what was too large.
        catching(|| self.draw(config, seed, interrupt, observer)).map_err(|error| {
            // Fails, rightly, where a picture is in it.
            made.iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
            error.advising(DRAW_IN_LESS)
        })
    }

    fn draw(
        &mut self,
        config: &GenerateConfig,
        seed: i64,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Vec<GeneratedImage>> {
        let sampling = self.sampling(config)?;
        let adapters = self.adapters(config, observer)?;
        let (paths, moved) = image_names::output_paths(config.output.as_deref(), config.num_images, config.overwrite)?;
        moved.into_iter().for_each(|text| observer.warning(text));
        // Begun and given up, so that a place that cannot be written to shows now and not when the picture is drawn.
        paths.first().map(|path| WholeFile::create(path)).transpose()?;
        self.report(config, &sampling, observer)?;
        let pictures = Pictures {
            prompts: vec![config.prompt.clone()],
            negative_prompt: config.negative_prompt.clone(),
            seeds: (0..config.num_images).map(|i| seed.wrapping_add(i as i64)).collect(),
            batch_size: config.batch_size,
            sampling,
        };
        let prompts = [("--prompt", &config.prompt), ("--negative-prompt", &config.negative_prompt)]
            .map(|(flag, text)| NamedPrompt::flag(flag, text));
        warn_of_prompts(self.pipeline.tokenizer(), &prompts, observer)?;
        self.pipeline.set_adapters(adapters)?;
        self.pipeline.use_tiling(config.vae_tiling);
        let on = self.pipeline.prepare(&pictures)?;

        let mut images: Vec<GeneratedImage> = Vec::new();
        let mut write = |drawn: &DrawnImage, observer: &mut dyn Observer| -> Result<()> {
            let (path, parameters) = (paths[drawn.index].clone(), drawn.parameters.clone());
            write_whole(&path, &drawn.png()?)?;
            observer.on(Event::Image { path: path.clone(), step: None, parameters: parameters.clone() });
            images.push(GeneratedImage { path, parameters });
            Ok(())
        };
        let mut listener = WatchedDrawing::begin("generating", &pictures, interrupt, observer, &mut write);
        let outcome = self.pipeline.draw(&pictures, &on, &mut listener);
        drop(listener);
        if matches!(outcome, Ok(()) | Err(Error::Interrupted(_))) {
            let paths = images.iter().map(|image| image.path.clone()).collect();
            observer.on(Event::WroteImages { paths, grid: None });
        }
        let interrupted = || format!("{} of {} images were written", images.len(), config.num_images);
        match outcome {
            Err(Error::Interrupted(_)) => Err(Error::Interrupted(interrupted())),
            outcome => outcome.map(|()| images),
        }
    }

    /// How `config` has pictures sampled, with the model's own sampler and sizes where it names none.
    fn sampling(&self, config: &GenerateConfig) -> Result<Sampling> {
        let (files, scheduler) = (self.pipeline.files(), self.pipeline.scheduler());
        let sampling = Sampling {
            scheduler: Some(match &config.scheduler {
                Some(name) => name.clone(),
                None => default_name(scheduler)?.to_owned(),
            }),
            ..sampling(config, &files.unet_config()?, files.vae_config()?.scale_factor())?
        };
        crate::schedulers::scheduler(sampling.scheduler.as_deref(), scheduler, config.steps)?;
        Ok(sampling)
    }

    /// Reads the adapters of `config`.
    fn adapters(&self, config: &GenerateConfig, observer: &mut dyn Observer) -> Result<Vec<PipelineAdapter>> {
        let read = |text: &String| -> Result<PipelineAdapter> {
            let (path, strength) = path_and_scale("--lora", text)?;
            let set = super::read_adapter(&path, self.pipeline.files(), observer)?;
            Ok(PipelineAdapter { used: NamedStrength { name: short_name(&path), strength }, set })
        };
        config.lora.iter().map(read).collect()
    }

    fn report(&self, config: &GenerateConfig, sampling: &Sampling, observer: &mut dyn Observer) -> Result<()> {
        report_model(&config.model.name, None, observer);
        report_device(self.device, self.kind, observer)?;
        config.weights.report(self.device, observer);
        let name = sampling.scheduler.as_deref().unwrap_or_default();
        let fields = json!({ "scheduler": name, "steps": config.steps, "guidance_scale": config.guidance_scale });
        observer.fact_with("sampler", format!("{name}, {} steps", config.steps), fields);
        config.lora.iter().for_each(|text| report_given_adapter(text, observer));
        Ok(())
    }
}

impl GenerateConfig {
    /// Refuses what cannot be meant whatever the model is.
    pub fn check(&self) -> Result<()> {
        for (flag, number) in [("--num-images", self.num_images), ("--batch-size", self.batch_size)] {
            if !(1..=MAX_IMAGES).contains(&number) {
                return Err(Error::invalid(format!("{flag} is {number}; it must be 1 to {MAX_IMAGES}")));
            }
        }
        check_guidance_scale(self.guidance_scale)
    }
}

/// The sizes of a job, or which flag asks for what cannot be.
fn sampling(config: &GenerateConfig, unet: &UNetConfig, factor: i64) -> Result<Sampling> {
    config.check()?;
    let (native, multiple) = (unet.sample_size.unwrap_or(64).saturating_mul(factor), factor.max(8));
    let side = |flag: &str, value: Option<i64>| -> Result<i64> {
        let value = value.unwrap_or(native);
        if value > i64::from(MAX_RESOLUTION) {
            return Err(Error::invalid(format!("{flag} is {value}; it can be at most {MAX_RESOLUTION}")));
        }
        match value > 0 && value % multiple == 0 {
            true => Ok(value / factor),
            false => {
                let near = ((value + multiple / 2) / multiple).max(1) * multiple;
                Err(Error::invalid(format!("{flag} {value} is not a multiple of {multiple}; the nearest is {near}")))
            }
        }
    };
    Ok(Sampling {
        steps: config.steps,
        guidance_scale: config.guidance_scale,
        scheduler: config.scheduler.clone(),
        latent_height: side("--height", config.height)?,
        latent_width: side("--width", config.width)?,
    })
}
