//! `lorabooth generate`: images from a prompt, with any number of adapters.

use super::image_names::{self, is_png};
use super::{Common, Dtype, Reporter};
use crate::adapters::{attach, Init, Part, Sites};
use crate::data::tokenizers::clip::ClipTokenizer;
use crate::error::{Error, Result};
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::models::stable_diffusion::{vae_kind, UNetConfig};
use crate::options::adapter_argument::path_and_scale;
use crate::options::dreambooth::MAX_RESOLUTION;
use crate::options::model::ModelArgs;
use crate::options::storage::StorageArgs;
use crate::recipes::prompt_checks::{warn_of_prompts, NamedPrompt};
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::{report_device, report_given_adapter, report_model, report_weights};
use crate::sample::pipeline::scheduler_config;
use crate::sample::text_to_image::{
    check_guidance_scale, decode, png_with_parameters, sample_latents, Conditioning, Sampling,
};
use crate::schedulers::default_name;
use crate::train::interrupt::Interrupt;
use crate::weights::Placement;
use crate::whole_file::{write_whole, WholeFile};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// More images than anyone looks at, and fewer than fill a machine with their names.
const MAX_IMAGES: usize = 100_000;
/// What to do where memory is full.
const DRAW_IN_LESS: &str = "lower --height and --width or --batch-size, turn on --vae-tiling, or use --dtype bf16";

/// How closely a picture follows its prompt where nothing else is asked for.
pub const GUIDANCE_SCALE: f64 = 7.5;

/// Flags of the command.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What the image shows
    #[arg(long)]
    prompt: String,
    /// What the image must not show
    #[arg(long, default_value = "")]
    negative_prompt: String,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times
    #[arg(long, value_name = "PATH[=SCALE]", action = clap::ArgAction::Append)]
    lora: Vec<String>,
    /// Number of sampling steps
    #[arg(long, alias = "num-inference-steps", default_value_t = 30)]
    steps: usize,
    /// Guidance scale: how closely to follow the prompt
    #[arg(long, default_value_t = GUIDANCE_SCALE)]
    guidance_scale: f64,
    /// Sampler: pndm, ddim, ddpm, euler, euler-a, heun, lms, dpm++2m, dpm++2m-karras or unipc; by default the model's own
    #[arg(long)]
    scheduler: Option<String>,
    /// Height in pixels; by default the model's own
    #[arg(long)]
    height: Option<i64>,
    /// Width in pixels; by default the model's own
    #[arg(long)]
    width: Option<i64>,
    /// Number of images; image i uses the seed --seed + i
    #[arg(long, default_value_t = 1)]
    num_images: usize,
    /// Images to sample at a time; they are decoded one by one
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Decode large images tile by tile, which needs the memory of one tile
    #[arg(long)]
    vae_tiling: bool,
    /// Dtype of the computation
    #[arg(long, visible_alias = "mixed-precision", value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// FILE.png, or a folder in which images are numbered; by default image.png. Next to an earlier image the new one is numbered
    #[arg(long, visible_alias = "output-dir", value_name = "FILE.png|FOLDER")]
    output: Option<PathBuf>,
    /// Replace a file that already exists
    #[arg(long)]
    overwrite: bool,
    /// How the weights of UNet and text encoder are kept.
    #[command(flatten)]
    weights: StorageArgs,
    // Last: its heading holds for what follows.
    /// The model to draw with.
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &GenerateArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let output = args.output.as_deref();
    let folder = output.and_then(|output| if is_png(output) { output.parent() } else { Some(output) });
    let made = folder.filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    // Caught here, where it is known what was too large.
    catching(|| draw(args, common, reporter)).map_err(|error| {
        // Fails, rightly, where a picture is in it.
        made.iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
        error.advising(DRAW_IN_LESS)
    })
}

fn draw(args: &GenerateArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    args.weights.check()?;
    args.model.check_paths()?;
    let device = common.device()?;
    let kind = args.dtype.kind(device);
    let mut files = crate::recipes::open_model(&args.model.name, &args.model.options(), reporter)?;
    files.store_in(args.weights.storage());
    let scheduler = scheduler_config(&files)?.for_stable_diffusion();
    let sampling = Sampling {
        scheduler: Some(match &args.scheduler {
            Some(name) => name.clone(),
            None => default_name(&scheduler)?.to_owned(),
        }),
        ..sampling(args, &files.unet_config()?, files.vae_config()?.scale_factor())?
    };
    crate::schedulers::scheduler(sampling.scheduler.as_deref(), &scheduler, args.steps)?;
    let mut adapters = Vec::new();
    for (index, text) in args.lora.iter().enumerate() {
        let (path, scale) = path_and_scale("--lora", text)?;
        // Numbered: the same adapter twice is twice its change.
        adapters.push((format!("{index} {text}"), crate::recipes::read_adapter(&path, &files, reporter)?, scale));
    }
    let (paths, moved) = image_names::output_paths(args.output.as_deref(), args.num_images, args.overwrite)?;
    moved.into_iter().for_each(|text| reporter.on(Event::Warning { text }));
    // Begun and given up, so that a place that cannot be written to shows now and not when the picture is drawn.
    paths.first().map(|path| WholeFile::create(path)).transpose()?;
    let reporter: &mut dyn Observer = reporter;
    let put_on = |sites: &Sites, part: Part| -> Result<()> {
        for (name, set, scale) in &adapters {
            if let Some(adapter) = set.part(part) {
                attach(sites, name, adapter.config.clone(), Init::Tensors(&adapter.tensors))?;
                sites.set_scale(name, *scale)?;
            }
        }
        // Folded in, a step costs what the plain model's does.
        sites.merge();
        Ok(())
    };

    report_model(&args.model.name, None, reporter);
    report_device(device, kind, reporter)?;
    report_weights(&args.weights, device, reporter);
    let name = sampling.scheduler.as_deref().unwrap_or_default();
    let fields = json!({ "scheduler": name, "steps": args.steps, "guidance_scale": args.guidance_scale });
    reporter.fact_with("sampler", format!("{name}, {} steps", args.steps), fields);
    args.lora.iter().for_each(|text| report_given_adapter(text, reporter));

    let place = Placement { device, kind };
    let tokenizer = ClipTokenizer::from_folder(&files.tokenizer_folder()?)?;
    let prompts = [("--prompt", &args.prompt), ("--negative-prompt", &args.negative_prompt)]
        .map(|(flag, text)| NamedPrompt::option(flag, text));
    warn_of_prompts(&tokenizer, &prompts, reporter)?;
    let conditioning = {
        let text_encoder = files.load_text_encoder(place)?;
        put_on(&text_encoder.sites, Part::TextEncoder)?;
        Conditioning::encode(&tokenizer, &text_encoder.model, device, &args.prompt, &args.negative_prompt)?
    };
    let unet = files.load_unet(place)?;
    put_on(&unet.sites, Part::UNet)?;
    let vae_kind = vae_kind(kind);
    let mut vae = files.load_vae_decoder(Placement { device, kind: vae_kind })?;
    vae.model.use_tiling(args.vae_tiling);
    memory::release_cached(device)?;

    let interrupt = Interrupt::on_signals()?;
    let seeds: Vec<i64> = (0..args.num_images).map(|i| common.seed.wrapping_add(i as i64)).collect();
    let groups: Vec<&[i64]> = seeds.chunks(args.batch_size.max(1)).collect();
    reporter.begin("generating", (groups.len() * args.steps) as u64, "sampler steps");
    let (mut paths, mut written) = (paths.into_iter(), Vec::new());
    for (group, seeds) in groups.iter().enumerate() {
        let latents = sample_latents(&unet.model, &scheduler, &conditioning, &sampling, seeds, &mut |done, total| {
            let done = (group * args.steps + done * args.steps / total) as u64;
            reporter.on(Event::Progress { done });
            interrupt.check()
        });
        let latents = match latents {
            Err(Error::Interrupted(_)) => return Err(interrupted(written, args.num_images, reporter)),
            latents => latents?,
        };
        for (image, seed) in decode(&vae.model, &latents, vae_kind)?.iter().zip(*seeds) {
            let Some(path) = paths.next() else { break };
            write_whole(&path, &png_with_parameters(image, &parameters(args, &sampling, *seed, image.dimensions()))?)?;
            written.push(path);
        }
    }
    reporter.on(Event::End);
    reporter.on(Event::WroteImages { paths: written, grid: None });
    Ok(())
}

/// The error of a job that was asked to stop after `written` of `wanted` images.
fn interrupted(written: Vec<PathBuf>, wanted: usize, reporter: &mut dyn Observer) -> Error {
    let count = written.len();
    reporter.on(Event::End);
    reporter.on(Event::WroteImages { paths: written, grid: None });
    Error::Interrupted(format!("{count} of {wanted} images were written"))
}

/// The sizes of a job, or which flag asks for what cannot be.
fn sampling(args: &GenerateArgs, unet: &UNetConfig, factor: i64) -> Result<Sampling> {
    for (flag, number) in [("--num-images", args.num_images), ("--batch-size", args.batch_size)] {
        if !(1..=MAX_IMAGES).contains(&number) {
            return Err(Error::invalid(format!("{flag} is {number}; it must be 1 to {MAX_IMAGES}")));
        }
    }
    check_guidance_scale(args.guidance_scale)?;
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
        steps: args.steps,
        guidance_scale: args.guidance_scale,
        scheduler: args.scheduler.clone(),
        latent_height: side("--height", args.height)?,
        latent_width: side("--width", args.width)?,
    })
}

/// The text that image tools read (AUTOMATIC1111's form).
fn parameters(args: &GenerateArgs, sampling: &Sampling, seed: i64, (width, height): (u32, u32)) -> String {
    let stem = |path: &Path| path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let lora = |text: &String| match path_and_scale("--lora", text) {
        Ok((path, scale)) => format!(" <lora:{}:{scale}>", stem(&path)),
        Err(_) => String::new(),
    };
    let loras: String = args.lora.iter().map(lora).collect();
    let negative = match args.negative_prompt.is_empty() {
        true => String::new(),
        false => format!("Negative prompt: {}\n", args.negative_prompt),
    };
    let scheduler = sampling.scheduler.as_deref().unwrap_or_default();
    let model = stem(Path::new(&args.model.name));
    format!(
        "{}{loras}\n{negative}Steps: {}, Sampler: {scheduler}, CFG scale: {}, Seed: {seed}, Size: {width}x{height}, Model: {model}",
        args.prompt, args.steps, args.guidance_scale
    )
}
