//! Images from a prompt, with any number of adapters; a model that is loaded draws for one configuration after another.

use super::image_names::{self, is_png};
use super::prompt_checks::{warn_of_prompts, NamedPrompt};
use super::training::observer::{Event, Observer};
use super::training::watched::WatchedDrawing;
use super::{report_device, report_given_adapter, report_model};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::models::stable_diffusion::{SizeIds, UNetConfig};
use crate::options::adapter_argument::path_and_scale;
use crate::options::dreambooth::MAX_RESOLUTION;
use crate::options::generate::GenerateConfig;
use crate::options::model::ModelArgs;
use crate::options::storage::StorageArgs;
use crate::plain_text::counted;
use crate::sample::drawn_image::{DrawnImage, ImageParameters, NamedStrength};
use crate::sample::painter::Pictures;
use crate::sample::pipeline::{short_name, Pipeline, PipelineAdapter, Residence};
use crate::sample::text_to_image::{check_guidance_scale, Sampling};
use crate::schedulers::default_name;
use crate::weights::Placement;
use crate::whole_file::{write_whole, WholeFile};
use serde_json::json;
use std::path::PathBuf;
use tch::{Device, Kind};

/// More images than anyone looks at, and fewer than fill a machine with their names.
const MAX_IMAGES: usize = 100_000;
/// What to do where memory is full.
const DRAW_IN_LESS: &str = "lower ⟨height⟩ and ⟨width⟩ or ⟨batch_size⟩, turn on ⟨vae_tiling⟩, or use ⟨dtype⟩ bf16";

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
        let mut files = super::open_model(name, &config.model.options(), observer)?;
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
            prompt_2: config.prompt_2.clone(),
            negative_prompt: config.negative_prompt.clone(),
            seeds: (0..config.num_images).map(|i| seed.wrapping_add(i as i64)).collect(),
            batch_size: config.batch_size,
            sampling,
        };
        let texts = [
            ("⟨prompt⟩", Some(&config.prompt)),
            ("⟨prompt_2⟩", config.prompt_2.as_ref()),
            ("⟨negative_prompt⟩", config.negative_prompt.as_ref()),
        ];
        let prompts: Vec<NamedPrompt> =
            texts.into_iter().filter_map(|(flag, text)| Some(NamedPrompt::option(flag, text?))).collect();
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
        let interrupted = || format!("{} of {} were written", images.len(), counted(config.num_images, "image"));
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
        let only_xl = [
            ("⟨prompt_2⟩", &config.prompt_2),
            ("⟨original_size⟩", &config.original_size),
            ("⟨target_size⟩", &config.target_size),
            ("⟨crop⟩", &config.crop),
        ];
        if let Some((flag, _)) = only_xl.iter().find(|(_, given)| given.is_some()).filter(|_| !files.is_xl()) {
            return Err(Error::Usage(format!(
                "{flag} is for Stable Diffusion XL, which this model is not; leave it out"
            )));
        }
        Ok(sampling)
    }

    /// Reads the adapters of `config`.
    fn adapters(&self, config: &GenerateConfig, observer: &mut dyn Observer) -> Result<Vec<PipelineAdapter>> {
        let read = |text: &String| -> Result<PipelineAdapter> {
            let (path, strength) = path_and_scale("⟨lora⟩", text)?;
            let set = super::read_adapter(&path, self.pipeline.files(), observer)?;
            Ok(PipelineAdapter { used: NamedStrength { name: short_name(&path), strength }, set })
        };
        config.lora.iter().map(read).collect()
    }

    fn report(&self, config: &GenerateConfig, sampling: &Sampling, observer: &mut dyn Observer) -> Result<()> {
        report_model(&config.model.name, None, observer);
        report_device(self.device, self.kind, observer)?;
        super::report_weights(&config.weights, self.device, observer);
        let name = sampling.scheduler.as_deref().unwrap_or_default();
        let fields = json!({ "scheduler": name, "steps": config.steps, "guidance_scale": config.guidance_scale });
        observer.fact_with("sampler", format!("{name}, {}", counted(config.steps, "step")), fields);
        config.lora.iter().for_each(|text| report_given_adapter(text, observer));
        Ok(())
    }
}

/// The sizes of a job, or which flag asks for what cannot be.
fn sampling(config: &GenerateConfig, unet: &UNetConfig, factor: i64) -> Result<Sampling> {
    for (flag, number) in [("⟨num_images⟩", config.num_images), ("⟨batch_size⟩", config.batch_size)] {
        if !(1..=MAX_IMAGES).contains(&number) {
            return Err(Error::invalid(format!("{flag} is {number}; it must be 1 to {MAX_IMAGES}")));
        }
    }
    check_guidance_scale(config.guidance_scale)?;
    if !(0.0..=1.0).contains(&config.guidance_rescale) {
        let strength = config.guidance_rescale;
        return Err(Error::invalid(format!("⟨guidance_rescale⟩ is {strength}; it must be 0 to 1, 0.7 is usual")));
    }
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
    let (latent_height, latent_width) = (side("⟨height⟩", config.height)?, side("⟨width⟩", config.width)?);
    Ok(Sampling {
        steps: config.steps,
        guidance_scale: config.guidance_scale,
        scheduler: config.scheduler.clone(),
        latent_height,
        latent_width,
        guidance_rescale: config.guidance_rescale,
        size_ids: size_ids(config, latent_height * factor, latent_width * factor)?,
    })
}

/// What a model that is conditioned on sizes is told of an image of `height` and `width`.
fn size_ids(config: &GenerateConfig, height: i64, width: i64) -> Result<SizeIds> {
    let size = |flag: &str, text: &Option<String>| {
        text.as_ref().map_or(Ok((height, width)), |text| {
            pair(text, 'x', 1).map(|(width, height)| (height, width)).ok_or_else(|| {
                Error::invalid(format!(
                    "{flag} is `{text}`; it must be a width and a height in pixels, such as 1024x768"
                ))
            })
        })
    };
    let crop = config.crop.as_ref().map_or(Ok((0, 0)), |text| {
        pair(text, ',', 0).map(|(left, top)| (top, left)).ok_or_else(|| {
            Error::invalid(format!("⟨crop⟩ is `{text}`; it must be columns and rows that were cut off, such as 0,256"))
        })
    })?;
    Ok(SizeIds {
        original: size("⟨original_size⟩", &config.original_size)?,
        crop,
        target: size("⟨target_size⟩", &config.target_size)?,
    })
}

/// Two whole numbers of at least `least`, and no larger than sides of images are.
fn pair(text: &str, between: char, least: i64) -> Option<(i64, i64)> {
    let (first, second) = text.split_once(between)?;
    let number = |text: &str| text.trim().parse::<i64>().ok().filter(|n| (least..=MAX_SIDE).contains(n));
    Some((number(first)?, number(second)?))
}

/// The largest side that a model can be told of.
const MAX_SIDE: i64 = 1 << 20;
