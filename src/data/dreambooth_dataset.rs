//! Instance and class photos as one numbered list, and the order in which a PyTorch DataLoader would visit them.
//!
//! Photos are numbered through: `0..n` are instance photos, `n..n + m` class photos, both by their paths. An epoch shows a photo
//! as often as its folder says.

use super::epoch_order::EpochOrder;
use super::photo_transform::{crop_values, to_tensor, Crop};
use super::photos::{Photo, PhotoFolder};
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use crate::plain_text::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tch::Tensor;

/// Bytes of a caption that a command line takes well.
const SHORT_CAPTION: usize = 200;

/// The photos of a DreamBooth run with their prompts.
#[derive(Debug)]
pub struct DreamBoothDataset {
    photos: Vec<Photo>,
    instance_count: usize,
    instance_prompt: String,
    class_prompt: String,
    size: u32,
    fixed_crops: Vec<Option<Crop>>,
}

impl DreamBoothDataset {
    /// Instance photos, whose captions replace `instance_prompt`, and for prior preservation class photos with their
    /// prompt. With `center_crop` every crop is the central one, otherwise it is drawn where a photo is not square.
    pub fn new(
        instances: PhotoFolder,
        instance_prompt: &str,
        class: Option<(PhotoFolder, &str)>,
        center_crop: bool,
    ) -> Result<Self> {
        let (instance_count, size) = (instances.photos.len(), instances.size);
        let mut photos = instances.photos;
        let mut class_prompt = "";
        if let Some((class_photos, prompt)) = class {
            if class_photos.size != size || class_photos.photos.is_empty() {
                return Err(Error::invalid("class photos must be there, and of the instance photos' resolution"));
            }
            photos.extend(class_photos.photos);
            class_prompt = prompt;
        }
        if instance_count == 0 {
            return Err(Error::invalid("there are no instance photos"));
        }
        let fixed_crop = |photo: &Photo| match center_crop {
            true => Some(photo.crop_range().center()),
            false => photo.crop_range().only(),
        };
        let fixed_crops = photos.iter().map(fixed_crop).collect();
        let (instance_prompt, class_prompt) = (instance_prompt.to_owned(), class_prompt.to_owned());
        Ok(Self { photos, instance_count, instance_prompt, class_prompt, size, fixed_crops })
    }

    /// All photos: instance photos, then class photos.
    pub fn photos(&self) -> &[Photo] {
        &self.photos
    }

    /// How many of the photos are instance photos.
    pub fn instance_count(&self) -> usize {
        self.instance_count
    }

    /// How many of the photos are class photos: 0 without prior preservation.
    pub fn class_count(&self) -> usize {
        self.photos.len() - self.instance_count
    }

    /// How many photos there are, and a hash of their names, sizes, prompts and repeats: a resumed run must find the same.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for (index, photo) in self.photos.iter().enumerate() {
            let bytes = std::fs::metadata(photo.path()).map_or(0, |about| about.len());
            digest.update(format!("{}\0{bytes}\0{}\0", photo.name(), self.prompt(index)));
            if photo.repeats() != 1 {
                digest.update(format!("{} repeats\0", photo.repeats()));
            }
        }
        let hash = hex(&digest.finalize()[..4]);
        format!("{} instance and {} class photos ({hash})", self.instance_count, self.class_count())
    }

    /// How many instance photos have a caption.
    pub fn caption_count(&self) -> usize {
        self.captions().count()
    }

    fn captions(&self) -> impl Iterator<Item = &str> {
        self.photos[..self.instance_count].iter().filter_map(Photo::caption)
    }

    /// A prompt that is trained: where every instance photo has a caption one of those, a short one where there is one, else the
    /// instance prompt.
    pub fn trained_prompt(&self) -> &str {
        if self.caption_count() < self.instance_count {
            return &self.instance_prompt;
        }
        let short = self.captions().find(|caption| caption.len() <= SHORT_CAPTION);
        short.or_else(|| self.captions().min_by_key(|caption| caption.len())).unwrap_or(&self.instance_prompt)
    }

    /// The folders inside others that the photos are in, each with how many there are and how often an epoch shows them; none where
    /// all photos are in the folders that were named.
    pub fn folders(&self) -> Vec<(PathBuf, usize, usize)> {
        let mut folders = BTreeMap::new();
        for photo in self.photos.iter().filter(|photo| photo.name().contains('/')) {
            let folder = photo.path().parent().unwrap_or(photo.path()).to_owned();
            folders.entry(folder).or_insert((0, photo.repeats())).0 += 1;
        }
        folders.into_iter().map(|(folder, (photos, repeats))| (folder, photos, repeats)).collect()
    }

    /// Height and width of a crop, in pixels.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// What the text encoder is told about a photo: an instance photo's caption or the instance prompt, or the class
    /// prompt.
    pub fn prompt(&self, photo: usize) -> &str {
        match self.photos.get(photo) {
            Some(instance) if photo < self.instance_count => instance.caption().unwrap_or(&self.instance_prompt),
            _ => &self.class_prompt,
        }
    }

    /// The photo's crop, where it is the same at every step: centred, the only one, or fixed by
    /// [`DreamBoothDataset::fix_crops`].
    pub fn fixed_crop(&self, photo: usize) -> Option<Crop> {
        self.fixed_crops.get(photo).copied().flatten()
    }

    /// Draws one crop for each photo that has none fixed, in the order of the photos, from the generator of `seed`.
    pub fn fix_crops(&mut self, seed: i64) {
        let mut generator = Generator::new(seed);
        for (photo, fixed) in self.photos.iter().zip(&mut self.fixed_crops) {
            fixed.get_or_insert_with(|| photo.crop_range().draw(&mut generator));
        }
    }

    /// Lets go of a photo's pixels, because its latents are known; they are decoded again where they are asked for.
    pub fn forget_pixels(&mut self, photo: usize) {
        if let Some(photo) = self.photos.get_mut(photo) {
            photo.forget_pixels();
        }
    }

    /// A photo's crop: float32 in [-1, 1], `[3, size, size]` in row-major order.
    pub fn pixels(&self, photo: usize, crop: Crop) -> Result<Vec<f32>> {
        let found = self.photos.get(photo).ok_or_else(|| Error::invalid(format!("there is no photo {photo}")))?;
        crop_values(found.resized()?.as_ref(), crop, self.size)
    }

    /// Draws a batch's crops from its micro-step's generator, photo by photo and only where they are not fixed, and
    /// decodes the photos for which `has_latents` is false.
    pub fn prepare(
        &self,
        batch: Batch,
        mut generator: Generator,
        has_latents: impl Fn(usize) -> bool,
    ) -> Result<PreparedBatch> {
        let mut crops = Vec::with_capacity(batch.photos.len());
        for &photo in &batch.photos {
            let found = self.photos.get(photo).ok_or_else(|| Error::invalid(format!("there is no photo {photo}")))?;
            crops.push(self.fixed_crop(photo).unwrap_or_else(|| found.crop_range().draw(&mut generator)));
        }
        let mut pixels = Vec::new();
        for (&photo, &crop) in batch.photos.iter().zip(&crops).filter(|(&photo, _)| !has_latents(photo)) {
            pixels.extend(self.pixels(photo, crop)?);
        }
        Ok(PreparedBatch { batch, crops, generator, pixels, size: self.size })
    }

    /// The order of batches over this dataset: `train_batch_size` places each, shuffled anew each epoch from
    /// `seed + epoch`, or by name.
    pub fn order(&self, train_batch_size: usize, seed: i64, shuffle: bool) -> Result<BatchOrder> {
        let (instances, classes) = self.photos.split_at(self.instance_count);
        let classes = shown(classes).into_iter().map(|photo| self.instance_count + photo).collect();
        BatchOrder::new(shown(instances), classes, train_batch_size, seed, shuffle)
    }
}

/// The photos of an epoch: all of them by their paths, then those with two repeats, with three, ….
fn shown(photos: &[Photo]) -> Vec<usize> {
    let most = photos.iter().map(Photo::repeats).max().unwrap_or(0);
    let round = |number| (0..photos.len()).filter(move |&photo| photos[photo].repeats() > number);
    (0..most).flat_map(round).collect()
}

/// Photos that are trained on together: all instance photos, then as many class photos or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Numbers of photos in the [`DreamBoothDataset`].
    pub photos: Vec<usize>,
    /// How many of them, from the first, are instance photos.
    pub instance_count: usize,
}

/// A batch that needs no more of the CPU's time: what the background thread hands to the training loop.
pub struct PreparedBatch {
    /// The photos.
    pub batch: Batch,
    /// Each photo's crop.
    pub crops: Vec<Crop>,
    /// The micro-step's generator, behind the draws of the crops.
    pub generator: Generator,
    pixels: Vec<f32>,
    size: u32,
}

impl PreparedBatch {
    /// The photos without latents, in the batch's order: `[photos, 3, size, size]` float32 in [-1, 1] on the CPU; none
    /// where all have latents.
    pub fn pixels(&self) -> Result<Option<Tensor>> {
        (!self.pixels.is_empty()).then(|| to_tensor(&self.pixels, self.size)).transpose()
    }
}

/// The batches of every epoch: `max(instances, classes)` places, where place `i` shows instance photo `i mod n` and class
/// photo `i mod m` of all that an epoch shows, where a photo stands as often as it has repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchOrder {
    epochs: EpochOrder,
    instances: Arc<[usize]>,
    classes: Arc<[usize]>,
}

impl BatchOrder {
    fn new(
        instances: Vec<usize>,
        classes: Vec<usize>,
        train_batch_size: usize,
        seed: i64,
        shuffle: bool,
    ) -> Result<Self> {
        let epochs = EpochOrder::new(instances.len().max(classes.len()), train_batch_size, seed, shuffle)?;
        Ok(Self { epochs, instances: instances.into(), classes: classes.into() })
    }

    /// [`EpochOrder::dealt`].
    pub fn dealt(self, rank: usize, ranks: usize) -> Self {
        Self { epochs: self.epochs.dealt(rank, ranks), ..self }
    }

    /// The number of places in an epoch.
    pub fn places(&self) -> usize {
        self.epochs.places()
    }

    /// The number of batches, and so of micro-steps, in an epoch; the last can be short.
    pub fn batches_per_epoch(&self) -> usize {
        self.epochs.batches_per_epoch()
    }

    /// The epoch and the batch in it of a micro-step that is counted over the whole run.
    pub fn position(&self, micro_step: usize) -> (usize, usize) {
        self.epochs.position(micro_step)
    }

    /// Batch `index` of `epoch`, both from 0; empty beyond the epoch's end.
    pub fn batch(&self, epoch: usize, index: usize) -> Batch {
        let places = self.epochs.batch(epoch, index);
        let mut photos: Vec<usize> = places.iter().map(|place| self.instances[place % self.instances.len()]).collect();
        if !self.classes.is_empty() {
            photos.extend(places.iter().map(|place| self.classes[place % self.classes.len()]));
        }
        Batch { photos, instance_count: places.len() }
    }

    /// The batch of a micro-step that is counted over the whole run.
    pub fn micro_batch(&self, micro_step: usize) -> Batch {
        let (epoch, index) = self.position(micro_step);
        self.batch(epoch, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_photos_come_before_class_photos_in_a_batch() {
        let order = BatchOrder::new(vec![0, 1], vec![2, 3, 4, 5, 6], 2, 5, false).unwrap();
        assert_eq!(order.batches_per_epoch(), 3);
        assert_eq!(order.batch(0, 0), Batch { photos: vec![0, 1, 2, 3], instance_count: 2 });
        assert_eq!(order.batch(0, 1), Batch { photos: vec![0, 1, 4, 5], instance_count: 2 });
        assert_eq!(order.batch(0, 2), Batch { photos: vec![0, 6], instance_count: 1 });
        assert_eq!(order.micro_batch(4), order.batch(1, 1));
    }
    #[test]
    fn a_photo_stands_in_an_epoch_as_often_as_its_folder_says() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["3_sks dog/a.png", "3_sks dog/b.png", "c.png"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(16, 16).save(path).unwrap();
        }
        let open = || PhotoFolder::open(folder.path(), 16).unwrap();
        let alone = DreamBoothDataset::new(open(), "sks", None, true).unwrap();
        assert_eq!(shown(alone.photos()), [0, 1, 2, 0, 1, 0, 1]);
        assert_eq!(alone.folders(), [(folder.path().join("3_sks dog"), 2, 3)]);
        let order = alone.order(3, 0, false).unwrap();
        assert_eq!((order.places(), order.batch(0, 1).photos), (7, vec![0, 1, 0]));
        let shuffled = alone.order(7, 4, true).unwrap().batch(2, 0).photos;
        assert_eq!([0, 1, 2].map(|photo| shuffled.iter().filter(|&&other| other == photo).count()), [3, 3, 1]);

        let with_class = DreamBoothDataset::new(open(), "sks", Some((open(), "dog")), true).unwrap();
        assert_eq!(with_class.order(7, 0, false).unwrap().batch(0, 0).photos[7..], [3, 4, 5, 3, 4, 3, 4]);
        let renamed = folder.path().join("2_sks dog");
        std::fs::rename(folder.path().join("3_sks dog"), &renamed).unwrap();
        let other = DreamBoothDataset::new(open(), "sks", None, true).unwrap();
        assert_ne!(alone.fingerprint(), other.fingerprint());
    }
}
