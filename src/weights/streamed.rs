//! A frozen weight that is not kept where the model computes: it is brought there for each use and dropped after it, in forward and
//! in backward, so that neither the model nor the graph holds a copy.

use super::base_weight::Op;
use super::block_stream::{block_of, BlockStream, Place};
use super::weight_set::{Placement, WeightSet};
use crate::error::Result;
use crate::libtorch::autograd_node;
use crate::libtorch::failure::or_panic;
use crate::libtorch::upload::upload;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch::{Device, Tensor};

/// How a weight lies in memory, from how its file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The same.
    AsStored,
    /// Rows are columns: GPT-2's Conv1D.
    Transposed,
    /// A copy with channels last, which oneDNN and cuDNN convolve without reordering.
    ChannelsLast,
}

impl Layout {
    /// `stored` in this layout.
    pub fn of(self, stored: Tensor) -> Tensor {
        match self {
            Self::AsStored => stored,
            Self::Transposed => stored.tr(),
            Self::ChannelsLast => stored.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
        }
    }
}

/// Where a weight waits.
enum Waiting {
    /// In its file, for the CPU: mapped, and converted where the file's dtype is another.
    InFile(Arc<WeightSet>),
    /// In pinned memory, for a device that copies from there while it computes.
    Pinned(Arc<BlockStream>, Place),
    /// A table of embeddings on the host, in the dtype of its file and mapped where it can be: its rows are brought. Behind a lock,
    /// as tensors are for one thread at a time.
    Table(Mutex<Tensor>),
}

struct Streamed {
    key: String,
    /// As the file has it.
    stored_shape: Vec<i64>,
    layout: Layout,
    placement: Placement,
    waiting: Waiting,
}

/// A weight that is brought for each use.
#[derive(Clone)]
pub struct StreamedWeight(Arc<Streamed>);

impl StreamedWeight {
    /// The weight `key` of `weights` for the CPU, where it comes from its file. Nothing of it is read yet.
    pub fn in_file(
        weights: &Arc<WeightSet>,
        key: &str,
        shape: &[i64],
        layout: Layout,
        placement: Placement,
    ) -> Result<Self> {
        weights.check(key, shape)?;
        Ok(Self::new(key, shape, layout, placement, Waiting::InFile(weights.clone())))
    }

    /// The weight `key` of `weights` in pinned memory, from where `stream` takes it.
    pub fn pinned(
        weights: &WeightSet,
        key: &str,
        shape: &[i64],
        layout: Layout,
        placement: Placement,
        stream: &Arc<BlockStream>,
    ) -> Result<Self> {
        let on_host = weights.load(key, shape, Placement { device: Device::Cpu, ..placement })?;
        // As it is to lie there, so that nothing is left to do each time.
        let arriving = match layout {
            Layout::ChannelsLast => on_host.permute([0, 2, 3, 1]).contiguous(),
            Layout::AsStored | Layout::Transposed => on_host,
        };
        let place = stream.add(block_of(key), &arriving)?;
        weights.let_go(key);
        Ok(Self::new(key, shape, layout, placement, Waiting::Pinned(stream.clone(), place)))
    }

    /// The table of embeddings `key` of `weights`, which waits in its file for any device.
    pub fn table(weights: &WeightSet, key: &str, shape: &[i64], placement: Placement) -> Result<Self> {
        let in_file = Placement { device: Device::Cpu, kind: weights.kind(key)? };
        let table = weights.load(key, shape, in_file)?;
        Ok(Self::new(key, shape, Layout::AsStored, placement, Waiting::Table(Mutex::new(table))))
    }

    fn new(key: &str, shape: &[i64], layout: Layout, placement: Placement, waiting: Waiting) -> Self {
        Self(Arc::new(Streamed { key: key.to_owned(), stored_shape: shape.to_owned(), layout, placement, waiting }))
    }

    /// What `compute` makes of the weight, brought for it in its layout.
    /// Like every tensor operation it panics where libtorch fails; the step's boundary catches that.
    pub fn with<T>(&self, compute: impl FnOnce(&Tensor) -> T) -> T {
        let streamed = &*self.0;
        let stored = match &streamed.waiting {
            Waiting::InFile(weights) => weights.load(&streamed.key, &streamed.stored_shape, streamed.placement),
            Waiting::Pinned(stream, place) => stream.get(*place),
            Waiting::Table(table) => Ok(streamed.placement.of(&unlocked(table))),
        };
        let arrived = or_panic(stored);
        let weight = tch::no_grad(|| match (&streamed.waiting, streamed.layout) {
            (Waiting::Pinned(..), Layout::ChannelsLast) => arrived.permute([0, 3, 1, 2]),
            (_, layout) => layout.of(arrived),
        });
        let made = compute(&weight);
        if let Waiting::InFile(weights) = &streamed.waiting {
            weights.let_go(&streamed.key);
        }
        made
    }

    /// `op` applied to `xs`. Backward brings the weight again; of a table only the rows `xs` are brought.
    pub fn run(&self, op: Op, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        if let Waiting::Table(table) = &self.0.waiting {
            let Placement { device, kind } = self.0.placement;
            let rows = op.run(&xs.to_device(Device::Cpu), &unlocked(table), None);
            return upload(&rows.to_kind(kind), device);
        }
        // No view, which could not be added to in place where gradients flow.
        let ys = tch::no_grad(|| self.with(|weight| op.run(xs, &weight.to_kind(xs.kind()), bias))).detach();
        let (weight, shape) = (self.clone(), xs.size());
        let wanted = [xs.requires_grad(), bias.is_some_and(|bias| bias.requires_grad())];
        let backward = move |grads: &[Option<Tensor>], _: &[Tensor]| {
            let _no_grad = tch::no_grad_guard();
            let Some(grad) = &grads[0] else { return Ok(vec![None, None]) };
            let to_input = |weight: &Tensor| op.input_gradient(grad, &weight.to_kind(grad.kind()), &shape);
            let to_input = wanted[0].then(|| weight.with(to_input));
            Ok(vec![to_input, wanted[1].then(|| op.bias_gradient(grad))])
        };
        let inputs: Vec<&Tensor> = std::iter::once(xs).chain(bias).collect();
        or_panic(autograd_node::attach(&inputs, &[], &[&ys], Box::new(backward)));
        ys
    }

    /// Shape of the weight in its layout.
    pub fn shape(&self) -> Vec<i64> {
        let mut shape = self.0.stored_shape.clone();
        if self.0.layout == Layout::Transposed {
            shape.reverse();
        }
        shape
    }

    /// Where it computes, and in which dtype.
    pub fn placement(&self) -> Placement {
        self.0.placement
    }
}

fn unlocked(table: &Mutex<Tensor>) -> MutexGuard<'_, Tensor> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;
    use crate::weights::Stride;
    use tch::Kind;

    const BLOCKS: usize = 5;

    /// A file of projections and convolutions in float16, mapped.
    fn file(folder: &std::path::Path) -> Arc<WeightSet> {
        let mut generator = Generator::new(1);
        let mut tensors = Vec::new();
        for i in 0..BLOCKS {
            tensors.push((format!("layers.{i}.a.weight"), (generator.randn(&[8, 8]) * 0.3).to_kind(Kind::Half)));
            tensors.push((format!("layers.{i}.b.weight"), (generator.randn(&[8, 8]) * 0.3).to_kind(Kind::Half)));
            tensors.push((format!("layers.{i}.c.weight"), (generator.randn(&[8, 8, 3, 3]) * 0.3).to_kind(Kind::Half)));
        }
        let path = folder.join("model.safetensors");
        Tensor::write_safetensors(&tensors, &path).unwrap();
        Arc::new(WeightSet::open_file(&path).unwrap())
    }

    /// The output of all blocks and the gradients of the input and the bias.
    fn computed(run: impl Fn(Op, &str, &[i64], Layout, &Tensor, Option<&Tensor>) -> Tensor) -> [Tensor; 3] {
        let mut generator = Generator::new(2);
        let input = generator.randn(&[2, 8, 4, 4]).set_requires_grad(true);
        let bias = generator.randn(&[8]).set_requires_grad(true);
        let convolution = Op::Conv2d(Stride { stride: 1, padding: 1 });
        let mut xs = input.shallow_clone();
        for i in 0..BLOCKS {
            let key = |name: &str| format!("layers.{i}.{name}.weight");
            let rows = xs.permute([0, 2, 3, 1]).reshape([-1, 8]);
            let rows = run(Op::Linear, &key("a"), &[8, 8], Layout::Transposed, &rows, Some(&bias)).gelu("none");
            let rows = run(Op::Linear, &key("b"), &[8, 8], Layout::AsStored, &rows, None);
            let image = rows.view([2, 4, 4, 8]).permute([0, 3, 1, 2]);
            xs = run(convolution, &key("c"), &[8, 8, 3, 3], Layout::ChannelsLast, &image, Some(&bias));
            xs += 1.0;
        }
        (&xs * &xs).mean(Kind::Float).backward();
        [xs.detach(), input.grad(), bias.grad()]
    }

    #[test]
    fn outputs_and_gradients_are_those_of_weights_that_stay() {
        let folder = tempfile::tempdir().unwrap();
        let weights = file(folder.path());
        let placement = Placement { device: Device::Cpu, kind: Kind::Float };
        let expected = computed(|op, key, shape, layout, xs, bias| {
            op.run(xs, &layout.of(weights.load(key, shape, placement).unwrap()), bias)
        });
        let in_file = computed(|op, key, shape, layout, xs, bias| {
            StreamedWeight::in_file(&weights, key, shape, layout, placement).unwrap().run(op, xs, bias)
        });
        for (actual, expected) in in_file.iter().zip(&expected) {
            // libtorch's own gradient of a convolution is rounded in another order.
            let error = (actual - expected).abs().max() / expected.abs().max();
            assert!(error.double_value(&[]) < 1e-5, "{error:?}");
        }

        // All blocks go through two rooms, forth and back: a weight that the graph kept would be another's by then.
        let stream = Arc::new(BlockStream::to(Device::Cpu));
        let all: std::collections::BTreeMap<String, StreamedWeight> = weights
            .keys()
            .map(|key| {
                let shape = weights.shape(key).unwrap();
                let layout = match key.rsplit('.').nth(1) {
                    Some("a") => Layout::Transposed,
                    Some("b") => Layout::AsStored,
                    _ => Layout::ChannelsLast,
                };
                let pinned = StreamedWeight::pinned(&weights, key, &shape, layout, placement, &stream);
                (key.to_owned(), pinned.unwrap())
            })
            .collect();
        let streamed = computed(|op, key, _, _, xs, bias| all[key].run(op, xs, bias));
        assert_eq!(streamed, in_file);
    }
}
