//! Pillow's antialiased bilinear `Image.resize` to the bit (documented in Pillow's "Concepts: Filters"): losses can only equal the
//! reference's where the pixels do. Two passes, rows then columns, each rounded to 8 bits, with weights in fixed point.

use image::RgbImage;

/// Fractional bits of a weight: an 8-bit sample and two bits of headroom fit above them in 32 bits.
const FRACTION_BITS: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (FRACTION_BITS - 1);
const CHANNELS: usize = 3;

/// The source samples that one output sample is made of.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// One window an output sample: a triangle as wide as the two samples beside it, in the coarser of the two grids.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let window = |index: usize| {
        let center = (index as f64 + 0.5) * scale;
        // Casts cut towards zero and stop at it, as the reference's bounds do.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let distance = |sample: usize| (sample as f64 - center + 0.5) * (1.0 / support);
        let raw: Vec<f64> = (first..end).map(|sample| (1.0 - distance(sample).abs()).max(0.0)).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |weight: &f64| (0.5 + weight / sum * f64::from(1 << FRACTION_BITS)) as i32;
        Window { first, weights: raw.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

/// The sample that a weighted sum, started at [`HALF`], stands for.
fn rounded(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

fn resize_rows(samples: &[u8], width: usize, to_width: usize) -> Vec<u8> {
    let windows = windows(width, to_width);
    let mut resized = Vec::with_capacity(samples.len() / width * to_width);
    for row in samples.chunks_exact(CHANNELS * width) {
        for window in &windows {
            let mut sums = [HALF; CHANNELS];
            for (pixel, weight) in row[CHANNELS * window.first..].chunks_exact(CHANNELS).zip(&window.weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * weight;
                }
            }
            resized.extend(sums.map(rounded));
        }
    }
    resized
}

fn resize_columns(samples: &[u8], row_length: usize, height: usize, to_height: usize) -> Vec<u8> {
    let mut resized = Vec::with_capacity(row_length * to_height);
    let mut sums = vec![HALF; row_length];
    for window in windows(height, to_height) {
        sums.fill(HALF);
        for (row, weight) in samples[row_length * window.first..].chunks_exact(row_length).zip(&window.weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        resized.extend(sums.iter().map(|&sum| rounded(sum)));
    }
    resized
}

/// The image at `to_width` x `to_height` pixels; `None` where one of the sizes is 0.
pub fn resize(image: &RgbImage, to_width: u32, to_height: u32) -> Option<RgbImage> {
    let (width, height) = image.dimensions();
    if [width, height, to_width, to_height].contains(&0) {
        return None;
    }
    let mut samples = std::borrow::Cow::Borrowed(image.as_raw().as_slice());
    if to_width != width {
        samples = resize_rows(&samples, width as usize, to_width as usize).into();
    }
    if to_height != height {
        samples = resize_columns(&samples, CHANNELS * to_width as usize, height as usize, to_height as usize).into();
    }
    RgbImage::from_raw(to_width, to_height, samples.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_image_stays_flat() {
        let image = RgbImage::from_pixel(37, 23, image::Rgb([0, 128, 255]));
        for (width, height) in [(8, 5), (100, 90), (37, 11), (1, 1)] {
            let resized = resize(&image, width, height).unwrap();
            assert_eq!(resized.dimensions(), (width, height));
            assert!(resized.pixels().all(|pixel| pixel.0 == [0, 128, 255]));
        }
    }

    #[test]
    fn halving_weighs_four_samples_as_a_triangle_does() {
        // Weights 1, 3, 3, 1 of 8 around the middle of samples 2 and 3.
        let image = RgbImage::from_fn(6, 1, |x, _| image::Rgb([[0, 80, 160, 40, 240, 0][x as usize]; 3]));
        assert_eq!(resize(&image, 3, 1).unwrap().get_pixel(1, 0).0, [115; 3]);
        assert!(resize(&image, 0, 1).is_none());
    }
}
