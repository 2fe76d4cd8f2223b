//! What the frozen networks make once: photos to latents, prompts to embeddings.

use super::adapters::carried_text_encoders;
use super::networks::Networks;
use super::samples::Texts;
use crate::adapters::{attach, Init, Part, PartAdapter};
use crate::data::dreambooth_dataset::DreamBoothDataset;
use crate::data::encodings::{Contents, Encodings};
use crate::data::latent_cache::LatentCache;
use crate::data::tokenizers::PromptTokenizers;
use crate::error::Result;
use crate::interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::models::stable_diffusion::{Conditioning, Loaded, PipelineFiles, SizeIds, TextEncoders, VaeEncoder};
use crate::options::dreambooth::DreamBoothConfig;
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::Run;
use crate::sample::text_to_image::EncodedPrompts;
use crate::weights::tensor_file::tensor_bytes;
use crate::weights::Placement;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

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
            let vae = loaded_encoder(&mut vae, config, files, run.placement(kind))?;
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
            loaded_encoder(&mut vae, config, files, run.placement(kind))?;
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
        let encoders = files.load_text_encoders(run.placement(run.kind))?;
        embeddings.ids.values().try_for_each(|ids| encoders.check_ids(ids))?;
        return Ok((embeddings, KeptEncoders { trained: Some(encoders), carried: Vec::new() }));
    }
    let carried = carried_text_encoders(config)?;
    // Adapters that are carried make other embeddings.
    let encodings = Encodings::in_folder(config.cache_dir.as_deref().filter(|_| carried.is_empty()))?;
    let contents = encoders_contents(config, files, run, &encodings)?;
    let mut frozen = Frozen { files, carried: &carried, place: run.placement(run.kind), encoders: None };
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
