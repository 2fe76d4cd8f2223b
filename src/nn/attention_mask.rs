//! Which keys each query sees.
//!
//! Shapes: b batch (or 1 for all), h heads (or 1), q queries, k keys.

use tch::{Device, Kind, Tensor};

/// Which keys each query sees.
pub enum AttentionMask {
    /// All of them.
    Full,
    /// Those at its own place and before; there are as many queries as keys.
    Causal,
    /// `[b, h, q, k]`: true where it is seen, or what is added to the scores.
    Tensor(Tensor),
    /// What is added to the scores, where some queries may see nothing and their outputs count.
    Whole(Tensor),
}

/// A mask for queries that see what is before them.
#[derive(Debug, Clone, Copy)]
pub struct CausalMask {
    /// Number of queries.
    pub queries: i64,
    /// Number of keys before the first query's own.
    pub past: i64,
    /// A query sees this many keys, its own included (a sliding window); none: all before it.
    pub window: Option<i64>,
    /// The device of the model.
    pub device: Device,
}

impl CausalMask {
    /// The mask; `padding` `[b, past + q]` is 1 at keys that are tokens and 0 at others. Without it libtorch's kernels
    /// need no tensor for the usual cases.
    pub fn mask(&self, padding: Option<&Tensor>) -> AttentionMask {
        let keys = self.past + self.queries;
        let window = self.window.filter(|&window| window < keys);
        if padding.is_none() && window.is_none() {
            match (self.queries, self.past) {
                (1, _) => return AttentionMask::Full,
                (_, 0) => return AttentionMask::Causal,
                _ => {}
            }
        }
        let key = Tensor::arange(keys, (Kind::Int64, self.device));
        let query = key.narrow(0, self.past, self.queries).unsqueeze(1); // [q, 1]
        let mut seen = key.le_tensor(&query); // [q, k]
        if let Some(window) = window {
            seen = seen.logical_and(&key.gt_tensor(&(query - window)));
        }
        if let Some(padding) = padding {
            seen = seen.logical_and(&is_token(padding)); // [b, 1, q, k]
        }
        AttentionMask::Tensor(seen)
    }
}

/// `[q, q]`, true where a key stands behind a query
fn causally_hidden(queries: i64, device: Device) -> Tensor {
    Tensor::ones([queries, queries], (Kind::Bool, device)).triu(1)
}

/// `[b, k] -> [b, 1, 1, k]`, true at tokens
fn is_token(padding: &Tensor) -> Tensor {
    padding.ne(0).unsqueeze(1).unsqueeze(1)
}

impl AttentionMask {
    /// All queries see all tokens; `padding` is `[b, k]`.
    pub fn of_tokens(padding: Option<&Tensor>) -> Self {
        padding.map_or(Self::Full, |padding| Self::Tensor(is_token(padding)))
    }

    /// What is added to `scores` `[b, h, q, k]`; none: nothing.
    pub(super) fn added(&self, scores: &Tensor) -> Option<Tensor> {
        let hidden = match self {
            Self::Full => return None,
            Self::Causal => causally_hidden(scores.size()[2], scores.device()),
            Self::Tensor(seen) if seen.kind() == Kind::Bool => seen.logical_not(),
            Self::Tensor(added) | Self::Whole(added) => return Some(added.shallow_clone()),
        };
        let nothing = Tensor::zeros(hidden.size(), (scores.kind(), scores.device()));
        Some(nothing.masked_fill(&hidden, lowest(scores.kind())))
    }

    /// The same, whose tensor is one of booleans, with `bias` `[b, h, q or 1, k]` added to the scores of `queries` queries.
    pub fn with_bias(&self, bias: &Tensor, queries: i64) -> Self {
        let hidden = match self {
            Self::Full => return Self::Tensor(bias.shallow_clone()),
            Self::Causal => causally_hidden(queries, bias.device()),
            Self::Tensor(seen) => seen.logical_not(),
            Self::Whole(added) => return Self::Whole(added + bias),
        };
        // A finite number: where a padded query sees nothing at all, a softmax of -∞ would be no number.
        Self::Tensor(bias.masked_fill(&hidden, lowest(bias.kind())))
    }
}

impl Clone for AttentionMask {
    fn clone(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Causal => Self::Causal,
            Self::Tensor(tensor) => Self::Tensor(tensor.shallow_clone()),
            Self::Whole(tensor) => Self::Whole(tensor.shallow_clone()),
        }
    }
}

/// The least number of a dtype.
fn lowest(kind: Kind) -> f64 {
    match kind {
        Kind::Half => -65504.0,
        Kind::BFloat16 => -(2.0 - 2f64.powi(-7)) * 2f64.powi(127),
        _ => f64::from(f32::MIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mask: &AttentionMask) -> Vec<String> {
        let AttentionMask::Tensor(seen) = mask else { panic!("no tensor") };
        let width = *seen.size().last().unwrap();
        let flat = Vec::<i64>::try_from(seen.to_kind(Kind::Int64).reshape([-1])).unwrap();
        flat.chunks(width as usize)
            .map(|row| row.iter().map(|&seen| if seen == 1 { 'x' } else { '.' }).collect())
            .collect()
    }

    fn causal(queries: i64, past: i64, window: Option<i64>) -> CausalMask {
        CausalMask { queries, past, window, device: Device::Cpu }
    }

    #[test]
    fn usual_cases_need_no_tensor() {
        assert!(matches!(causal(3, 0, None).mask(None), AttentionMask::Causal));
        assert!(matches!(causal(1, 5, Some(6)).mask(None), AttentionMask::Full));
    }

    #[test]
    fn queries_see_the_past_and_a_window_ends() {
        assert_eq!(rows(&causal(2, 2, None).mask(None)), ["xxx.", "xxxx"]);
        assert_eq!(rows(&causal(4, 0, Some(2)).mask(None)), ["x...", "xx..", ".xx.", "..xx"]);
        assert_eq!(rows(&causal(1, 3, Some(2)).mask(None)), ["..xx"]);
    }

    #[test]
    fn padding_is_seen_by_nobody() {
        let padding = Tensor::from_slice2(&[[0i64, 1, 1], [1, 1, 0]]);
        assert_eq!(rows(&causal(3, 0, None).mask(Some(&padding))), ["...", ".x.", ".xx", "x..", "xx.", "xx."]);
    }

    #[test]
    fn a_bias_is_added_where_a_key_is_seen() {
        let bias = Tensor::from_slice(&[1f32, 2.0]).view([1, 1, 1, 2]);
        let AttentionMask::Tensor(mask) = AttentionMask::Causal.with_bias(&bias, 2) else { panic!("no tensor") };
        assert_eq!(Vec::<f32>::try_from(mask.reshape([-1])).unwrap(), [1.0, f32::MIN, 1.0, 2.0]);
    }
}
