//! Class images for prior preservation, drawn where the folder has too few.

use super::samples::sampling;
use crate::data::class_images::{free_numbers, remove_unfinished, save_class_image};
use crate::data::photos::count_images_but;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::memory;
use crate::models::stable_diffusion::PipelineFiles;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::precision::MixedPrecision;
use crate::recipes::training::observer::Observer;
use crate::recipes::training::run::Run;
use crate::recipes::training::watched::WatchedDrawing;
use crate::regular_file::{self, FileKind};
use crate::sample::drawn_image::DrawnImage;
use crate::sample::painter::Pictures;
use crate::sample::pipeline::{Pipeline, Residence};
use crate::train::folder_lock::FolderLock;
use crate::whole_file::write_whole;
use serde_json::json;
use std::path::{Path, PathBuf};
use tch::Kind;

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
    let mut pipeline = Pipeline::open(files.clone(), &config.model.name, run.placement(kind), Residence::InTurn)?;
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
