//! How like a training's pictures are to its photos, by colour and shape: the loss alone misleads.

use super::schema::{integer, number, object, or_null, text};
use crate::data::photo_decoding::decode;
use crate::data::photo_files::PhotoFiles;
use crate::sample::likeness::PhotoLikeness;
use image::{imageops, RgbImage};
use serde_json::{json, Value};
use std::path::Path;

/// Photos that pictures are compared with.
const MOST: usize = 100;
/// They are kept so small that neither side is longer, in pixels: no more is compared.
const SIDE: u32 = 128;

/// The photos of a training.
pub struct Subject(Vec<RgbImage>);

impl Subject {
    /// Those in `folder`; what is no photo is left out.
    pub fn of(folder: &Path) -> Self {
        let files = PhotoFiles::list(folder, &[]).map(|listed| listed.files).unwrap_or_default();
        Self(files.iter().take(MOST).filter_map(|file| decode(&file.path).ok()).map(|image| small(&image)).collect())
    }

    /// How like the picture at `path` is to them ([`PhotoLikeness`]), with a sentence that says so; null where it or they do not show
    /// one object on a plain background, of which alone colour and shape say something.
    pub fn measure(&self, path: &Path) -> Value {
        let Some(likeness) = decode(path).ok().and_then(|image| PhotoLikeness::of(&image, &self.0)) else {
            return Value::Null;
        };
        let mut shown = json!(likeness);
        let among = match (likeness.photos_colour_distance, likeness.photos_shape_overlap) {
            (Some(colour), Some(shape)) => {
                format!("; the photos among themselves: {colour:.0} and {:.0} %", shape * 100.0)
            }
            _ => String::new(),
        };
        shown["sentence"] = json!(format!(
            "by colour and shape alone: {:.0} off the nearest photo's colours (0 is the same, 100 as black to white), {:.0} % of its \
             outline{among}",
            likeness.colour_distance,
            likeness.shape_overlap * 100.0
        ));
        shown
    }
}

/// What is measured of a picture.
pub fn schema() -> Value {
    object([
        ("colour_distance", number()),
        ("shape_overlap", number()),
        ("photos_colour_distance", or_null(number())),
        ("photos_shape_overlap", or_null(number())),
        ("photos", integer()),
        ("sentence", text()),
    ])
}

fn small(image: &RgbImage) -> RgbImage {
    let scale = (f64::from(SIDE) / f64::from(image.width().max(image.height()))).min(1.0);
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    imageops::thumbnail(image, side(image.width()), side(image.height()))
}
