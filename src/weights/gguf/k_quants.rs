//! Super-blocks of 256 values: each is 8 blocks of 32, or 16 of 16, whose own scales are small integers under a scale for all.
//! Layouts: `ggml-common.h` of <https://github.com/ggml-org/ggml>; the sums are in the order of the `gguf` package's, to the bit.

use super::encoding::half;

/// Values of a super-block.
pub(super) const SUPER_BLOCK: usize = 256;

/// 2 bits a value: `(scale * s) q - minimum * m`, s and m 4 bits for each 16. Bytes: s and m, q, scale, minimum.
pub(super) fn q2(block: &[u8], values: &mut Vec<f32>) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half(block, 80), half(block, 82));
    for (part, &small) in scales.iter().enumerate() {
        let (scale, minimum) = (scale * f32::from(small & 0xF), minimum * f32::from(small >> 4));
        values.extend(two_bits(quants, part).map(|q| scale * f32::from(q) - minimum));
    }
}

/// 3 bits a value, the highest apart: `(scale * s) q`, s 6 bits for each 16. Bytes: high bits, low bits, s, scale.
pub(super) fn q3(block: &[u8], values: &mut Vec<f32>) {
    let (high, low, small) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    for part in 0..16 {
        // Four bits of s lie in the first 8 bytes, two in the last 4.
        let s = ((small[part % 8] >> (part / 8 * 4)) & 0xF) | (((small[8 + part % 4] >> (part / 4 * 2)) & 3) << 4);
        let scale = scale * (f32::from(s) - 32.0);
        let high = high[part % 2 * 16..].iter().map(move |byte| (byte >> (part / 2)) & 1);
        // Where the high bit is missing, 4 is taken away.
        let quants = two_bits(low, part).zip(high).map(|(low, high)| f32::from(low | (high << 2)) - 4.0);
        values.extend(quants.map(|q| scale * q));
    }
}

/// 4 bits a value: `(scale * s) q - minimum * m`, s and m 6 bits for each 32. Bytes: scale, minimum, s and m, q.
pub(super) fn q4(block: &[u8], values: &mut Vec<f32>) {
    for (part, (scale, minimum)) in scales_and_minimums(block).enumerate() {
        values.extend(four_bits(&block[16..], part).map(|q| scale * f32::from(q) - minimum));
    }
}

/// [`q4`] with a fifth bit apart. Bytes: scale, minimum, s and m, high bits, low bits.
pub(super) fn q5(block: &[u8], values: &mut Vec<f32>) {
    for (part, (scale, minimum)) in scales_and_minimums(block).enumerate() {
        let high = block[16..48].iter().map(move |byte| (byte >> part) & 1);
        let quants = four_bits(&block[48..], part).zip(high).map(|(low, high)| low | (high << 4));
        values.extend(quants.map(|q| scale * f32::from(q) - minimum));
    }
}

/// 6 bits a value, two of them apart: `(scale * s) (q - 32)`, s 8 bits for each 16. Bytes: low bits, high bits, s, scale.
pub(super) fn q6(block: &[u8], values: &mut Vec<f32>) {
    let (low, high, small) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    for (part, &s) in small.iter().enumerate() {
        let (side, row, column) = (part / 8, part % 8 / 2, part % 2 * 16);
        let low = low[side * 64 + row % 2 * 32 + column..].iter().map(move |byte| (byte >> (row / 2 * 4)) & 0xF);
        let high = high[side * 32 + column..].iter().map(move |byte| (byte >> (row * 2)) & 3);
        let scale = scale * f32::from(s as i8);
        let quants = low.zip(high).take(16).map(|(low, high)| f32::from(low | (high << 4)) - 32.0);
        values.extend(quants.map(|q| scale * q));
    }
}

/// The 16 values of a `part` of 64 bytes: each 32 bytes hold four times 32 values, the first in the lowest bits.
fn two_bits(bytes: &[u8], part: usize) -> impl Iterator<Item = u8> + '_ {
    let shift = part % 8 / 2 * 2;
    bytes[part / 8 * 32 + part % 2 * 16..][..16].iter().map(move |byte| (byte >> shift) & 3)
}

/// The 32 values of a `part` of 128 bytes: the low halves of 32 bytes are one, the high ones the next.
fn four_bits(bytes: &[u8], part: usize) -> impl Iterator<Item = u8> + '_ {
    let shift = part % 2 * 4;
    bytes[part / 2 * 32..][..32].iter().map(move |byte| (byte >> shift) & 0xF)
}

/// `scale * s` and `minimum * m` of each 32 values: 6 bits each in 12 bytes, of the last four pairs two bits in the first eight.
fn scales_and_minimums(block: &[u8]) -> impl Iterator<Item = (f32, f32)> + '_ {
    let (scale, minimum, small) = (half(block, 0), half(block, 2), &block[4..16]);
    (0..8).map(move |part| {
        let (s, m) = match part {
            0..4 => (small[part] & 63, small[part + 4] & 63),
            _ => {
                let both = small[part + 4];
                ((both & 0xF) | (small[part - 4] >> 6 << 4), (both >> 4) | (small[part] >> 6 << 4))
            }
        };
        (scale * f32::from(s), minimum * f32::from(m))
    })
}
