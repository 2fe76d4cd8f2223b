//! Keys and values that attention has computed before, so that a text grows token by token without computing it again,
//! or that were trained in the place of a text (prefix tuning, arXiv 2101.00190).
//!
//! Shapes: b batch, h heads of keys and values, k keys, d width of a head.

use tch::{no_grad, Tensor};

/// The keys and values of one attention.
#[derive(Default)]
pub struct LayerCache {
    held: Option<Held>,
}

/// Buffers `[b, h, room, d]`, of which the first `length` keys are there.
struct Held {
    keys: Tensor,
    values: Tensor,
    length: i64,
}

impl LayerCache {
    /// One that starts with `keys` and `values` `[b, h, k, d]`.
    pub fn of(keys: Tensor, values: Tensor) -> Self {
        let length = keys.size()[2];
        Self { held: Some(Held { keys, values, length }) }
    }

    /// Number of keys.
    pub fn length(&self) -> i64 {
        self.held.as_ref().map_or(0, |held| held.length)
    }

    /// All keys and values after these `[b, h, k, d]` were added.
    pub fn extend(&mut self, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
        let Some(held) = &mut self.held else {
            self.held =
                Some(Held { length: keys.size()[2], keys: keys.shallow_clone(), values: values.shallow_clone() });
            return (keys, values);
        };
        held.append(&keys, &values);
        held.current()
    }

    /// The keys and values that are here, or what `compute` gives, which is kept: those of an encoder's output don't
    /// change.
    pub fn once(&mut self, compute: impl FnOnce() -> (Tensor, Tensor)) -> (Tensor, Tensor) {
        match &self.held {
            Some(held) => held.current(),
            None => {
                let (keys, values) = compute();
                self.extend(keys, values)
            }
        }
    }

    fn select(&mut self, rows: &Tensor) {
        if let Some(held) = &mut self.held {
            let (keys, values) = held.current();
            *self = Self::of(keys.index_select(0, rows), values.index_select(0, rows));
        }
    }
}

impl Held {
    fn current(&self) -> (Tensor, Tensor) {
        (self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length))
    }

    fn append(&mut self, keys: &Tensor, values: &Tensor) {
        let more = keys.size()[2];
        let (old_keys, old_values) = self.current();
        let learns = [keys, values, &old_keys, &old_values].iter().any(|tensor| tensor.requires_grad());
        if learns {
            self.keys = Tensor::cat(&[&old_keys, keys], 2);
            self.values = Tensor::cat(&[&old_values, values], 2);
        } else {
            no_grad(|| {
                if self.length + more > self.keys.size()[2] {
                    self.keys = with_room(&old_keys, more);
                    self.values = with_room(&old_values, more);
                }
                self.keys.narrow(2, self.length, more).copy_(keys);
                self.values.narrow(2, self.length, more).copy_(values);
            });
        }
        self.length += more;
    }
}

/// `[b, h, k, d] -> [b, h, room, d]`: a copy that has room for `more` keys, and for as many as there are: keys are
/// copied but a few times while a text grows.
fn with_room(xs: &Tensor, more: i64) -> Tensor {
    let mut shape = xs.size();
    let length = shape[2];
    shape[2] = (2 * length).max(length + more);
    let room = Tensor::empty(&shape, (xs.kind(), xs.device()));
    room.narrow(2, 0, length).copy_(xs);
    room
}

/// The keys and values of one transformer block.
#[derive(Default)]
pub struct BlockCache {
    /// Of the text itself.
    pub text: LayerCache,
    /// Of an encoder's output, where the block attends to one.
    pub encoded: LayerCache,
}

impl BlockCache {
    /// All tensors, to pass through gradient checkpointing.
    pub fn tensors(&self) -> Vec<Tensor> {
        let held = [&self.text, &self.encoded].into_iter().filter_map(|layer| layer.held.as_ref());
        held.flat_map(|held| <[Tensor; 2]>::from(held.current())).collect()
    }

    /// Which of the two layers has [`BlockCache::tensors`].
    pub fn layout(&self) -> [bool; 2] {
        [self.text.held.is_some(), self.encoded.held.is_some()]
    }

    /// A cache of `layout` with these tensors.
    pub fn filled(layout: [bool; 2], tensors: &[Tensor]) -> Self {
        let mut pairs = tensors.chunks_exact(2);
        let mut layer = |is_there: bool| match is_there.then(|| pairs.next()).flatten() {
            Some(pair) => LayerCache::of(pair[0].shallow_clone(), pair[1].shallow_clone()),
            None => LayerCache::default(),
        };
        Self { text: layer(layout[0]), encoded: layer(layout[1]) }
    }
}

/// The keys and values of all blocks of a model.
#[derive(Default)]
pub struct KeyValueCache {
    blocks: Vec<BlockCache>,
}

impl KeyValueCache {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that starts with keys and values `[b, h, k, d]` for each block: a trained prefix.
    pub fn of(past: Vec<(Tensor, Tensor)>) -> Self {
        let block = |(keys, values)| BlockCache { text: LayerCache::of(keys, values), encoded: LayerCache::default() };
        Self { blocks: past.into_iter().map(block).collect() }
    }

    /// Number of tokens in it.
    pub fn length(&self) -> i64 {
        self.blocks.first().map_or(0, |block| block.text.length())
    }

    /// The cache of block number `index`.
    pub fn block(&mut self, index: usize) -> &mut BlockCache {
        if self.blocks.len() <= index {
            self.blocks.resize_with(index + 1, BlockCache::default);
        }
        &mut self.blocks[index]
    }

    /// Keeps the texts `rows` (int64 `[n]`) of the batch, in this order: the survivors of a beam search.
    pub fn select(&mut self, rows: &Tensor) {
        for block in &mut self.blocks {
            block.text.select(rows);
            block.encoded.select(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;

    #[test]
    fn keys_that_come_one_by_one_are_those_that_come_at_once() {
        let mut generator = Generator::new(1);
        let (keys, values) = (generator.randn(&[2, 3, 9, 4]), generator.randn(&[2, 3, 9, 4]));
        let mut cache = KeyValueCache::new();
        for (at, count) in [(0, 2), (2, 1), (3, 1), (4, 1), (5, 4)] {
            let layer = &mut cache.block(0).text;
            let (k, v) = layer.extend(keys.narrow(2, at, count), values.narrow(2, at, count));
            assert_eq!((k, v), (keys.narrow(2, 0, at + count), values.narrow(2, 0, at + count)));
        }
        cache.select(&Tensor::from_slice(&[1i64]));
        assert_eq!(cache.block(0).tensors()[0], keys.narrow(0, 1, 1));
    }

    #[test]
    fn a_prefix_learns_and_is_not_written_to() {
        let prefix = Generator::new(1).randn(&[1, 1, 2, 4]).set_requires_grad(true);
        let mut cache = KeyValueCache::of(vec![(prefix.shallow_clone(), prefix.shallow_clone())]);
        let (keys, _) = cache.block(0).text.extend(prefix.detach(), prefix.detach());
        keys.sum(tch::Kind::Float).backward();
        assert_eq!((prefix.grad(), cache.length()), (prefix.ones_like(), 4));
    }
}
