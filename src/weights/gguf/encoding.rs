//! How a tensor's numbers are kept: floats, or blocks of small integers with a scale.
//! Layouts: `ggml-common.h` of <https://github.com/ggml-org/ggml>.

use super::k_quants::{self, SUPER_BLOCK};
use half::{bf16, f16};
use tch::Kind;

/// Values of a quantised block.
const BLOCK: usize = 32;

/// An encoding that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    /// A scale, and 4 bits a value: `scale * (q - 8)`.
    Q4_0,
    /// A scale, a minimum, and 4 bits a value: `scale * q + minimum`.
    Q4_1,
    /// A scale, and 5 bits a value, the highest apart: `scale * (q - 16)`.
    Q5_0,
    /// A scale, a minimum, and 5 bits a value: `scale * q + minimum`.
    Q5_1,
    /// A scale, and 8 bits a value: `scale * q`.
    Q8_0,
    /// Super-blocks ([`k_quants`]) of 2 bits a value, and so on.
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// The encodings that are read, by their number in a file.
const READ: [(u32, Encoding); 13] = [
    (0, Encoding::F32),
    (1, Encoding::F16),
    (30, Encoding::Bf16),
    (2, Encoding::Q4_0),
    (3, Encoding::Q4_1),
    (6, Encoding::Q5_0),
    (7, Encoding::Q5_1),
    (8, Encoding::Q8_0),
    (10, Encoding::Q2K),
    (11, Encoding::Q3K),
    (12, Encoding::Q4K),
    (13, Encoding::Q5K),
    (14, Encoding::Q6K),
];

/// The others that there are.
const KNOWN: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl Encoding {
    /// The encoding of a file's number, or why it is not read.
    pub(super) fn of(number: u32) -> Result<Self, String> {
        if let Some((_, encoding)) = READ.iter().find(|(read, _)| *read == number) {
            return Ok(*encoding);
        }
        let known = KNOWN.iter().find(|(known, _)| *known == number);
        let name = known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned());
        let read = READ.map(|(_, encoding)| encoding.name()).join(", ");
        Err(format!("is encoded as {name}, which is not read; take a file of one of these: {read}"))
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Values of a block, and its bytes.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
            Self::Q5_0 => (BLOCK, 2 + 4 + BLOCK / 2),
            Self::Q5_1 => (BLOCK, 4 + 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q2K => (SUPER_BLOCK, 84),
            Self::Q3K => (SUPER_BLOCK, 110),
            Self::Q4K => (SUPER_BLOCK, 144),
            Self::Q5K => (SUPER_BLOCK, 176),
            Self::Q6K => (SUPER_BLOCK, 210),
        }
    }

    /// The dtype of a tensor of it.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::F16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
            _ => Kind::Float,
        }
    }

    /// Whether its numbers are floats as a tensor has them.
    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Appends the values of whole blocks to `values`.
    pub(super) fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        for block in bytes.chunks_exact(self.block().1) {
            match self {
                Self::F32 => values.extend(block.first_chunk().map(|bytes| f32::from_le_bytes(*bytes))),
                Self::F16 => values.push(half(block, 0)),
                Self::Bf16 => values.extend(block.first_chunk().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
                Self::Q4_0 => {
                    let scale = half(block, 0);
                    values.extend(nibbles(&block[2..]).map(|q| scale * (f32::from(q) - 8.0)));
                }
                Self::Q4_1 => {
                    let (scale, minimum) = (half(block, 0), half(block, 2));
                    values.extend(nibbles(&block[4..]).map(|q| scale * f32::from(q) + minimum));
                }
                Self::Q5_0 => {
                    let scale = half(block, 0);
                    values.extend(five_bits(&block[2..]).map(|q| scale * (f32::from(q) - 16.0)));
                }
                Self::Q5_1 => {
                    let (scale, minimum) = (half(block, 0), half(block, 2));
                    values.extend(five_bits(&block[4..]).map(|q| scale * f32::from(q) + minimum));
                }
                Self::Q2K => k_quants::q2(block, values),
                Self::Q3K => k_quants::q3(block, values),
                Self::Q4K => k_quants::q4(block, values),
                Self::Q5K => k_quants::q5(block, values),
                Self::Q6K => k_quants::q6(block, values),
                Self::Q8_0 => {
                    let scale = half(block, 0);
                    values.extend(block[2..].iter().map(|&q| scale * f32::from(q as i8)));
                }
            }
        }
    }
}

/// The float16 at a byte of a block.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of all bytes are a block's first values, the high ones its last.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|byte| byte & 0xF).chain(bytes.iter().map(|byte| byte >> 4))
}

/// Four bytes with the highest bits, in the order of the values, then [`nibbles`].
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let high = (0..BLOCK).map(|i| (bytes[i / 8] >> (i % 8)) & 1);
    nibbles(&bytes[4..]).zip(high).map(|(low, high)| low | (high << 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
        let mut values = Vec::new();
        encoding.decode(bytes, &mut values);
        values
    }

    #[test]
    fn low_halves_come_before_high_ones() {
        let mut block = vec![0x00, 0x38]; // 0.5
        block.extend((0..16).map(|i| i | ((15 - i) << 4)));
        let expected: Vec<f32> = (0..16).chain((0..16).rev()).map(|q| (q as f32 - 8.0) / 2.0).collect();
        assert_eq!(decoded(Encoding::Q4_0, &block), expected);
        block.splice(2..2, [0x00, 0xC0]); // -2
        let expected: Vec<f32> = expected.iter().map(|value| value + 4.0 - 2.0).collect();
        assert_eq!(decoded(Encoding::Q4_1, &block), expected);
    }

    #[test]
    fn an_encoding_that_is_not_read_is_named_with_those_that_are() {
        let message = Encoding::of(20).unwrap_err();
        assert!(message.contains("IQ4_NL") && message.contains("F32, F16, BF16, Q4_0, Q4_1, Q5_0"), "{message}");
        assert!(Encoding::of(4).unwrap_err().contains("number 4"));
        assert_eq!(Encoding::of(8), Ok(Encoding::Q8_0));
    }
}
