//! From an image file to 8-bit RGB, as Pillow's `ImageOps.exif_transpose` and `convert("RGB")` give it, with alpha
//! composited over white.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use image::{DynamicImage, GenericImageView, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage};
use std::io::{BufReader, Cursor};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

/// An image with more pixels is refused as a decompression bomb; Pillow's own limit.
pub const MAX_PIXELS: u64 = 178_956_970;
/// What a decoder may allocate: [`MAX_PIXELS`] of 16-bit RGBA, and a copy of it.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 16;

/// Decodes an image file: the EXIF orientation applied, alpha over white, 16-bit samples by their high byte.
///
/// The header is checked against [`MAX_PIXELS`] before a pixel is decoded. A file that is no image or is cut short is
/// an [`Error::File`] that says so.
pub fn decode(path: &Path) -> Result<RgbImage> {
    let bytes = regular_file::read(path, FileKind::PHOTO)?;
    if bytes.is_empty() {
        return Err(Error::file(path, "is empty"));
    }
    // The decoders are fed with whatever lies in a user's folder: one that panics costs that photo, not the run.
    catch_unwind(AssertUnwindSafe(|| decode_bytes(&bytes)))
        .unwrap_or_else(|_| Err("is damaged".to_owned()))
        .map_err(|message| Error::file(path, message))
}

/// Whether the first bytes of `path` are those of an image format that [`decode`] reads.
pub fn looks_like_an_image(path: &Path) -> bool {
    let Ok(file) = regular_file::open(path, FileKind::PHOTO) else { return false };
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format();
    reader.is_ok_and(|reader| reader.format().is_some_and(|format| format.reading_enabled()))
}

fn decode_bytes(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    let Some(format) = reader.format().filter(ImageFormat::reading_enabled) else {
        return Err("is not an image in a supported format (JPEG, PNG, WebP, BMP, GIF, TIFF)".to_owned());
    };
    // The JPEG decoder fills what is missing with grey.
    if format == ImageFormat::Jpeg && !jpeg_has_its_end(bytes) {
        return Err("is cut short".to_owned());
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let damaged = |error: image::ImageError| format!("is damaged: {error}");
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("claims {width} x {height} pixels, more than the {MAX_PIXELS} that are decoded"));
    }
    if width == 0 || height == 0 {
        return Err("has no pixels".to_owned());
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(over_white(image))
}

/// 8-bit RGB. 16-bit samples lose their low byte, as Pillow reads 16-bit colour PNG.
fn over_white(image: DynamicImage) -> RgbImage {
    let high = |sample: u16| (sample >> 8) as u8;
    match image {
        DynamicImage::ImageRgb8(image) => image,
        DynamicImage::ImageLuma16(image) => {
            RgbImage::from_fn(image.width(), image.height(), |x, y| Rgb([high(image.get_pixel(x, y).0[0]); 3]))
        }
        DynamicImage::ImageRgb16(image) => {
            RgbImage::from_fn(image.width(), image.height(), |x, y| Rgb(image.get_pixel(x, y).0.map(high)))
        }
        DynamicImage::ImageLumaA16(image) => RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let [value, alpha] = image.get_pixel(x, y).0.map(high);
            Rgb([blend(value, alpha); 3])
        }),
        DynamicImage::ImageRgba16(image) => RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let [red, green, blue, alpha] = image.get_pixel(x, y).0.map(high);
            Rgb([red, green, blue].map(|sample| blend(sample, alpha)))
        }),
        image if image.color().has_alpha() => RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let [red, green, blue, alpha] = image.get_pixel(x, y).0;
            Rgb([red, green, blue].map(|sample| blend(sample, alpha)))
        }),
        image => image.into_rgb8(),
    }
}

/// `sample` with `alpha` over white, rounded to the nearest.
fn blend(sample: u8, alpha: u8) -> u8 {
    let (sample, alpha) = (u32::from(sample), u32::from(alpha));
    ((sample * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Whether a JPEG's end-of-image marker follows its scans (a thumbnail in a segment has one of its own, and phones
/// append videos behind it).
fn jpeg_has_its_end(bytes: &[u8]) -> bool {
    const START_OF_IMAGE: u8 = 0xd8;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut at = 0;
    while at + 1 < bytes.len() {
        let marker = (bytes[at] == 0xff).then_some(bytes[at + 1]);
        match marker {
            Some(END_OF_IMAGE) => return true,
            // Entropy-coded bytes, a stuffed zero, a restart marker, a fill byte.
            None | Some(0xff) => at += 1,
            Some(0x00 | 0x01 | 0xd0..=0xd7 | START_OF_IMAGE) => at += 2,
            // A segment with its length, which counts itself.
            Some(_) => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2),
                None => return false,
            },
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_blends_from_white_to_the_sample() {
        assert_eq!(blend(10, 0), 255);
        assert_eq!(blend(10, 255), 10);
        assert_eq!(blend(0, 128), 127);
    }

    #[test]
    fn the_end_marker_of_a_thumbnail_does_not_end_the_photo() {
        let mut jpeg = vec![0xff, 0xd8, 0xff, 0xe1, 0x00, 0x06, 0xff, 0xd8, 0xff, 0xd9];
        jpeg.extend([0xff, 0xda, 0x00, 0x02, 0x12, 0xff, 0x00, 0xff, 0xd3, 0x34]);
        assert!(!jpeg_has_its_end(&jpeg));
        jpeg.extend([0xff, 0xd9, 0x00, 0x00]);
        assert!(jpeg_has_its_end(&jpeg));
    }
}
