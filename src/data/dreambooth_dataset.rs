//! Instance and class photos as one numbered list, and the order in which a PyTorch DataLoader would visit them.
//!
//! Photos are numbered through: `0..n` are instance photos, `n..n + m` class photos, both by file name.

use super::epoch_order::EpochOrder;
use super::photo_transform::{crop_values, to_tensor, Crop};
use super::photos::{Photo, PhotoFolder};
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use sha2::{Digest, Sha256};
use tch::Tensor;

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
            return Err(Error::invalid("there is no instance photo"));
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

    /// How many photos there are, and a hash of their names, sizes and prompts: a resumed run must find the same.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for (index, photo) in self.photos.iter().enumerate() {
            let name = photo.path().file_name().unwrap_or_default().to_string_lossy();
            let bytes = std::fs::metadata(photo.path()).map_or(0, |about| about.len());
            digest.update(format!("{name}\0{bytes}\0{}\0", self.prompt(index)));
        }
        let hash: String = digest.finalize()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} instance and {} class photos ({hash})", self.instance_count, self.class_count())
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
        BatchOrder::new(self.instance_count, self.class_count(), train_batch_size, seed, shuffle)
    }
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
/// photo `i mod m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOrder {
    epochs: EpochOrder,
    instances: usize,
    classes: usize,
}

impl BatchOrder {
    fn new(instances: usize, classes: usize, train_batch_size: usize, seed: i64, shuffle: bool) -> Result<Self> {
        let epochs = EpochOrder::new(instances.max(classes), train_batch_size, seed, shuffle)?;
        Ok(Self { epochs, instances, classes })
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
        let mut photos: Vec<usize> = places.iter().map(|place| place % self.instances).collect();
        if self.classes > 0 {
            photos.extend(places.iter().map(|place| self.instances + place % self.classes));
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
        let order = BatchOrder::new(2, 5, 2, 5, false).unwrap();
        assert_eq!(order.batches_per_epoch(), 3);
        assert_eq!(order.batch(0, 0), Batch { photos: vec![0, 1, 2, 3], instance_count: 2 });
        assert_eq!(order.batch(0, 1), Batch { photos: vec![0, 1, 4, 5], instance_count: 2 });
        assert_eq!(order.batch(0, 2), Batch { photos: vec![0, 6], instance_count: 1 });
        assert_eq!(order.micro_batch(4), order.batch(1, 1));
    }
}
