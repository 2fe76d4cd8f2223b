//! A frozen weight that is not kept where the model computes: it is brought there for each use and dropped after it, in forward and
//! in backward, so that neither the model nor the graph holds a copy.

use super::base_weight::{BaseWeight, Op};
use super::block_stream::{block_of, BlockStream, Place};
use super::packed_file::{PackedFile, Part};
use super::Form;
use crate::error::Result;
use crate::libtorch::failure::or_panic;
use crate::libtorch::shared_memory::SharedWeights;
use crate::libtorch::upload::upload;
use crate::weights::{Placement, WeightSet};
use std::path::Path;
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

    /// A part of a weight of `form` in this layout as it waits, densely row by row.
    fn arriving(self, part: &Tensor, form: &Form) -> Tensor {
        match self {
            Self::Transposed if form.has_a_layout() => part.tr(),
            Self::ChannelsLast if form.has_a_layout() => part.permute([0, 2, 3, 1]),
            _ => part.shallow_clone(),
        }
    }

    /// The same back in this layout.
    fn arrived(self, part: Tensor, form: &Form) -> Tensor {
        match self {
            Self::Transposed if form.has_a_layout() => part.tr(),
            Self::ChannelsLast if form.has_a_layout() => part.permute([0, 3, 1, 2]),
            _ => part,
        }
    }
}

/// `weight` for the CPU, which is in `layout`, as it lies in the memory that processes share.
pub fn on_shared_host(weight: &BaseWeight, layout: Layout, shared: &mut SharedWeights) -> Result<BaseWeight> {
    let (form, parts) = weight.parts();
    let held = parts.iter().map(|part| Ok(layout.arrived(shared.hold(&layout.arriving(part, &form))?, &form)));
    Ok(form.weight(held.collect::<Result<_>>()?, weight.kind()))
}

/// From where weights are brought to what computes with them.
#[derive(Clone)]
pub enum Sources {
    /// For a device: from pinned memory.
    Pinned(Arc<BlockStream>),
    /// For the CPU: from the model's files, and what is quantised from one of their own.
    Files(Arc<PackedFile>),
}

impl Sources {
    /// Those for `device`, of weights that are loaded from `origin`.
    pub fn of(device: Device, origin: &Path) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Files(Arc::new(PackedFile::new()?)),
            device => Self::Pinned(Arc::new(BlockStream::to(device, origin))),
        })
    }
}

/// Where a weight waits.
enum Waiting {
    /// In its file, for the CPU: mapped, and converted where the file's dtype is another.
    InFile(Arc<WeightSet>),
    /// Quantised in a file of our own, mapped, for the CPU.
    Packed(Arc<PackedFile>, Vec<Part>),
    /// In pinned memory, for a device that copies from there while it computes.
    Pinned(Arc<BlockStream>, Vec<Place>),
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
    form: Form,
    waiting: Waiting,
}

/// A weight that is brought for each use.
#[derive(Clone)]
pub struct StreamedWeight(Arc<Streamed>);

impl StreamedWeight {
    /// The weight `key` of `weights`, as it is, from `sources`. For the CPU nothing of it is read yet.
    pub fn dense(
        weights: &Arc<WeightSet>,
        key: &str,
        shape: &[i64],
        layout: Layout,
        placement: Placement,
        sources: &Sources,
    ) -> Result<Self> {
        if let Sources::Pinned(stream) = sources {
            let on_host = weights.load(key, shape, Placement { device: Device::Cpu, ..placement })?;
            let weight = BaseWeight::Dense(layout.of(on_host));
            let pinned = Self::pinned(weight, key, shape, layout, placement, stream);
            weights.let_go(key);
            return pinned;
        }
        weights.check(key, shape)?;
        Ok(Self::new(key, shape, layout, placement, Form::Dense, Waiting::InFile(weights.clone())))
    }

    /// The weight `key` of `weights` in the 4 bits that its file has it in, from `sources`; none where it is not.
    pub fn four_bit(
        weights: &Arc<WeightSet>,
        key: &str,
        shape: &[i64],
        placement: Placement,
        sources: &Sources,
    ) -> Result<Option<Self>> {
        let on_host = Placement { device: Device::Cpu, ..placement };
        let Some(weight) = weights.four_bit(key, shape, on_host)? else { return Ok(None) };
        let shape = weight.shape();
        let made = match sources {
            Sources::Pinned(stream) => Self::pinned(weight, key, &shape, Layout::AsStored, placement, stream)?,
            Sources::Files(_) => {
                let (form, _) = weight.parts();
                Self::new(key, &shape, Layout::AsStored, placement, form, Waiting::InFile(weights.clone()))
            }
        };
        weights.let_go(key);
        Ok(Some(made))
    }

    /// `weight` of the file's `shape`, in its layout on the CPU, from `sources`.
    pub fn quantised(
        weight: BaseWeight,
        key: &str,
        shape: &[i64],
        layout: Layout,
        placement: Placement,
        sources: &Sources,
    ) -> Result<Self> {
        match sources {
            Sources::Pinned(stream) => Self::pinned(weight, key, shape, layout, placement, stream),
            Sources::Files(file) => {
                let (form, parts) = weight.parts();
                let parts = parts.iter().map(|part| file.add(&layout.arriving(part, &form))).collect::<Result<_>>()?;
                Ok(Self::new(key, shape, layout, placement, form, Waiting::Packed(file.clone(), parts)))
            }
        }
    }

    fn pinned(
        weight: BaseWeight,
        key: &str,
        shape: &[i64],
        layout: Layout,
        placement: Placement,
        stream: &Arc<BlockStream>,
    ) -> Result<Self> {
        let (form, parts) = weight.parts();
        // As it is to lie there, so that nothing is left to do each time.
        let places =
            parts.iter().map(|part| stream.add(block_of(key), &layout.arriving(part, &form))).collect::<Result<_>>()?;
        Ok(Self::new(key, shape, layout, placement, form, Waiting::Pinned(stream.clone(), places)))
    }

    /// The table of embeddings `key` of `weights`, which waits in its file for any device.
    pub fn table(weights: &WeightSet, key: &str, shape: &[i64], placement: Placement) -> Result<Self> {
        let in_file = Placement { device: Device::Cpu, kind: weights.kind(key)? };
        let table = Waiting::Table(Mutex::new(weights.load(key, shape, in_file)?));
        Ok(Self::new(key, shape, Layout::AsStored, placement, Form::Dense, table))
    }

    fn new(key: &str, shape: &[i64], layout: Layout, placement: Placement, form: Form, waiting: Waiting) -> Self {
        Self(Arc::new(Streamed {
            key: key.to_owned(),
            stored_shape: shape.to_owned(),
            layout,
            placement,
            form,
            waiting,
        }))
    }

    /// What `compute` makes of the weight, brought for it in its layout.
    /// Like every tensor operation it panics where libtorch fails; the step's boundary catches that.
    pub fn with<T>(&self, compute: impl FnOnce(&BaseWeight) -> T) -> T {
        let Streamed { key, stored_shape, layout, placement, form, waiting } = &*self.0;
        let _no_grad = tch::no_grad_guard();
        let arrived = |parts: Vec<Tensor>| {
            form.weight(parts.into_iter().map(|part| layout.arrived(part, form)).collect(), placement.kind)
        };
        let weight = match waiting {
            Waiting::InFile(weights) => or_panic(match form {
                Form::Dense => {
                    weights.load(key, stored_shape, *placement).map(|stored| BaseWeight::Dense(layout.of(stored)))
                }
                _ => weights.packed(key, *placement),
            }),
            Waiting::Packed(file, parts) => arrived(or_panic(file.get(parts))),
            Waiting::Pinned(stream, places) => {
                arrived(or_panic(places.iter().map(|place| stream.get(*place)).collect::<Result<_>>()))
            }
            Waiting::Table(table) => BaseWeight::Dense(placement.of(&unlocked(table))),
        };
        let made = compute(&weight);
        match waiting {
            Waiting::InFile(weights) => weights.let_go(key),
            Waiting::Packed(file, parts) => file.let_go(parts),
            Waiting::Pinned(..) | Waiting::Table(_) => {}
        }
        made
    }

    /// The rows `ids` of a table, which alone are brought; none where it is no table.
    pub fn rows(&self, ids: &Tensor) -> Option<Tensor> {
        let Waiting::Table(table) = &self.0.waiting else { return None };
        let Placement { device, kind } = self.0.placement;
        let rows = Op::Embedding.run(&ids.to_device(Device::Cpu), &unlocked(table), None);
        Some(upload(&rows.to_kind(kind), device))
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
    use crate::weights::{Quantize, Storage, Stride};
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
        let files = Sources::of(Device::Cpu, Path::new("")).unwrap();
        let in_file = computed(|op, key, shape, layout, xs, bias| {
            let streamed = StreamedWeight::dense(&weights, key, shape, layout, placement, &files).unwrap();
            BaseWeight::Streamed(streamed).run(op, xs, bias)
        });
        for (actual, expected) in in_file.iter().zip(&expected) {
            // libtorch's own gradient of a convolution is rounded in another order.
            let error = (actual - expected).abs().max() / expected.abs().max();
            assert!(error.double_value(&[]) < 1e-5, "{error:?}");
        }

        // All blocks go through two rooms, forth and back: a weight that the graph kept would be another's by then.
        let stream = Sources::Pinned(Arc::new(BlockStream::to(Device::Cpu, Path::new(""))));
        let all: std::collections::BTreeMap<String, BaseWeight> = weights
            .keys()
            .map(|key| {
                let shape = weights.shape(key).unwrap();
                let layout = match key.rsplit('.').nth(1) {
                    Some("a") => Layout::Transposed,
                    Some("b") => Layout::AsStored,
                    _ => Layout::ChannelsLast,
                };
                let pinned = StreamedWeight::dense(&weights, key, &shape, layout, placement, &stream);
                (key.to_owned(), BaseWeight::Streamed(pinned.unwrap()))
            })
            .collect();
        let streamed = computed(|op, key, _, _, xs, bias| all[key].run(op, xs, bias));
        assert_eq!(streamed, in_file);
    }

    #[test]
    fn quantised_weights_compute_the_same_bits_wherever_they_wait() {
        let folder = tempfile::tempdir().unwrap();
        let weights = file(folder.path());
        let placement = Placement { device: Device::Cpu, kind: Kind::Float };
        for quantize in [Quantize::Int8, Quantize::Nf4, Quantize::Fp8] {
            let quantised = |op: Op, key: &str, shape: &[i64], layout: Layout| {
                let weight = layout.of(weights.load(key, shape, placement).unwrap());
                let storage = if quantize.takes(op) { quantize.into() } else { Storage::default() };
                storage.quantised(weight, Kind::Float).unwrap()
            };
            let stays =
                computed(|op, key, shape, layout, xs, bias| quantised(op, key, shape, layout).run(op, xs, bias));
            let sources = [
                Sources::of(Device::Cpu, Path::new("")).unwrap(),
                Sources::Pinned(Arc::new(BlockStream::to(Device::Cpu, Path::new("")))),
            ];
            let comes = sources.map(|sources| {
                let all = std::cell::RefCell::new(std::collections::BTreeMap::new());
                // All of them are there before the first is used.
                let _ = computed(|op, key, shape, layout, xs, bias| {
                    let weight = quantised(op, key, shape, layout);
                    let streamed = StreamedWeight::quantised(weight, key, shape, layout, placement, &sources).unwrap();
                    all.borrow_mut().insert(key.to_owned(), BaseWeight::Streamed(streamed));
                    quantised(op, key, shape, layout).run(op, xs, bias)
                });
                computed(|op, key, _, _, xs, bias| all.borrow()[key].run(op, xs, bias))
            });
            assert_eq!(comes[0], comes[1], "{quantize:?}");
            for (actual, expected) in comes[0].iter().zip(&stays) {
                // As above, where convolutions are not quantised.
                let error = (actual - expected).abs().max() / expected.abs().max();
                assert!(error.double_value(&[]) < 1e-5, "{quantize:?}: {error:?}");
            }
        }
    }
}
