//! The stack of transformer blocks that every language model has, with gradient checkpointing by block.

use crate::libtorch::checkpoint::checkpoint;
use crate::nn::{AttentionMask, BlockCache, KeyValueCache};
use std::rc::Rc;
use tch::Tensor;

/// What all blocks of a model share in one forward: masks, positions.
pub(super) trait Shared: Clone + 'static {
    /// The tensors that gradients may flow through.
    fn differentiable(&self) -> Vec<Tensor> {
        Vec::new()
    }

    /// The same with others in their place.
    fn with(&self, _tensors: &[Tensor]) -> Self {
        self.clone()
    }
}

impl Shared for AttentionMask {}

/// One block.
pub(super) trait Block: 'static {
    /// What it shares with the others.
    type Shared: Shared;

    /// `[b, t, d] -> [b, t, d]`
    fn forward(&self, xs: &Tensor, shared: &Self::Shared, cache: Option<&mut BlockCache>) -> Tensor;
}

/// All `blocks` one after another.
pub(super) fn run<B: Block>(
    blocks: &[Rc<B>],
    mut xs: Tensor,
    shared: &B::Shared,
    mut cache: Option<&mut KeyValueCache>,
    checkpointing: bool,
) -> Tensor {
    for (i, block) in blocks.iter().enumerate() {
        let cache = cache.as_deref_mut().map(|cache| cache.block(i));
        xs = match checkpointing {
            true => recomputed(block, &xs, shared, cache.as_deref()),
            false => block.forward(&xs, shared, cache),
        };
    }
    xs
}

/// One block whose activations are not kept. All that gradients flow through goes in as an input.
fn recomputed<B: Block>(block: &Rc<B>, xs: &Tensor, shared: &B::Shared, cache: Option<&BlockCache>) -> Tensor {
    let mut inputs = vec![xs.shallow_clone()];
    inputs.extend(shared.differentiable());
    let own = inputs.len();
    inputs.extend(cache.map(BlockCache::tensors).unwrap_or_default());
    let layout = cache.map(BlockCache::layout);
    let (block, shared) = (block.clone(), shared.clone());
    checkpoint(&inputs.iter().collect::<Vec<_>>(), move |inputs| {
        let mut cache = layout.map(|layout| BlockCache::filled(layout, &inputs[own..]));
        block.forward(&inputs[0], &shared.with(&inputs[1..own]), cache.as_mut())
    })
}
