//! From a decoded photo to what the VAE sees: torchvision's `Resize(size, BILINEAR)`, `CenterCrop(size)` or
//! `RandomCrop(size)`, `ToTensor` and `Normalize(0.5, 0.5)`, on a Pillow image.

use super::photo_decoding::MAX_PIXELS;
use super::pillow_resize::resize;
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use image::RgbImage;
use tch::Tensor;

/// Where a square crop starts in a resized photo, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// The first row.
    pub top: u32,
    /// The first column.
    pub left: u32,
}

/// Where crops of one size can start in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropRange {
    /// The last possible first row: the image's height less the crop's.
    pub last_top: u32,
    /// The last possible first column: the image's width less the crop's.
    pub last_left: u32,
}

impl CropRange {
    /// The crop that torchvision's `CenterCrop` takes: halves are rounded to even.
    pub fn center(self) -> Crop {
        let half = |last: u32| (f64::from(last) / 2.0).round_ties_even() as u32;
        Crop { top: half(self.last_top), left: half(self.last_left) }
    }

    /// The only crop there is, where the image is as large as the crop.
    pub fn only(self) -> Option<Crop> {
        (self.last_top == 0 && self.last_left == 0).then_some(Crop { top: 0, left: 0 })
    }

    /// Draws a crop as torchvision's `RandomCrop`: the row, then the column, and nothing where there is only one crop.
    pub fn draw(self, generator: &mut Generator) -> Crop {
        self.only().unwrap_or_else(|| {
            let mut below = |last: u32| generator.randint(0, i64::from(last) + 1, &[1]).int64_value(&[0]) as u32;
            let top = below(self.last_top);
            Crop { top, left: below(self.last_left) }
        })
    }
}

/// Where crops of `size` x `size` can start in an image of `width` x `height`.
pub fn crop_range(width: u32, height: u32, size: u32) -> CropRange {
    CropRange { last_top: height.saturating_sub(size), last_left: width.saturating_sub(size) }
}

/// `(width, height)` after torchvision's `Resize(size)`: the shorter side is `size`, the other truncated.
pub fn resized_dimensions(width: u32, height: u32, size: u32) -> (u32, u32) {
    let longer = |long: u32, short: u32| {
        let length = u64::from(size) * u64::from(long) / u64::from(short.max(1));
        u32::try_from(length).unwrap_or(u32::MAX)
    };
    match width <= height {
        true => (size, longer(height, width)),
        false => (longer(width, height), size),
    }
}

/// Resamples so that the shorter side is `size`, with Pillow's antialiased bilinear filter.
///
/// An image so long and thin that the result would have more than [`MAX_PIXELS`] is refused.
pub fn resize_shorter_side(image: RgbImage, size: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let (to_width, to_height) = resized_dimensions(width, height, size);
    if (to_width, to_height) == (width, height) {
        return Ok(image);
    }
    if u64::from(to_width) * u64::from(to_height) > MAX_PIXELS {
        return Err(Error::invalid(format!("an image of {width} x {height} pixels is too long and thin to train on")));
    }
    resize(&image, to_width, to_height).ok_or_else(|| Error::invalid("an image has no pixels"))
}

/// Cuts `size` x `size` pixels out: float32 in [-1, 1], planes first: `[3, size, size]` in row-major order.
///
/// A crop that leaves the image is an error.
pub fn crop_values(image: &RgbImage, crop: Crop, size: u32) -> Result<Vec<f32>> {
    let range = crop_range(image.width(), image.height(), size);
    if crop.top > range.last_top || crop.left > range.last_left || image.width().min(image.height()) < size {
        return Err(Error::invalid(format!("the crop {crop:?} of {size} pixels leaves the image")));
    }
    let (size, width) = (size as usize, image.width() as usize);
    // In float32, in the order of ToTensor and Normalize.
    let value = |sample: u8| (f32::from(sample) / 255.0 - 0.5) / 0.5;
    let samples = image.as_raw();
    let mut values = Vec::with_capacity(3 * size * size);
    for channel in 0..3 {
        for row in 0..size {
            let start = 3 * ((crop.top as usize + row) * width + crop.left as usize);
            let line = &samples[start..start + 3 * size];
            values.extend(line.iter().skip(channel).step_by(3).map(|&sample| value(sample)));
        }
    }
    Ok(values)
}

/// Values of [`crop_values`], any number of images one after the other: `[images, 3, size, size]` on the CPU.
pub fn to_tensor(values: &[f32], size: u32) -> Result<Tensor> {
    let size = i64::from(size);
    Ok(Tensor::f_from_slice(values)?.f_view([-1, 3, size, size])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_truncated() {
        assert_eq!(resized_dimensions(100, 299, 64), (64, 191));
        assert_eq!(resized_dimensions(299, 100, 64), (191, 64));
        assert_eq!(resized_dimensions(31, 31, 64), (64, 64));
    }

    #[test]
    fn the_centre_is_rounded_to_even() {
        let tops = [0, 1, 2, 3, 4, 5].map(|last| CropRange { last_top: last, last_left: 0 }.center().top);
        assert_eq!(tops, [0, 0, 1, 2, 2, 2]);
    }

    #[test]
    fn nothing_is_drawn_where_there_is_one_crop() {
        let mut generator = Generator::new(3);
        crop_range(64, 64, 64).draw(&mut generator);
        assert_eq!(generator.randint(0, 1000, &[4]), Generator::new(3).randint(0, 1000, &[4]));
    }

    #[test]
    fn a_row_is_drawn_before_a_column_even_where_only_one_varies() {
        let crop = crop_range(164, 64, 64).draw(&mut Generator::new(3));
        let mut generator = Generator::new(3);
        let top = generator.randint(0, 1, &[1]).int64_value(&[0]) as u32;
        let left = generator.randint(0, 101, &[1]).int64_value(&[0]) as u32;
        assert_eq!(crop, Crop { top, left });
    }

    #[test]
    fn values_are_planes_in_minus_one_to_one() {
        let image = RgbImage::from_fn(3, 2, |x, y| image::Rgb([(x * 100) as u8, (y * 255) as u8, 255]));
        let values = crop_values(&image, Crop { top: 0, left: 1 }, 2).unwrap();
        let low = (100.0f32 / 255.0 - 0.5) / 0.5;
        let high = (200.0f32 / 255.0 - 0.5) / 0.5;
        assert_eq!(values, [low, high, low, high, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(to_tensor(&values, 2).unwrap().size(), [1, 3, 2, 2]);
        assert!(crop_values(&image, Crop { top: 1, left: 0 }, 2).is_err());
    }
}
