//! Sample images of a DreamBooth run, drawn with the weights as they are.

use super::networks::Networks;
use crate::adapters::Sites;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use crate::models::stable_diffusion::{PipelineFiles, SizeIds, TextEncoders};
use crate::options::dreambooth::DreamBoothConfig;
use crate::recipes::training::control::SampleRequest;
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::training::run::Run;
use crate::recipes::training::watched::{Take, WatchedDrawing};
use crate::sample::drawn_image::{DrawnImage, ImageParameters};
use crate::sample::grid::grid;
use crate::sample::painter::{Painter, Pictures};
use crate::sample::pipeline::{sampling_schedule, short_name};
use crate::sample::text_to_image::{EncodedPrompts, Sampling};
use crate::weights::Placement;
use crate::whole_file::{write_png, write_whole};
use image::RgbImage;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Steps of the sampler for a sample image.
pub const SAMPLE_STEPS: usize = 25;
/// The sampler.
const SAMPLER: &str = "dpm++2m";
/// As many images as a request can be for.
const MOST_IMAGES: usize = 64;

/// What sample images are drawn with. The VAE's decoder is in memory only meanwhile.
pub struct Samples<'a> {
    /// The run's options.
    pub config: &'a DreamBoothConfig,
    /// The model.
    pub files: &'a PipelineFiles,
    /// The networks that train.
    pub networks: &'a Networks,
}

/// A prompt, and what must not be on its pictures.
pub type Texts<'a> = (&'a str, Option<&'a str>);

impl Samples<'_> {
    /// `count` images of `prompt` and of what must not be on them, from the noise of `seed` and the numbers behind it.
    pub fn pictures(&self, (prompt, negative): Texts, seed: i64, count: usize) -> Result<Pictures> {
        Ok(Pictures {
            prompts: vec![prompt.to_owned()],
            prompt_2: None,
            negative_prompt: negative.map(str::to_owned),
            seeds: (0..count).map(|i| seed.wrapping_add(i as i64)).collect(),
            batch_size: 1,
            sampling: sampling(self.config, self.files, SAMPLE_STEPS, Some(SAMPLER))?,
        })
    }

    /// Those that `request` asks for, of the prompts that it or the run has.
    pub fn requested(&self, request: &SampleRequest, prompt: &str, seed: i64) -> Result<Pictures> {
        let count = request.images.unwrap_or(1);
        if !(1..=MOST_IMAGES).contains(&count) {
            return Err(Error::invalid(format!("{count} sample images were asked for; it must be 1 to {MOST_IMAGES}")));
        }
        let negative = request.negative_prompt.as_deref().filter(|text| !text.is_empty());
        self.pictures((request.prompt.as_deref().unwrap_or(prompt), negative), request.seed.unwrap_or(seed), count)
    }

    /// Draws them to the run's folder `samples` as `step-000100-NAME.png`, NAME by [`Series`], until `interrupt` is set. Several ranks each
    /// draw a share of those that are due, and the first one writes all.
    pub fn draw(
        &self,
        pictures: &Pictures,
        on: &EncodedPrompts,
        series: Series,
        run: &mut Run,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let names = Names { folder: run.folder.join("samples"), step: run.step, series };
        let first = names.first_free();
        let (mut images, mut paths): (Vec<RgbImage>, Vec<PathBuf>) = Default::default();
        let mut write = |drawn: &DrawnImage, run: &mut Run, observer: &mut dyn Observer| -> Result<()> {
            let path = names.path(&(first + drawn.index).to_string());
            let png = drawn.png()?;
            write_whole(&path, &png)?;
            if series == Series::Validation {
                run.events_image(&format!("samples/{}", drawn.index), &png, drawn.image.dimensions())?;
            }
            let parameters = drawn.parameters.clone();
            observer.on(Event::Image { path: path.clone(), step: Some(names.step), parameters });
            images.push(drawn.image.clone());
            paths.push(path);
            Ok(())
        };
        let device = run.device;
        match series {
            Series::Validation if !run.ranks.is_alone() => {
                for drawn in self.draw_in_shares(pictures, on, run, interrupt, observer)? {
                    write(&drawn, run, observer)?;
                }
            }
            _ => {
                let mut take = |drawn: &DrawnImage, observer: &mut dyn Observer| write(drawn, run, observer);
                self.paint(pictures, on, device, interrupt, observer, &mut take)?;
            }
        }
        let grid = match (images.len(), series) {
            (2.., Series::Validation) => {
                let path = names.path("grid");
                write_png(&path, &grid(&images))?;
                Some(path)
            }
            _ => None,
        };
        observer.on(Event::WroteImages { paths, grid });
        memory::release_cached(device)
    }

    /// This rank's share of `pictures`, and on the first rank those of all others.
    fn draw_in_shares(
        &self,
        pictures: &Pictures,
        on: &EncodedPrompts,
        run: &Run,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Vec<DrawnImage>> {
        let ranks = &run.ranks;
        let places: Vec<usize> = (0..pictures.seeds.len()).filter(|&place| ranks.has_share(place)).collect();
        let own = Pictures { seeds: places.iter().map(|&place| pictures.seeds[place]).collect(), ..pictures.clone() };
        let mut drawn: Vec<DrawnImage> = Vec::new();
        let outcome = match places.is_empty() {
            true => Ok(()),
            false => self.paint(&own, on, run.device, interrupt, observer, &mut |image, _| {
                drawn.push(DrawnImage { index: places[image.index], ..image.clone() });
                Ok(())
            }),
        };
        let rounds = ranks.collect(outcome.map(|()| vec![drawn.len()]))?.into_iter().max().unwrap_or(0);
        let mut all = Vec::new();
        for round in 0..rounds {
            let own = drawn.get(round).map_or(Ok(Vec::new()), packed)?;
            all.extend(ranks.gather(own)?.iter().filter_map(|bytes| unpacked(bytes)));
        }
        all.sort_by_key(|drawn| drawn.index);
        Ok(if ranks.is_first() { all } else { Vec::new() })
    }

    /// Draws `pictures`, each of which `take` gets as it is finished.
    fn paint(
        &self,
        pictures: &Pictures,
        on: &EncodedPrompts,
        device: Device,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
        take: Take,
    ) -> Result<()> {
        let place = Placement { device, kind: self.networks.vae_kind };
        let mut vae = self.files.load_vae_decoder(place)?;
        let tiling = self.config.slicing || self.config.vae_tiling;
        vae.model.use_tiling(tiling);
        let load_exact = || {
            let mut exact = self.files.load_vae_decoder(Placement { kind: Kind::Float, ..place })?;
            exact.model.use_tiling(tiling);
            Ok(exact)
        };
        let movable = self.networks.all();
        let scheduler = sampling_schedule(self.files)?;
        let painter = Painter {
            unet: &self.networks.unet.model,
            vae_decoder: &vae.model,
            vae_kind: place.kind,
            load_exact: &load_exact,
            movable: &movable,
            scheduler: &scheduler,
            model: &short_name(Path::new(&self.config.model.name)),
            adapters: &[],
        };
        let mut listener = WatchedDrawing::begin("sampling", pictures, interrupt, observer, take);
        // The prompts are encoded: what encoded them makes room for the decoder.
        let encoders: Vec<&Sites> =
            self.networks.text_encoders.iter().flat_map(TextEncoders::sites).map(|(_, sites)| sites).collect();
        encoders.iter().try_for_each(|sites| sites.park())?;
        let outcome = catching(|| painter.draw(pictures, on, &mut listener));
        drop(listener);
        encoders.iter().try_for_each(|sites| sites.unpark(device))?;
        outcome
    }
}

/// A picture's place and what it was drawn with, a 0, its pixels.
fn packed(drawn: &DrawnImage) -> Result<Vec<u8>> {
    let header = serde_json::to_vec(&(drawn.index, &drawn.parameters));
    let header = header.map_err(|error| Error::Internal(error.to_string()))?;
    Ok([&header, &[0][..], &drawn.image].concat())
}

fn unpacked(bytes: &[u8]) -> Option<DrawnImage> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let (index, parameters): (usize, ImageParameters) = serde_json::from_slice(&bytes[..end]).ok()?;
    let image = RgbImage::from_raw(parameters.width, parameters.height, bytes[end + 1..].to_vec())?;
    Some(DrawnImage { index, image, parameters })
}

/// Why sample images are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// They are due: numbered from 0, in the logs too, and with a grid of all of them.
    Validation,
    /// They were asked for: numbered behind those that were asked for at the same step.
    Asked,
}

struct Names {
    folder: PathBuf,
    step: u64,
    series: Series,
}

impl Names {
    fn path(&self, name: &str) -> PathBuf {
        let series = if self.series == Series::Asked { "asked-" } else { "" };
        self.folder.join(format!("step-{:06}-{series}{name}.png", self.step))
    }

    fn first_free(&self) -> usize {
        match self.series {
            Series::Validation => 0,
            Series::Asked => (0..).find(|number| !self.path(&number.to_string()).exists()).unwrap_or_default(),
        }
    }
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
