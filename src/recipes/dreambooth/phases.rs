//! The phases around the training loop: class images, photos to latents, prompts to embeddings.

use super::adapters::carried_text_encoders;
use super::samples::Texts;
use crate::adapters::{attach, Init, Part, PartAdapter, Sites};
use crate::data::class_images::{free_numbers, remove_unfinished, save_class_image};
use crate::data::dreambooth_dataset::DreamBoothDataset;
use crate::data::encodings::{Contents, Encodings};
use crate::data::latent_cache::LatentCache;
use crate::data::photo_files::{PhotoFile, PhotoFiles};
use crate::data::photos::{count_images_but, no_image, PhotoFolder};
use crate::data::tokenizers::{ClipTokenizer, PromptTokenizers};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::models::stable_diffusion::{
    Conditioning, Loaded, PipelineFiles, SizeIds, TextEncoders, UNet2DConditionModel, VaeEncoder,
};
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::precision::MixedPrecision;
use crate::recipes::prompt_checks::{warn_of_prompts, NamedPrompt};
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::Run;
use crate::recipes::training::watched::WatchedDrawing;
use crate::regular_file::{self, FileKind};
use crate::sample::drawn_image::DrawnImage;
use crate::sample::painter::Pictures;
use crate::sample::pipeline::{Pipeline, Residence};
use crate::sample::text_to_image::{EncodedPrompts, Sampling};
use crate::train::folder_lock::FolderLock;
use crate::weights::tensor_file::tensor_bytes;
use crate::weights::Placement;
use crate::whole_file::write_whole;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Steps of the sampler for a class image.
pub const CLASS_IMAGE_STEPS: usize = 50;

/// The dtype in which class images are made, where training computes in `kind`.
pub fn class_image_kind(config: &DreamBoothConfig, kind: Kind) -> Kind {
    match config.prior_generation_precision {
        Some(MixedPrecision::No) => Kind::Float,
        Some(MixedPrecision::Fp16) => Kind::Half,
        Some(MixedPrecision::Bf16) => Kind::BFloat16,
        _ => kind,
    }
}

/// The networks that the loop holds.
pub struct Networks {
    /// With its adapter.
    pub unet: Loaded<UNet2DConditionModel>,
    /// Where they train, with their adapters.
    pub text_encoders: Option<TextEncoders>,
    /// Where photos are encoded at each step.
    pub vae_encoder: Option<Loaded<VaeEncoder>>,
    /// The dtype of UNet and text encoders.
    pub kind: Kind,
    /// The VAE's dtype.
    pub vae_kind: Kind,
    /// Where all of them are.
    pub device: Device,
}

impl Networks {
    /// The layers of all of them.
    pub fn all(&self) -> Vec<&Sites> {
        self.named().into_iter().map(|(_, sites)| sites).collect()
    }

    /// The same with the names of the networks.
    pub fn named(&self) -> Vec<(&'static str, &Sites)> {
        let trained = self.trained().into_iter().map(|(part, sites)| (part.name(), sites));
        trained.chain(self.vae_encoder.iter().map(|network| ("vae", network.sites.as_ref()))).collect()
    }

    /// The layers of those that train.
    pub fn trained(&self) -> Vec<(Part, &Sites)> {
        let unet = (Part::UNet, self.unet.sites.as_ref());
        std::iter::once(unet).chain(self.text_encoders.iter().flat_map(TextEncoders::sites)).collect()
    }

    /// Turns dropout on or off.
    pub fn set_training(&self, training: bool) {
        self.trained().into_iter().for_each(|(_, sites)| sites.set_training(training));
    }
}

/// Text embeddings of the photos' prompts: known where the text encoders are frozen, token ids where they train.
pub struct Embeddings {
    tokenizers: PromptTokenizers,
    ids: BTreeMap<String, Vec<Vec<i64>>>,
    known: BTreeMap<String, Conditioning>,
    prompts: Vec<String>,
    validation: Option<(String, EncodedPrompts)>,
}

impl Embeddings {
    /// Encodes a prompt of a sample image, and what must not be on it, with the text encoders that train or with the frozen ones,
    /// which are in memory only meanwhile, and with them the adapters that are `carried`. The validation prompt's are known.
    pub fn encode(
        &self,
        (prompt, negative): Texts,
        networks: &Networks,
        files: &PipelineFiles,
        carried: &[(Part, PartAdapter)],
    ) -> Result<EncodedPrompts> {
        let encode =
            |encoders: &TextEncoders| EncodedPrompts::encode(&self.tokenizers, encoders, (&[prompt], None), negative);
        let known = self.validation.as_ref().filter(|(known, _)| known == prompt && negative.is_none());
        match (&networks.text_encoders, known) {
            (Some(encoders), _) => encode(encoders),
            (None, Some((_, on))) => Ok(on.shallow_clone()),
            (None, None) => {
                let encoders = files.load_text_encoders(Placement { device: networks.device, kind: networks.kind })?;
                put_on_carried(&encoders, carried)?;
                encode(&encoders)
            }
        }
    }

    /// What the UNet is given for a batch of photos, whose crops have the sizes `ids`.
    pub fn of(&self, photos: &[usize], ids: &[SizeIds], networks: &Networks, checkpointing: bool) -> Conditioning {
        let prompts = photos.iter().map(|&photo| &self.prompts[photo]);
        let texts = match &networks.text_encoders {
            None => Conditioning::cat(&prompts.map(|prompt| self.known[prompt].shallow_clone()).collect::<Vec<_>>()),
            Some(encoders) => {
                let rows: Vec<Vec<Vec<i64>>> = prompts.map(|prompt| self.ids[prompt].clone()).collect();
                encoders.forward(&rows, checkpointing)
            }
        };
        texts.with_size_ids(ids)
    }
}

fn placement(run: &Run, kind: Kind) -> Placement {
    Placement { device: run.device, kind }
}

/// What to do where memory is full of class images.
const DRAW_IN_LESS: &str =
    "lower ⟨sample_batch_size⟩ or ⟨resolution⟩, or use ⟨prior_generation_precision⟩ bf16, for the class images";

/// Generates the class images that prior preservation needs and the folder does not have yet.
pub fn make_class_images(
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    run: &mut Run,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<()> {
    let (true, Some(folder), Some(prompt)) =
        (config.with_prior_preservation, &config.class_data_dir, &config.class_prompt)
    else {
        return Ok(());
    };
    run.phase = "class images";
    let ranks = run.ranks.clone();
    let is_first_here = ranks.is_first() || ranks.is_first_elsewhere();
    if is_first_here {
        remove_unfinished(folder)?;
    }
    let found = || -> Result<(usize, Vec<usize>)> {
        let present = count_images_but(folder, &config.apart_from_class())?;
        let mut missing = Vec::new();
        if present < config.num_class_images {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
            missing = free_numbers(folder, config.num_class_images - present)?;
        }
        Ok((present, missing))
    };
    let (present, missing) = ranks.of_first(found)?;
    if missing.is_empty() {
        return Ok(());
    }
    let kind = class_image_kind(config, run.kind);
    if kind != run.kind {
        crate::recipes::slow_dtype(run.device, kind)?.into_iter().for_each(|text| observer.warning(text));
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let _lock = is_first_here.then(|| FolderLock::take(folder)).transpose()?;
    let mut pipeline = Pipeline::open(files.clone(), &config.model.name, placement(run, kind), Residence::InTurn)?;
    pipeline.use_tiling(config.vae_tiling);
    let end = missing.last().map_or(0, |last| last + 1).max(config.num_class_images);
    // A group of images rounds as one: a resumed run draws the whole group again that it was stopped in.
    let size = config.sample_batch_size;
    let groups = missing.chunk_by(|a, b| a / size == b / size).map(|numbers| numbers[0] / size * size);
    let own = groups.enumerate().filter(|(group, _)| ranks.has_share(*group));
    let drawn: Vec<usize> = own.flat_map(|(_, first)| first..end.min(first + size)).collect();
    let pictures = Pictures {
        prompts: vec![prompt.clone()],
        prompt_2: None,
        negative_prompt: None,
        seeds: drawn.iter().map(|&number| run.seed.wrapping_add(number as i64)).collect(),
        batch_size: size,
        sampling: sampling(config, files, CLASS_IMAGE_STEPS, None)?,
    };
    let (mut done, mut own) = (present, Vec::new());
    if !drawn.is_empty() {
        let on = pipeline.prepare(&pictures)?;
        let mut save = |image: &DrawnImage, _: &mut dyn Observer| -> Result<()> {
            let number = drawn[image.index];
            if missing.contains(&number) {
                own.push(save_class_image(folder, number, &image.image)?);
                done += 1;
            }
            Ok(())
        };
        let mut listener = WatchedDrawing::begin("class images", &pictures, interrupt, observer, &mut save);
        let outcome = pipeline.draw(&pictures, &on, &mut listener);
        drop(listener);
        outcome.map_err(|error| match error {
            Error::Interrupted(_) => Error::Interrupted(format!(
                "{done} class images are in {}; the same command continues",
                folder.display()
            )),
            error => error.advising(DRAW_IN_LESS),
        })?;
    }
    share_class_images(folder, &own, is_first_here, run)?;
    observer.fact_with(
        "class_images",
        format!("{} generated in {}", missing.len(), folder.display()),
        json!({ "images": missing.len(), "path": folder.display().to_string() }),
    );
    drop(pipeline);
    memory::release_cached(run.device)
}

/// Machines without a common file system get the images that others have drawn, one of each rank at a time: its name, a 0, its bytes.
/// Each machine's first rank writes them.
fn share_class_images(folder: &Path, own: &[PathBuf], writes: bool, run: &Run) -> Result<()> {
    let ranks = &run.ranks;
    if ranks.share_a_machine() {
        return ranks.meet();
    }
    let rounds = ranks.collect(Ok(vec![own.len()]))?.into_iter().max().unwrap_or(0);
    for round in 0..rounds {
        let mut image = Vec::new();
        if let Some(path) = own.get(round) {
            image.extend(path.file_name().unwrap_or_default().as_encoded_bytes());
            image.push(0);
            image.extend(regular_file::read(path, FileKind::PHOTO)?);
        }
        for image in ranks.gather(image)?.iter().filter(|_| writes) {
            let Some(end) = image.iter().position(|&byte| byte == 0) else { continue };
            let path = folder.join(String::from_utf8_lossy(&image[..end]).as_ref());
            if !path.exists() {
                write_whole(&path, &image[end + 1..])?;
            }
        }
    }
    ranks.meet()
}

/// How images of the training resolution are sampled, in `steps`, by the sampler of that name or the model's own.
pub fn sampling(
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    steps: usize,
    scheduler: Option<&str>,
) -> Result<Sampling> {
    let side = i64::from(config.side()) / files.vae_config()?.scale_factor();
    Ok(Sampling {
        steps,
        guidance_scale: config.guidance_scale,
        scheduler: scheduler.map(str::to_owned),
        latent_height: side,
        latent_width: side,
        guidance_rescale: 0.0,
        size_ids: SizeIds::of_whole(config.side().into(), config.side().into()),
    })
}

/// Warns of prompts, and of the captions of `instances`, that are cut, or hold what is no word.
pub fn check_prompts(
    config: &DreamBoothConfig,
    instances: &[PhotoFile],
    tokenizer: &ClipTokenizer,
    observer: &mut dyn Observer,
) -> Result<()> {
    let captions = instances.iter().filter_map(|photo| photo.caption.as_ref());
    let mut prompts = Vec::new();
    // Where all photos have captions, nothing reads it.
    if instances.is_empty() || captions.clone().count() < instances.len() {
        prompts.push(NamedPrompt::option("⟨instance_prompt⟩", &config.instance_prompt));
    }
    let class_prompt = config.class_prompt.as_deref().filter(|_| config.with_prior_preservation);
    prompts.extend(class_prompt.map(|text| NamedPrompt::option("⟨class_prompt⟩", text)));
    prompts.extend(config.validation_prompt.as_deref().map(|text| NamedPrompt::option("⟨validation_prompt⟩", text)));
    prompts.extend(captions.map(|(file, text)| NamedPrompt::listed(file.display().to_string(), text)));
    warn_of_prompts(tokenizer, &prompts, observer)
}

/// The photos of the subject, with their captions.
pub fn instance_files(config: &DreamBoothConfig) -> Result<PhotoFiles> {
    let mut files = PhotoFiles::list(&config.instance_data_dir, &config.apart_from_instances())?;
    if files.files.is_empty() {
        return Err(no_image(&config.instance_data_dir, None));
    }
    files.read_captions()?;
    Ok(files)
}

/// The photos of the class in `folder`, which all have one prompt.
pub fn class_files(config: &DreamBoothConfig, folder: &Path) -> Result<PhotoFiles> {
    let mut files = PhotoFiles::list(folder, &config.apart_from_class())?;
    let unused = match files.texts() {
        0 => None,
        1 => Some("a caption is not used: class images are trained with ⟨class_prompt⟩".to_owned()),
        texts => Some(format!("{texts} captions are not used: class images are trained with ⟨class_prompt⟩")),
    };
    files.warnings.extend(unused.map(|text| format!("{}: {text}", folder.display())));
    Ok(files)
}

/// Opens the photos.
pub fn open_dataset(config: &DreamBoothConfig, observer: &mut dyn Observer) -> Result<DreamBoothDataset> {
    let mut open = |folder: &Path, files: PhotoFiles| -> Result<PhotoFolder> {
        let photos = PhotoFolder::decode(folder, files, config.side())?;
        photos.warnings.iter().for_each(|text| observer.warning(text.clone()));
        Ok(photos)
    };
    let listed = instance_files(config)?;
    let bare = listed.files.iter().filter(|photo| photo.caption.is_none()).count();
    if bare > 0 && config.instance_prompt.trim().is_empty() {
        return Err(Error::invalid(format!(
            "⟨instance_prompt⟩ is empty, and {bare} of the {} photos have no caption, so that no words would name the subject; give \
             a prompt such as \"a photo of sks dog\", or a caption for each photo",
            listed.files.len()
        )));
    }
    let instances = open(&config.instance_data_dir, listed)?;
    let class = match (&config.class_data_dir, &config.class_prompt) {
        (Some(folder), Some(prompt)) if config.with_prior_preservation => {
            Some((open(folder, class_files(config, folder)?)?, prompt.as_str()))
        }
        _ => None,
    };
    DreamBoothDataset::new(instances, &config.instance_prompt, class, config.center_crop)
}

/// Runs the VAE's encoder once for each photo whose crop is fixed. Gives it back where the loop still needs it.
pub fn encode_photos(
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    run: &mut Run,
    dataset: &mut DreamBoothDataset,
    observer: &mut dyn Observer,
) -> Result<(LatentCache, Option<Loaded<VaeEncoder>>)> {
    run.phase = "latents";
    let kind = files.vae_kind(run.kind);
    let encodings = Encodings::in_folder(config.cache_dir.as_deref())?;
    let contents = match encodings.are_kept() {
        true => network_contents("latents", config, run, kind)
            .and_text(&files.vae_weights()?.fingerprint()?)
            .and_text(&files.config_json("vae")?.to_string())
            .and_text(if config.vae_tiling { "in tiles" } else { "" }),
        false => Contents::of(""),
    };
    // Where all are known, it is not loaded.
    let mut vae: Option<Loaded<VaeEncoder>> = None;
    let ranks = run.ranks.clone();
    let total = (0..dataset.photos().len()).filter(|&photo| ranks.has_share(photo)).count() as u64;
    observer.begin("encoding", total, "photos");
    let mut done = 0;
    let own = |photo| ranks.has_share(photo);
    let mut cache = LatentCache::fill(dataset, config.cache_latents, run.seed, own, |pixels| {
        let bytes: Vec<u8> = match encodings.are_kept() {
            true => tensor_bytes(pixels)?,
            false => Vec::new(),
        };
        let known = encodings.get_or_make(contents.clone().and(&bytes), || {
            let vae = loaded_encoder(&mut vae, config, files, placement(run, kind))?;
            let posterior = catching(|| Ok(vae.model.encode(&pixels.to_device(run.device).to_kind(kind))))?;
            if !posterior.is_finite() {
                let lost = || run.numbers_are_lost_in("the VAE's output is", "vae.encoder");
                return Err(files.damaged_weight()?.unwrap_or_else(lost));
            }
            let named = [("mean", posterior.mean), ("log_variance", posterior.log_variance)];
            Ok(named.map(|(name, tensor)| (name.to_owned(), tensor)).into())
        })?;
        done += 1;
        observer.on(Event::Progress { done });
        let on_device = |name: &str| known[name].to_device(run.device);
        Ok((on_device("mean"), on_device("log_variance")))
    })?;
    share_latents(&mut cache, run)?;
    observer.on(Event::End);
    let vae = match cache.is_complete() {
        true => None,
        false => {
            loaded_encoder(&mut vae, config, files, placement(run, kind))?;
            vae
        }
    };
    memory::release_cached(run.device)?;
    Ok((cache, vae))
}

/// Every rank gets what the others have encoded.
fn share_latents(cache: &mut LatentCache, run: &Run) -> Result<()> {
    let ranks = &run.ranks;
    let of = |rank: usize| -> Vec<usize> {
        cache.kept().iter().copied().filter(|photo| photo % ranks.count() == rank).collect()
    };
    let shares: Vec<Vec<usize>> = (0..ranks.count()).map(of).collect();
    if ranks.is_alone() || cache.kept().is_empty() {
        return Ok(());
    }
    let own = &shares[ranks.rank()];
    let stacked = (!own.is_empty()).then(|| cache.stacked(own)).transpose()?;
    let shape: Vec<i64> = stacked.iter().flat_map(|stacked| stacked.size()[1..].to_vec()).collect();
    let shapes = ranks.collect(Ok(vec![shape]))?;
    for (rank, photos) in shares.iter().enumerate().filter(|(_, photos)| !photos.is_empty()) {
        let shape = [&[photos.len() as i64], shapes[rank].as_slice()].concat();
        let mut share = match (&stacked, rank == ranks.rank()) {
            (Some(own), true) => own.shallow_clone(),
            _ => Tensor::zeros(shape, (Kind::Float, run.device)),
        };
        ranks.equalise([&mut share], rank)?;
        cache.insert(photos, &share);
    }
    Ok(())
}

/// The VAE's encoder, loaded where it is not yet.
fn loaded_encoder<'a>(
    vae: &'a mut Option<Loaded<VaeEncoder>>,
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    placement: Placement,
) -> Result<&'a Loaded<VaeEncoder>> {
    Ok(match vae {
        Some(vae) => vae,
        none => {
            let mut loaded = files.load_vae_encoder(placement)?;
            loaded.model.use_tiling(config.vae_tiling);
            none.insert(loaded)
        }
    })
}

/// What everything depends on that a frozen network computes, beside its weights and what it is given.
fn network_contents(what: &str, config: &DreamBoothConfig, run: &Run, kind: Kind) -> Contents {
    let device = if run.device == Device::Cpu { "cpu" } else { "cuda" };
    let kept = format!("{:?} {:?}", config.training.weights.storage(), config.training.fp32_layers);
    Contents::of(what).and_text(device).and_text(&format!("{kind:?} {}", config.slicing)).and_text(&kept)
}

/// Puts the adapters of text encoders that do not train on them, where there are any.
fn put_on_carried(encoders: &TextEncoders, carried: &[(Part, PartAdapter)]) -> Result<()> {
    for (part, sites) in encoders.sites() {
        if let Some((_, adapter)) = carried.iter().find(|(of, _)| *of == part) {
            attach(sites, "carried", adapter.config.clone(), Init::Tensors(&adapter.tensors))?;
            sites.set_training(false);
        }
    }
    Ok(())
}

/// What of the text encoders stays for the training: themselves where they train; else their adapters, where `--init-adapter` has
/// any, which stay as they are.
pub struct KeptEncoders {
    /// Where they train.
    pub trained: Option<TextEncoders>,
    /// Of those that do not.
    pub carried: Vec<(Part, PartAdapter)>,
}

/// Tokenizes every prompt, and encodes them where the text encoders do not train.
pub fn encode_prompts(
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    run: &mut Run,
    dataset: &DreamBoothDataset,
) -> Result<(Embeddings, KeptEncoders)> {
    run.phase = "prompt embeddings";
    let tokenizers = PromptTokenizers::of(files)?;
    let prompts: Vec<String> = (0..dataset.photos().len()).map(|photo| dataset.prompt(photo).to_owned()).collect();
    let mut ids = BTreeMap::new();
    for prompt in &prompts {
        if !ids.contains_key(prompt) {
            ids.insert(prompt.clone(), tokenizers.encode(prompt, None)?);
        }
    }
    let mut embeddings = Embeddings { tokenizers, ids, known: BTreeMap::new(), prompts, validation: None };
    if config.train_text_encoder {
        let encoders = files.load_text_encoders(placement(run, run.kind))?;
        embeddings.ids.values().try_for_each(|ids| encoders.check_ids(ids))?;
        return Ok((embeddings, KeptEncoders { trained: Some(encoders), carried: Vec::new() }));
    }
    let carried = carried_text_encoders(config)?;
    // Adapters that are carried make other embeddings.
    let encodings = Encodings::in_folder(config.cache_dir.as_deref().filter(|_| carried.is_empty()))?;
    let contents = encoders_contents(config, files, run, &encodings)?;
    let mut frozen = Frozen { files, carried: &carried, place: placement(run, run.kind), encoders: None };
    for (prompt, ids) in &embeddings.ids {
        interrupt::check()?;
        let known = encodings.get_or_make(contents.clone().and_text(&format!("{ids:?}")), || {
            let encoders = frozen.encoders()?;
            encoders.check_ids(ids)?;
            let rows = std::slice::from_ref(ids);
            let encoded = catching(|| Ok(tch::no_grad(|| encoders.forward(rows, false))))?;
            Ok(encoded.into_named(""))
        })?;
        embeddings.known.insert(prompt.clone(), Conditioning::from_named(&known, "", run.device)?);
    }
    if let Some(prompt) = &config.validation_prompt {
        let (first, none) = (embeddings.tokenizers.encode(prompt, None)?, embeddings.tokenizers.encode("", None)?);
        let contents = contents.and_text(&format!("{first:?} without {none:?}"));
        let known = encodings.get_or_make(contents, || {
            let prompts = (std::slice::from_ref(prompt), None);
            let on = EncodedPrompts::encode(&embeddings.tokenizers, frozen.encoders()?, prompts, None)?;
            let mut named = on.prompt.into_named("prompt.");
            named.extend(on.negative.into_named("negative."));
            Ok(named)
        })?;
        let [prompt_on, negative] =
            ["prompt.", "negative."].map(|start| Conditioning::from_named(&known, start, run.device));
        embeddings.validation = Some((prompt.clone(), EncodedPrompts { prompt: prompt_on?, negative: negative? }));
    }
    drop(frozen);
    memory::release_cached(run.device)?;
    Ok((embeddings, KeptEncoders { trained: None, carried }))
}

/// The text encoders that do not train, loaded when the first text is encoded that is not known.
struct Frozen<'a> {
    files: &'a PipelineFiles,
    carried: &'a [(Part, PartAdapter)],
    place: Placement,
    encoders: Option<TextEncoders>,
}

impl Frozen<'_> {
    fn encoders(&mut self) -> Result<&TextEncoders> {
        Ok(match &mut self.encoders {
            Some(encoders) => encoders,
            none => {
                let encoders = self.files.load_text_encoders(self.place)?;
                put_on_carried(&encoders, self.carried)?;
                none.insert(encoders)
            }
        })
    }
}

/// What embeddings of texts depend on beside the texts.
fn encoders_contents(
    config: &DreamBoothConfig,
    files: &PipelineFiles,
    run: &Run,
    encodings: &Encodings,
) -> Result<Contents> {
    let mut contents = network_contents("texts", config, run, run.kind);
    for part in files.text_encoders().iter().filter(|_| encodings.are_kept()) {
        let described = files.config_json(part.name())?.to_string();
        contents = contents.and_text(&files.text_encoder_weights(*part)?.fingerprint()?).and_text(&described);
    }
    Ok(contents)
}
