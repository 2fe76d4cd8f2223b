//! What the VAE says about photos whose crop never changes: it runs once for each and can then be freed.
//!
//! Mean and log-variance are kept, not a sample: each step still draws from the posterior.

use super::dreambooth_dataset::DreamBoothDataset;
use super::photo_transform::to_tensor;
use crate::error::{Error, Result};
use crate::interrupt;
use clap::ValueEnum;
use tch::{Kind, Tensor};

/// Which photos' latents are computed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CacheMode {
    /// Where a photo's crop is fixed.
    #[default]
    Auto,
    // One that is random otherwise is drawn once, from the seed.
    /// All photos, one crop each.
    #[value(name = "true")]
    Always,
    /// None.
    #[value(name = "false")]
    Never,
}

/// The VAE's posterior of one photo.
struct Posterior {
    mean: Tensor,
    logvar: Tensor,
}

/// Posteriors by photo number.
pub struct LatentCache {
    posteriors: Vec<Option<Posterior>>,
    kept: Vec<usize>,
}

impl LatentCache {
    /// Runs `encode` on each photo that `mode` lets be cached, and lets go of its pixels.
    ///
    /// `encode` takes pixels `[1, 3, size, size]` (float32 in [-1, 1], on the CPU) and gives mean and log-variance
    /// `[1, 4, size/8, size/8]`; they are kept in float32 on the device where it leaves them. With
    /// [`CacheMode::Always`] the dataset's crops are first fixed from `seed`. Photos that are not `own`, by their numbers, are left
    /// for [`LatentCache::insert`].
    pub fn fill(
        dataset: &mut DreamBoothDataset,
        mode: CacheMode,
        seed: i64,
        own: impl Fn(usize) -> bool,
        mut encode: impl FnMut(&Tensor) -> Result<(Tensor, Tensor)>,
    ) -> Result<Self> {
        if mode == CacheMode::Always {
            dataset.fix_crops(seed);
        }
        let _guard = tch::no_grad_guard();
        let (mut posteriors, mut kept) = (Vec::with_capacity(dataset.photos().len()), Vec::new());
        for photo in 0..dataset.photos().len() {
            interrupt::check()?;
            let crop = dataset.fixed_crop(photo).filter(|_| mode != CacheMode::Never);
            let Some(crop) = crop else {
                posteriors.push(None);
                continue;
            };
            kept.push(photo);
            if !own(photo) {
                posteriors.push(None);
                dataset.forget_pixels(photo);
                continue;
            }
            let pixels = to_tensor(&dataset.pixels(photo, crop)?, dataset.size())?;
            let (mean, logvar) = encode(&pixels)?;
            posteriors.push(Some(Posterior { mean: one(&mean)?, logvar: one(&logvar)? }));
            dataset.forget_pixels(photo);
        }
        Ok(Self { posteriors, kept })
    }

    /// The photos whose posteriors are kept, by whoever they are computed.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// The posteriors of `photos`, all of which are known: `[photos, 2, c, h, w]`.
    pub fn stacked(&self, photos: &[usize]) -> Result<Tensor> {
        let of = |&photo: &usize| -> Result<Tensor> {
            let (mean, logvar) =
                self.get(photo).ok_or_else(|| Error::invalid(format!("the latents of photo {photo} are not known")))?;
            Ok(Tensor::f_stack(&[mean, logvar], 0)?)
        };
        Ok(Tensor::f_stack(&photos.iter().map(of).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Takes the posteriors of `photos`, stacked.
    pub fn insert(&mut self, photos: &[usize], stacked: &Tensor) {
        for (i, &photo) in photos.iter().enumerate() {
            let both = stacked.get(i as i64);
            self.posteriors[photo] = Some(Posterior { mean: both.get(0), logvar: both.get(1) });
        }
    }

    /// Whether the photo's posterior is known.
    pub fn contains(&self, photo: usize) -> bool {
        self.posteriors.get(photo).is_some_and(Option::is_some)
    }

    /// Which photos' posteriors are known, by number: plain data for the thread that prepares batches.
    pub fn known(&self) -> Vec<bool> {
        self.posteriors.iter().map(Option::is_some).collect()
    }

    /// Whether every photo's posterior is known, so that the VAE can be freed.
    pub fn is_complete(&self) -> bool {
        self.posteriors.iter().all(Option::is_some)
    }

    /// A photo's mean and log-variance, `[4, size/8, size/8]` float32.
    pub fn get(&self, photo: usize) -> Option<(&Tensor, &Tensor)> {
        self.posteriors.get(photo)?.as_ref().map(|posterior| (&posterior.mean, &posterior.logvar))
    }

    /// Mean and log-variance of a batch, `[photos, 4, size/8, size/8]` float32 each.
    ///
    /// `encoded` holds those of the photos that are not in the cache, in the batch's order; it may be left out where
    /// all are.
    pub fn posteriors(&self, photos: &[usize], encoded: Option<(&Tensor, &Tensor)>) -> Result<(Tensor, Tensor)> {
        let (mut means, mut logvars, mut fresh) = (Vec::new(), Vec::new(), 0);
        for &photo in photos {
            match (self.get(photo), encoded) {
                (Some((mean, logvar)), _) => {
                    means.push(mean.shallow_clone());
                    logvars.push(logvar.shallow_clone());
                }
                (None, Some((mean, logvar))) => {
                    means.push(mean.f_select(0, fresh)?.f_to_kind(Kind::Float)?);
                    logvars.push(logvar.f_select(0, fresh)?.f_to_kind(Kind::Float)?);
                    fresh += 1;
                }
                (None, None) => return Err(Error::invalid(format!("the latents of photo {photo} are not known"))),
            }
        }
        Ok((Tensor::f_stack(&means, 0)?, Tensor::f_stack(&logvars, 0)?))
    }
}

/// `[1, c, h, w] -> [c, h, w]` in float32.
fn one(latents: &Tensor) -> Result<Tensor> {
    Ok(latents.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::photos::PhotoFolder;
    use crate::libtorch::random::Generator;
    use image::RgbImage;
    use std::path::Path;

    /// A wide photo, a square one, a tall one.
    fn dataset(folder: &Path) -> DreamBoothDataset {
        for (name, width, height) in [("a.png", 40, 20), ("b.png", 20, 20), ("c.png", 20, 30)] {
            let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 7]));
            image.save(folder.join(name)).unwrap();
        }
        DreamBoothDataset::new(PhotoFolder::open(folder, 16).unwrap(), "a photo of sks dog", None, false).unwrap()
    }

    fn encode(pixels: &Tensor) -> Result<(Tensor, Tensor)> {
        let mean = pixels.f_mean_dim([2, 3].as_slice(), true, Kind::Float)?;
        Ok((mean.shallow_clone(), mean * 2.0))
    }

    #[test]
    fn auto_keeps_only_what_cannot_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset(folder.path());
        let cache = LatentCache::fill(&mut dataset, CacheMode::Auto, 3, |_| true, encode).unwrap();
        assert_eq!(cache.known(), [false, true, false]);
        assert!(cache.posteriors(&[1, 0], None).is_err());
        let fresh = Tensor::from_slice(&[5f32, 6., 7.]).view([1, 3, 1, 1]);
        let (mean, logvar) = cache.posteriors(&[1, 0], Some((&fresh, &fresh))).unwrap();
        assert_eq!(mean.select(0, 0), *cache.get(1).unwrap().0);
        assert_eq!(logvar.select(0, 1), fresh.select(0, 0));
    }

    #[test]
    fn always_draws_each_crop_once_from_the_seed_and_never_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset(folder.path());
        let cache = LatentCache::fill(&mut dataset, CacheMode::Always, 3, |_| true, encode).unwrap();
        assert!(cache.is_complete());
        let mut generator = Generator::new(3);
        for (photo, (width, height)) in [(0, (32, 16)), (2, (16, 24))] {
            assert_eq!(dataset.photos()[photo].dimensions(), (width, height));
            let crop = dataset.photos()[photo].crop_range().draw(&mut generator);
            assert_eq!(dataset.fixed_crop(photo), Some(crop));
            let pixels = to_tensor(&dataset.pixels(photo, crop).unwrap(), 16).unwrap();
            assert_eq!(encode(&pixels).unwrap().1.squeeze_dim(0), *cache.get(photo).unwrap().1);
        }
        let order = dataset.order(3, 9, true).unwrap();
        let prepared = dataset.prepare(order.batch(0, 0), Generator::new(1), |photo| cache.contains(photo)).unwrap();
        assert!(prepared.pixels().unwrap().is_none());
        let mut generator = prepared.generator;
        assert_eq!(generator.randn(&[4]), Generator::new(1).randn(&[4]));
    }

    #[test]
    fn a_prepared_batch_draws_its_crops_photo_by_photo() {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset(folder.path());
        let cache = LatentCache::fill(&mut dataset, CacheMode::Never, 3, |_| true, encode).unwrap();
        assert_eq!(cache.known(), [false; 3]);
        let batch = dataset.order(3, 9, true).unwrap().batch(0, 0);
        let prepared = dataset.prepare(batch.clone(), Generator::new(1), |_| false).unwrap();
        let mut generator = Generator::new(1);
        let crops: Vec<_> =
            batch.photos.iter().map(|&photo| dataset.photos()[photo].crop_range().draw(&mut generator)).collect();
        assert_eq!(prepared.crops, crops);
        assert_eq!(prepared.pixels().unwrap().unwrap().size(), [3, 3, 16, 16]);
        let mut after = prepared.generator;
        assert_eq!(after.randn(&[4]), generator.randn(&[4]));
    }
}
