//! Examples of one batch as tensors, filled up to the longest of them.

use crate::error::Result;
use tch::{Kind, Tensor};

/// The label that a loss passes over.
pub const IGNORED: i64 = -100;

/// Texts that are trained on together. Shapes: b examples, t tokens of the longest text, u of the longest label.
#[derive(Debug)]
pub struct LanguageBatch {
    /// int64 `[b, t]`.
    pub input_ids: Tensor,
    /// int64 `[b, t]`: 1 at tokens, 0 where a short text is filled up.
    pub attention_mask: Tensor,
    /// int64: for causal-lm `[b, t]`, the ids themselves, not shifted; for seq2seq-lm `[b, u]`, what the decoder writes; for
    /// seq-cls `[b]`, classes. [`IGNORED`] where there is nothing to learn.
    pub labels: Tensor,
}

impl LanguageBatch {
    /// What a decoder reads to write the labels, `[b, u]`: `start`, then each label but the last; `pad` for ignored ones.
    pub fn decoder_input_ids(&self, start: i64, pad: i64) -> Result<Tensor> {
        let (rows, length) = self.labels.size2()?;
        let first = Tensor::f_full([rows, 1], start, (Kind::Int64, self.labels.device()))?;
        let shifted = Tensor::f_cat(&[first, self.labels.f_narrow(1, 0, length - 1)?], 1)?;
        Ok(shifted.f_masked_fill(&shifted.f_eq(IGNORED)?, pad)?)
    }
}

/// Rows of numbers, filled up with `filling` to the longest: int64 `[rows, longest]`.
pub(super) fn filled<'a>(
    rows: impl Iterator<Item = &'a [i64]> + Clone,
    filling: i64,
    on_the_left: bool,
) -> Result<Tensor> {
    let longest = rows.clone().map(<[i64]>::len).max().unwrap_or(0);
    let (mut values, mut count) = (Vec::new(), 0);
    for row in rows {
        let gap = std::iter::repeat_n(filling, longest - row.len());
        match on_the_left {
            true => values.extend(gap.chain(row.iter().copied())),
            false => values.extend(row.iter().copied().chain(gap)),
        }
        count += 1;
    }
    Ok(Tensor::f_from_slice(&values)?.f_view([count, longest as i64])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_reads_the_labels_shifted() {
        let rows: [&[i64]; 2] = [&[5, 6, 1], &[7, 1]];
        let labels = filled(rows.into_iter(), IGNORED, false).unwrap();
        let (input_ids, attention_mask) = (labels.shallow_clone(), labels.shallow_clone());
        let batch = LanguageBatch { input_ids, attention_mask, labels };
        let read = batch.decoder_input_ids(9, 0).unwrap();
        assert_eq!(Vec::<Vec<i64>>::try_from(read).unwrap(), [[9, 5, 6], [9, 7, 1]]);
        let left = filled(rows.into_iter(), 0, true).unwrap();
        assert_eq!(Vec::<Vec<i64>>::try_from(left).unwrap(), [[5, 6, 1], [0, 7, 1]]);
    }
}
