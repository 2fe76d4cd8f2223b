//! The prompts of a demo, the seeds of their noise, and the images of them.

use super::report::ImageReport;
use super::{stopped, GUIDANCE, SIDE};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::models::stable_diffusion::SizeIds;
use crate::recipes::training::observer::Observer;
use crate::recipes::training::watched::WatchedDrawing;
use crate::sample::drawn_image::DrawnImage;
use crate::sample::likeness::{Appearance, Distances};
use crate::sample::painter::Pictures;
use crate::sample::pipeline::Pipeline;
use crate::sample::text_to_image::Sampling;
use crate::whole_file::write_whole;
use image::RgbImage;
use std::path::Path;

/// The subject's class.
pub const CLASS_PROMPT: &str = "a photo of a bird";
/// The subject.
pub const SUBJECT_PROMPT: &str = "a photo of sks bird";
/// Images of each prompt.
pub const SEEDS: i64 = 3;
/// Backgrounds that no photo of the subject has.
const UNSEEN: [&str; 3] = ["red", "pink", "black"];
/// Away from the seeds of the class images.
const FIRST_SEED: i64 = 1000;
/// Images of the class that others are compared with.
const REFERENCES: i64 = 16;
const SAMPLER_STEPS: usize = 25;

/// Prompts, each with the seed of its noise.
pub struct Gallery {
    /// What is drawn.
    pub prompts: Vec<String>,
    seeds: Vec<i64>,
}

impl Gallery {
    /// The subject on any background and on unseen ones; then, from the same noise, its class.
    pub fn of_all_prompts(seed: i64) -> Self {
        let unseen = UNSEEN.iter().map(|colour| format!("{SUBJECT_PROMPT} on a {colour} background"));
        let subject = std::iter::once(SUBJECT_PROMPT.to_owned()).chain(unseen);
        let mut prompts: Vec<String> = subject.flat_map(|prompt| std::iter::repeat_n(prompt, SEEDS as usize)).collect();
        let mut seeds: Vec<i64> = (0..prompts.len() as i64).map(|i| seed.wrapping_add(FIRST_SEED + i)).collect();
        prompts.extend(vec![CLASS_PROMPT.to_owned(); seeds.len()]);
        seeds.extend_from_within(..);
        Self { prompts, seeds }
    }

    /// Images of the class alone, from noise of their own.
    pub fn of_the_class(seed: i64) -> Self {
        let seeds: Vec<i64> = (0..REFERENCES).map(|i| seed.wrapping_add(2 * FIRST_SEED + i)).collect();
        Self { prompts: vec![CLASS_PROMPT.to_owned(); seeds.len()], seeds }
    }

    /// Draws them all.
    pub fn draw(
        &self,
        pipeline: &mut Pipeline,
        phase: &str,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Vec<DrawnImage>> {
        let side = i64::from(SIDE) / pipeline.files().vae_config()?.scale_factor();
        let sampling = Sampling {
            steps: SAMPLER_STEPS,
            guidance_scale: GUIDANCE,
            scheduler: None,
            latent_height: side,
            latent_width: side,
            guidance_rescale: 0.0,
            size_ids: SizeIds::of_whole(SIDE.into(), SIDE.into()),
        };
        let pictures = Pictures {
            prompts: self.prompts.clone(),
            prompt_2: None,
            negative_prompt: None,
            seeds: self.seeds.clone(),
            batch_size: self.prompts.len(),
            sampling,
        };
        let on = pipeline.prepare(&pictures)?;
        let mut images = Vec::new();
        let mut keep = |drawn: &DrawnImage, _: &mut dyn Observer| -> Result<()> {
            images.push(drawn.clone());
            Ok(())
        };
        let mut listener = WatchedDrawing::begin(phase, &pictures, interrupt, observer, &mut keep);
        pipeline.draw(&pictures, &on, &mut listener).map_err(stopped)?;
        drop(listener);
        Ok(images)
    }

    /// Writes `images` of these prompts as `NAME-00.png` and so on, with their parameters.
    pub fn write(&self, folder: &Path, name: &str, images: &[DrawnImage]) -> Result<()> {
        images
            .iter()
            .enumerate()
            .try_for_each(|(i, drawn)| write_whole(&folder.join(format!("{name}-{i:02}.png")), &drawn.png()?))
    }

    /// What belongs to the prompts of the subject, of a list in the order of all prompts.
    pub fn subject<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        &all[..all.len() / 2]
    }

    /// What belongs to the prompts of the class.
    pub fn class<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        &all[all.len() / 2..]
    }

    /// Share of the images whose prompt names a background that have it.
    pub fn background_right(&self, appearances: &[Appearance]) -> f64 {
        let asked = |prompt: &str| UNSEEN.into_iter().find(|colour| prompt.ends_with(&format!("{colour} background")));
        let right: Vec<bool> = std::iter::zip(&self.prompts, appearances)
            .filter_map(|(prompt, appearance)| Some(asked(prompt)? == appearance.background()))
            .collect();
        right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
    }

    /// What was `measured` of each image.
    pub fn reports(&self, when: &'static str, appearances: &[Appearance], measured: &[Distances]) -> Vec<ImageReport> {
        let report = |i: usize| ImageReport {
            when,
            prompt: self.prompts[i].clone(),
            seed: self.seeds[i],
            background: appearances[i].background(),
            distances: measured[i],
        };
        (0..appearances.len()).map(report).collect()
    }
}

/// What was drawn, without its parameters.
pub fn images(drawn: &[DrawnImage]) -> Vec<RgbImage> {
    drawn.iter().map(|drawn| drawn.image.clone()).collect()
}
