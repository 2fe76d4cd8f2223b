//! What a demo found, for people and machines.

use super::contact_sheet::{self, Block};
use super::gallery::{Gallery, CLASS_PROMPT, SEEDS};
use super::Folder;
use crate::error::{Error, Result};
use crate::sample::likeness::{Distances, Likeness};
use crate::train::{loss_curve, metrics};
use crate::whole_file::write_png;
use image::RgbImage;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Photos of the subject, named by their numbers.
const PHOTOS: usize = 6;
/// Width and height of the loss curve on the sheet.
const CURVE: (u32, u32) = (720, 320);

/// What the demo measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The training as a command.
    pub command: String,
    /// Seed of all draws.
    pub seed: i64,
    /// Seconds of the whole demo.
    pub seconds: f64,
    /// Seconds of the training, class images included.
    pub training_seconds: f64,
    /// Highest memory of the process.
    pub peak_memory_bytes: u64,
    /// Images of prompts that name the subject, before the training.
    pub subject_before: Likeness,
    /// The same after.
    pub subject_after: Likeness,
    /// The photos themselves, through the autoencoder, each against the others: the ceiling.
    pub subject_photos: Likeness,
    /// Images of the class prompt, before the training: the floor.
    pub class_before: Likeness,
    /// The same after: what the training took from the class.
    pub class_after: Likeness,
    /// Share of images with the background that the prompt asks for, before.
    pub background_right_before: f64,
    /// The same after.
    pub background_right_after: f64,
    /// Each image.
    pub images: Vec<ImageReport>,
}

/// What was measured of one image.
#[derive(Debug, Clone, Serialize)]
pub struct ImageReport {
    /// Before or after the training.
    pub when: &'static str,
    /// What it was drawn from.
    pub prompt: String,
    /// And from which noise.
    pub seed: i64,
    /// Its background's name.
    pub background: &'static str,
    /// From the subject and from the class.
    #[serde(flatten)]
    pub distances: Distances,
}

impl Report {
    /// What a person reads: what was measured, before, after, and its best value.
    pub fn summary(&self) -> Vec<[String; 4]> {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let (before, after, photos) = (&self.subject_before, &self.subject_after, &self.subject_photos);
        let row = |name: &str, [before, after, best]: [String; 3]| [name.to_owned(), before, after, best];
        let of_the_class = |set: &Likeness| percent(1.0 - set.nearer_to_subject);
        let of_each = |value: &dyn Fn(&Likeness) -> String| [before, after, photos].map(value);
        vec![
            row("nearer to the subject than to the class", of_each(&|set| percent(set.nearer_to_subject))),
            row(
                "colour distance to the subject",
                of_each(&|set| format!("{:.1}", set.mean.colour_distance_to_subject)),
            ),
            row("shape shared with the subject", of_each(&|set| percent(set.mean.shape_overlap_with_subject))),
            row(
                "background as the prompt says",
                [self.background_right_before, self.background_right_after, 1.0].map(percent),
            ),
            row(
                "class images still of the class",
                [of_the_class(&self.class_before), of_the_class(&self.class_after), percent(1.0)],
            ),
        ]
    }
}

/// Draws the sheet: photos, images before and after, the loss, what was measured.
pub(super) fn write_sheet(
    path: &Path,
    folder: &Folder,
    gallery: &Gallery,
    (before, after): (&[RgbImage], &[RgbImage]),
    report: &Report,
) -> Result<()> {
    let open = |path: PathBuf| image::open(&path).map_err(|error| Error::file(&path, error.to_string()));
    let photos = (1..=PHOTOS)
        .map(|number| Ok(open(folder.photos().join(format!("{number}.png")))?.to_rgb8()))
        .collect::<Result<Vec<_>>>()?;
    let curve = loss_curve::picture(&metrics::read(&folder.adapter().join("metrics.jsonl"))?, &[], CURVE)?;
    let per_prompt = SEEDS as usize;
    let prompts = gallery.subject(&gallery.prompts).chunks(per_prompt).map(|group| group[0].as_str()).collect();
    let title = format!("DreamBooth: “sks bird” from {PHOTOS} photos in {:.0} seconds", report.training_seconds);
    let class = format!("The class, “{CLASS_PROMPT}”, from the same noise, before and after");
    let header = ["", "before", "after", "at best"].map(str::to_owned);
    let table = std::iter::once(header).chain(report.summary()).collect();
    let blocks = [
        Block::Title(&title),
        Block::Heading("The subject, which the model had never seen"),
        Block::Row("photos", &photos, 2),
        Block::Heading(
            "The same prompts from the same noise, before and after; no photo has a red, pink or black background",
        ),
        Block::GroupNames(prompts, SEEDS as u32),
        Block::Row("before", gallery.subject(before), 1),
        Block::Row("after", gallery.subject(after), 1),
        Block::Heading(&class),
        Block::Row("before", gallery.class(before), 1),
        Block::Row("after", gallery.class(after), 1),
        Block::Heading("The training, and what was measured by colour and shape"),
        Block::PictureAndTable(curve.unwrap_or_default(), table),
    ];
    let sheet = contact_sheet::draw(&blocks, gallery.subject(before).len() as u32)?;
    write_png(path, &sheet)
}
