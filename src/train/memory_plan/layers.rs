//! The layers of `nn` on shadows: what each allocates, keeps for backward and computes.

use super::tape::{Product, Record, Shadow, Storage, Tape, Work};
use crate::adapters::{Bias, LoraConfig, TargetRules};
use crate::error::Result;
use crate::weights::{self, block_of, Op, Quantize, Stride, DENSE_AT_ONCE};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Div;
use std::rc::Rc;
use tch::Device;

/// A network: what it is made of and where adapters are on it. Fills itself while it is walked.
#[derive(Default)]
pub(super) struct Network {
    lora: Option<LoraConfig>,
    /// How weights are kept.
    storage: weights::Storage,
    /// Key of a weight to its shape.
    weights: RefCell<BTreeMap<String, Vec<i64>>>,
    /// Keys of the weights that can be kept in few bits, and what they are for.
    inner: RefCell<BTreeMap<String, Op>>,
    /// Keys of the weights that can be streamed to their shapes, also of those that are counted elsewhere.
    streamed: RefCell<BTreeMap<String, Vec<i64>>>,
    /// Keys of tables of embeddings.
    tables: RefCell<BTreeSet<String>>,
    /// Keys of those that wait in their file for a GPU.
    waiting_tables: RefCell<BTreeSet<String>>,
    /// Path of a projection to the rank of its adapter and the number of trained elements.
    trained: RefCell<BTreeMap<String, (i64, i64)>>,
}

impl Network {
    pub(super) fn new(lora: Option<&LoraConfig>, storage: weights::Storage) -> Result<Rc<Self>> {
        lora.map(TargetRules::new).transpose()?;
        Ok(Rc::new(Self { lora: lora.cloned(), storage, ..Self::default() }))
    }

    pub(super) fn root(self: &Rc<Self>) -> At {
        At { network: self.clone(), path: String::new(), role: Role::Inner }
    }

    /// Bytes of the weights where they compute, in a dtype of `width` bytes: streamed the most that is there at a time, and nothing of
    /// tables, which wait in their file.
    pub(super) fn kept_bytes(&self, width: u64, storage: weights::Storage, device: Device) -> u64 {
        let (streamed, tables, waiting) = (self.streamed.borrow(), self.tables.borrow(), self.waiting_tables.borrow());
        let bytes = |(key, shape): (&String, &Vec<i64>)| match storage.streamed {
            _ if device.is_cuda() && waiting.contains(key) => 0,
            true if streamed.contains_key(key) || tables.contains(key) => 0,
            _ => self.bytes_of(key, shape, width, storage),
        };
        let resident: u64 = self.weights.borrow().iter().map(bytes).sum();
        match storage.streamed {
            true => resident + self.most_streamed(width, storage, device),
            false => resident,
        }
    }

    fn bytes_of(&self, key: &str, shape: &[i64], width: u64, storage: weights::Storage) -> u64 {
        let takes = |op: &Op| storage.quantize.takes(*op);
        let quantised = storage.quantize.bytes(shape).filter(|_| self.inner.borrow().get(key).is_some_and(takes));
        quantised.unwrap_or(shape.iter().product::<i64>() as u64 * width)
    }

    /// The most of streamed weights that is there at a time: two blocks on a device; on the CPU one weight, beside what its file has of
    /// it.
    fn most_streamed(&self, width: u64, storage: weights::Storage, device: Device) -> u64 {
        let streamed = self.streamed.borrow();
        let mut blocks: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, shape) in streamed.iter() {
            let name = if device == Device::Cpu { key } else { block_of(key) };
            *blocks.entry(name).or_default() += self.bytes_of(key, shape, width, storage);
        }
        2 * blocks.into_values().max().unwrap_or(0)
    }

    /// Numbers of the largest weight that is kept in few bits.
    pub(super) fn largest_quantised(&self) -> u64 {
        let (weights, quantize) = (self.weights.borrow(), self.storage.quantize);
        let elements = |(key, op): (&String, &Op)| match quantize.takes(*op) {
            true => weights[key].iter().product::<i64>() as u64,
            false => 0,
        };
        self.inner.borrow().iter().map(elements).max().unwrap_or(0)
    }

    /// Key to shape of every weight that a walk passed.
    pub(super) fn weights(&self) -> BTreeMap<String, Vec<i64>> {
        self.weights.borrow().clone()
    }

    #[cfg(test)]
    pub(super) fn elements(&self) -> u64 {
        self.weights.borrow().values().map(|shape| shape.iter().product::<i64>() as u64).sum()
    }

    /// Elements of adapters, and of the weights and biases that train whole beside them.
    pub(super) fn trained_elements(&self) -> u64 {
        let adapters: i64 = self.trained.borrow().values().map(|(_, elements)| *elements).sum();
        let weights = self.weights.borrow();
        let whole = weights.iter().filter(|(key, _)| self.trains_whole(key));
        let whole: i64 = whole.map(|(_, shape)| shape.iter().product::<i64>()).sum();
        (adapters + whole) as u64
    }

    /// Whether the tensor `key` trains whole (`bias`, `modules_to_save`).
    fn trains_whole(&self, key: &str) -> bool {
        let (Some(config), Some((path, name))) = (&self.lora, key.rsplit_once('.')) else { return false };
        let has_adapter = || self.trained.borrow().get(path).is_some_and(|(rank, _)| *rank > 0);
        config.saves_whole(path)
            || name == "bias"
                && match config.bias {
                    Bias::None => false,
                    Bias::All => true,
                    Bias::LoraOnly => has_adapter(),
                }
    }
}

/// A path in a network, as a loader's.
#[derive(Clone)]
pub(super) struct At {
    network: Rc<Network>,
    path: String,
    role: Role,
}

/// What a projection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inner,
    /// A classifier's head, which is never kept in few bits.
    Head,
    /// It makes a token's logits: that, and left out of `all-linear`.
    Output,
}

impl<S: std::fmt::Display> Div<S> for &At {
    type Output = At;

    fn div(self, name: S) -> At {
        let path = match self.path.is_empty() {
            true => name.to_string(),
            false => format!("{}.{name}", self.path),
        };
        At { network: self.network.clone(), path, role: self.role }
    }
}

impl At {
    /// The same place with another role.
    pub(super) fn with_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    pub(super) fn weight(&self, name: &str, shape: &[i64]) {
        self.network.weights.borrow_mut().insert(format!("{}.{name}", self.path), shape.to_vec());
    }

    /// The weight here is another layer's too, and counted there.
    pub(super) fn forget_weight(&self) {
        self.network.weights.borrow_mut().remove(&self.key());
    }

    /// The key of the weight here.
    fn key(&self) -> String {
        format!("{}.weight", self.path)
    }

    /// The weight of a projection here; in how many bits it is kept.
    fn projection_weight(&self, op: Op, shape: &[i64]) -> Quantize {
        self.weight("weight", shape);
        if self.role != Role::Head {
            self.network.streamed.borrow_mut().insert(self.key(), shape.to_vec());
        }
        if self.role == Role::Inner {
            self.network.inner.borrow_mut().insert(self.key(), op);
        }
        match self.network.storage.quantize {
            quantize if self.role == Role::Inner && quantize.takes(op) => quantize,
            _ => Quantize::None,
        }
    }

    /// A table of embeddings here.
    pub(super) fn table(&self, shape: [i64; 2]) {
        self.weight("weight", &shape);
        self.network.tables.borrow_mut().insert(self.key());
        self.rank(Op::Embedding, &shape);
    }

    /// A table here that waits in its file for a GPU.
    pub(super) fn waiting_table(&self, shape: [i64; 2]) {
        self.table(shape);
        self.network.waiting_tables.borrow_mut().insert(self.key());
    }

    /// The work of reading a weight of so many bytes. A streamed one is made from its file each time, one in few bits from its codes: read, written and read.
    fn read_weight(&self, bytes: u64, quantize: Quantize) -> Work {
        let is_made = match quantize {
            Quantize::None | Quantize::Int8 => self.network.storage.streamed,
            Quantize::Nf4 | Quantize::Fp8 => true,
        };
        let passes = if is_made { 3.0 } else { 1.0 };
        Work { bytes: passes * bytes as f64, ..Work::default() }
    }

    /// The rank of the adapter here, on a weight `[out, in, ..]`; 0 where there is none.
    fn rank(&self, op: Op, shape: &[i64]) -> i64 {
        let Some(config) = &self.network.lora else { return 0 };
        let mut trained = self.network.trained.borrow_mut();
        let (rank, _) = *trained.entry(self.path.clone()).or_insert_with(|| {
            let targeted = TargetRules::new(config).is_ok_and(|rules| {
                rules.contain(&self.path, op) && !(rules.are_all_linear() && self.role == Role::Output)
            });
            match targeted && !config.saves_whole(&self.path) {
                true => {
                    let rank = config.rank_of(&self.path);
                    let magnitude = if config.use_dora { shape[0] } else { 0 };
                    (rank, rank * (shape[0] + shape[1..].iter().product::<i64>()) + magnitude)
                }
                false => (0, 0),
            }
        });
        rank
    }

    /// Whether the tensor `name` here trains whole. To be asked behind [`At::rank`].
    fn trains(&self, name: &str) -> bool {
        self.network.trains_whole(&format!("{}.{name}", self.path))
    }

    fn dropout(&self) -> bool {
        self.network.lora.as_ref().is_some_and(|config| config.lora_dropout > 0.0)
    }

    fn dora(&self) -> bool {
        self.network.lora.as_ref().is_some_and(|config| config.use_dora)
    }
}

impl Tape {
    fn moved(&self, elements: i64, passes: f64) -> Work {
        Work::moving(elements as f64 * self.width() as f64 * passes)
    }

    /// Rows `[texts, length, width]` of the tokens' table `[rows, width]`, which is read under the path of `at`, with the adapter
    /// there. The table itself is counted elsewhere.
    pub(super) fn embedding(&self, at: &At, texts: i64, length: i64, table: [i64; 2]) -> Shadow {
        let rank = at.rank(Op::Embedding, &table);
        let ys = self.tensor(&[texts, length, table[1]]);
        if rank == 0 && !at.trains("weight") {
            return ys;
        }
        let hidden = self.tensor(&[texts, length, rank]);
        // Its gradient is as large as A, beside the one that is kept.
        let scratch = (rank * table[0]) as u64 * 4;
        let record = Record { saved: vec![hidden.storage()], scratch, trained: true, ..Record::default() };
        self.record_one(&[], ys, record)
    }

    /// `[.., in] -> [.., outputs]` with the adapter there.
    pub(super) fn linear(&self, at: &At, xs: &Shadow, outputs: i64, bias: bool) -> Shadow {
        let inputs = xs.shape.last().copied().unwrap_or(1);
        let shape = [outputs, inputs];
        let quantize = at.projection_weight(Op::Linear, &shape);
        if bias {
            at.weight("bias", &[outputs]);
        }
        let rows = xs.elements() / inputs.max(1);
        let mut out_shape = xs.shape.clone();
        out_shape.pop();
        out_shape.push(outputs);
        let product = |inputs: i64, outputs: i64| Work::of(Product::Matmul { rows, inputs, outputs });
        let whole = product(inputs, outputs).plus(at.read_weight(self.width() * (inputs * outputs) as u64, quantize));
        self.count(whole.clone());
        let rank = at.rank(Op::Linear, &shape);
        // A frozen weight needs nothing of the input.
        let mut record = Record { work: whole, ..Record::default() };
        let (forward, backward) = match quantize {
            Quantize::None => (0, 0),
            Quantize::Int8 => (self.int8_forward(rows, inputs, outputs), self.int8_backward(rows, inputs, outputs)),
            Quantize::Nf4 | Quantize::Fp8 => [(inputs * outputs) as u64 * self.width(); 2].into(),
        };
        let expanded = self.bytes(forward);
        record.scratch = backward;
        if at.trains("weight") {
            record.saved = vec![xs.storage(), self.cast_copy(inputs * outputs).storage()];
            record.work = record.work.times(2.0);
        }
        record.trained = at.trains("weight") || bias && at.trains("bias");
        let ys = self.record_one(&[xs], self.tensor(&out_shape), record);
        drop(expanded);
        if rank == 0 {
            return ys;
        }
        let down = product(inputs, rank);
        let up = product(rank, outputs);
        let input = self.adapter_input(at, xs);
        let a = self.cast_copy(rank * inputs);
        self.count(down.clone());
        let saved = vec![input.storage(), a.storage()];
        let record = Record { saved, work: down.times(2.0), trained: true, ..Record::default() };
        let hidden = self.record_one(&[&input], self.tensor(&[rows, rank]), record);
        let b = self.cast_copy(rank * outputs);
        self.count(up.clone());
        if at.dora() {
            let scaled = self.scaled(&hidden, &[rows, rank]);
            let saved = vec![scaled.storage(), b.storage()];
            drop(hidden);
            return self.dora(at, xs, &ys, &scaled, saved);
        }
        let saved = vec![hidden.storage(), b.storage()];
        // The product is added in place: the gradient of `ys` is handed on as it is.
        let low = self.record_one(
            &[&hidden],
            hidden.clone(),
            Record { saved, trained: true, work: up.times(2.0), ..Record::default() },
        );
        let shape = ys.shape.clone();
        self.record_one(&[&ys, &low], ys.view(&shape), Record { pass_on: true, ..Record::default() })
    }

    /// What a product in 8 bits takes for its time (`weights::int8`): the input's sizes, its codes' numbers and the codes; then the
    /// int32 product and its numbers.
    fn int8_forward(&self, rows: i64, inputs: i64, outputs: i64) -> u64 {
        let numbers = if self.width() < 4 { 4 } else { 0 };
        (rows * inputs) as u64 * (numbers + 9) + (rows * outputs) as u64 * 8
    }

    /// The same of the gradient of its input: the scaled gradient, a band of the dense weight, and the sum of bands.
    fn int8_backward(&self, rows: i64, inputs: i64, outputs: i64) -> u64 {
        let band = (inputs * outputs).min(DENSE_AT_ONCE) as u64;
        (rows * outputs) as u64 * (4 + self.width()) + band * self.width() + (rows * inputs) as u64 * 8
    }

    /// What A is applied to: the input, or a copy of it with zeros dropped in.
    fn adapter_input(&self, at: &At, xs: &Shadow) -> Shadow {
        match at.dropout() {
            false => xs.clone(),
            true => {
                let record = Record { saved: vec![self.dropout_mask(xs)], ..Record::default() };
                self.record_one(&[xs], self.tensor(&xs.shape), record)
            }
        }
    }

    /// What dropout keeps: a byte for each number.
    pub(super) fn dropout_mask(&self, xs: &Shadow) -> Rc<Storage> {
        self.bytes(xs.elements() as u64)
    }

    /// The copy of a float32 parameter in the compute dtype.
    fn cast_copy(&self, elements: i64) -> Shadow {
        self.tensor(&[if self.width() < 4 { elements } else { 0 }])
    }

    /// `ys + change` where the change is measured from the base projection, computed again.
    fn dora(&self, at: &At, xs: &Shadow, ys: &Shadow, scaled: &Shadow, saved: Vec<Rc<Storage>>) -> Shadow {
        let inputs = xs.shape.last().copied().unwrap_or(1);
        let outputs = ys.shape.last().copied().unwrap_or(1);
        let product = Work::of(Product::Matmul { rows: ys.elements() / outputs.max(1), inputs, outputs });
        self.count(product.clone());
        let base = self.record_one(&[xs], self.tensor(&ys.shape), Record { work: product, ..Record::default() });
        let whole = self.bytes(
            at.network.weights.borrow().get(&at.key()).map_or(0, |shape| 2 * 4 * shape.iter().product::<i64>() as u64),
        );
        drop(whole);
        let low =
            self.record_one(&[scaled], self.tensor(&ys.shape), Record { saved, trained: true, ..Record::default() });
        let kept = |xs: &Shadow| Record {
            saved: vec![xs.storage()],
            trained: true,
            scratch: outputs as u64 * 4,
            ..Record::default()
        };
        let left = self.record_one(&[&base], self.tensor(&ys.shape), kept(&base));
        let right = self.record_one(&[&low], self.tensor(&ys.shape), kept(&low));
        let change = self.add(&left, &right);
        let scaled_change = self.record_one(&[&change], self.tensor(&ys.shape), Record::default());
        self.add(ys, &scaled_change)
    }

    /// `[b, in, h, w] -> [b, outputs, h/stride, w/stride]` with a bias and the adapter there.
    pub(super) fn conv(&self, at: &At, xs: &Shadow, outputs: i64, kernel: i64, stride: i64) -> Shadow {
        let (inputs, padding) = (xs.shape[1], kernel / 2);
        let shape = [outputs, inputs, kernel, kernel];
        let op = Op::Conv2d(Stride { stride, padding });
        let quantize = at.projection_weight(op, &shape);
        at.weight("bias", &[outputs]);
        let rank = at.rank(op, &shape);
        let expanded = match quantize {
            Quantize::None => 0,
            Quantize::Int8 | Quantize::Nf4 | Quantize::Fp8 => shape.iter().product::<i64>() as u64 * self.width(),
        };
        let ys = self.bare_conv(xs, outputs, kernel, stride, at.trains("weight") || at.trains("bias"), expanded);
        if rank == 0 {
            return ys;
        }
        let input = self.adapter_input(at, xs);
        let hidden = self.bare_conv(&input, rank, kernel, stride, true, 0);
        let scaled = self.scaled(&hidden, &hidden.shape);
        drop(hidden);
        let low = self.bare_conv(&scaled, outputs, 1, 1, true, 0);
        if at.dora() {
            let change = self.add(&low, &ys);
            return self.add(&ys, &change);
        }
        self.add(&ys, &low)
    }

    /// `expanded`: bytes of the weight that are made for this use.
    fn bare_conv(&self, xs: &Shadow, outputs: i64, kernel: i64, stride: i64, trained: bool, expanded: u64) -> Shadow {
        let inputs = xs.shape[1];
        let out_shape = [xs.shape[0], outputs, xs.shape[2] / stride, xs.shape[3] / stride];
        let pixels = out_shape[0] * out_shape[2] * out_shape[3];
        let weight = outputs * inputs * kernel * kernel;
        let size = [out_shape[2], out_shape[3]];
        let product = Work::of(Product::Conv { images: xs.shape[0], inputs, outputs, size, kernel, stride });
        // The weight comes from memory each time, as no cache holds all of a network's.
        let work = product.plus(Work { bytes: weight as f64 * self.width() as f64, ..Work::default() });
        self.count(work.clone());
        let ys = self.tensor(&out_shape);
        // oneDNN puts the weight in its own order, for this call only; a product lays out what the kernel sees (`weights::convolution`).
        let columns = pixels * inputs * kernel * kernel;
        let as_product = !trained && (kernel == 1 || pixels <= outputs);
        let scratch = match (kernel, as_product) {
            (1, true) => 0,
            (_, true) => columns as u64 * self.width(),
            (_, false) => weight as u64 * self.width(),
        } + expanded;
        drop(self.bytes(scratch));
        // libtorch's own convolution keeps its input, for the gradient of the weight.
        let (saved, times) = if trained { (vec![xs.storage()], 2.0) } else { (Vec::new(), 1.0) };
        let record = Record { saved, scratch, work: work.times(times), trained, ..Record::default() };
        self.record_one(&[xs], ys, record)
    }

    /// A group or layer norm over `width` channels.
    pub(super) fn norm(&self, at: &At, xs: &Shadow, width: i64) -> Shadow {
        at.weight("weight", &[width]);
        at.weight("bias", &[width]);
        self.keeping_input(xs, 3.0, at.trains("weight") || at.trains("bias"))
    }

    /// A norm by the root mean square over `width` channels, which is computed and kept in float32 step by step.
    pub(super) fn rms_norm(&self, at: &At, xs: &Shadow, width: i64) -> Shadow {
        at.weight("weight", &[width]);
        let numbers = xs.elements() as u64 * 4;
        let kept = if self.width() < 4 { self.bytes(numbers) } else { xs.storage() };
        self.count(self.moved(xs.elements(), 6.0));
        drop(self.bytes(numbers * 2));
        let record = Record {
            saved: vec![kept],
            scratch: numbers * 2,
            work: self.moved(xs.elements(), 8.0),
            trained: at.trains("weight"),
            ..Record::default()
        };
        self.record_one(&[xs], self.tensor(&xs.shape), record)
    }

    /// An operation that keeps its input.
    pub(super) fn element_wise(&self, xs: &Shadow, passes: f64) -> Shadow {
        self.keeping_input(xs, passes, false)
    }

    fn keeping_input(&self, xs: &Shadow, passes: f64, trained: bool) -> Shadow {
        self.count(self.moved(xs.elements(), passes));
        let work = self.moved(xs.elements(), passes + 1.0);
        let record = Record { saved: vec![xs.storage()], work, trained, ..Record::default() };
        self.record_one(&[xs], self.tensor(&xs.shape), record)
    }

    /// What an adapter's A makes, times its strength.
    fn scaled(&self, hidden: &Shadow, shape: &[i64]) -> Shadow {
        let work = self.moved(hidden.elements(), 2.0);
        self.count(work.clone());
        self.record_one(&[hidden], self.tensor(shape), Record { work, ..Record::default() })
    }

    /// A sum.
    pub(super) fn add(&self, xs: &Shadow, ys: &Shadow) -> Shadow {
        self.count(self.moved(xs.elements(), 3.0));
        self.record_one(&[xs, ys], self.tensor(&xs.shape), Record { pass_on: true, ..Record::default() })
    }

    /// A product.
    pub(super) fn mul(&self, xs: &Shadow, ys: &Shadow) -> Shadow {
        self.count(self.moved(xs.elements(), 3.0));
        // Each factor is kept for the other's gradient.
        let mut saved = Vec::new();
        if xs.requires_grad() {
            saved.push(ys.storage());
        }
        if ys.requires_grad() {
            saved.push(xs.storage());
        }
        let record = Record { saved, work: self.moved(xs.elements(), 3.0), ..Record::default() };
        self.record_one(&[xs, ys], self.tensor(&xs.shape), record)
    }

    /// `[b, c1, h, w]` and `[b, c2, h, w]` to `[b, c1 + c2, h, w]`; gradients are views of the output's.
    pub(super) fn cat_channels(&self, xs: &Shadow, ys: &Shadow) -> Shadow {
        let mut shape = xs.shape.clone();
        shape[1] += ys.shape[1];
        let joined = self.tensor(&shape);
        self.count(self.moved(joined.elements(), 2.0));
        self.record_one(&[xs, ys], joined, Record { pass_on: true, ..Record::default() })
    }

    /// Two tensors joined along the last dimension.
    pub(super) fn cat_widths(&self, xs: &Shadow, ys: &Shadow) -> Shadow {
        let mut shape = xs.shape.clone();
        let last = shape.len() - 1;
        shape[last] += ys.shape[last];
        let joined = self.tensor(&shape);
        self.count(self.moved(joined.elements(), 2.0));
        self.record_one(&[xs, ys], joined, Record { pass_on: true, ..Record::default() })
    }

    /// A copy of another size that keeps nothing: upsampling, padding.
    pub(super) fn resized(&self, xs: &Shadow, height: i64, width: i64) -> Shadow {
        let ys = self.tensor(&[xs.shape[0], xs.shape[1], height, width]);
        self.count(self.moved(ys.elements(), 1.5));
        let record = Record { work: self.moved(ys.elements(), 1.5), ..Record::default() };
        self.record_one(&[xs], ys, record)
    }

    /// The two halves of the last dimension, as views.
    pub(super) fn halves(&self, xs: &Shadow) -> (Shadow, Shadow) {
        let mut halves = self.parts(xs, 2);
        let second = halves.remove(1);
        (halves.remove(0), second)
    }

    /// As many equal parts of the last dimension, as views.
    pub(super) fn parts(&self, xs: &Shadow, count: usize) -> Vec<Shadow> {
        let mut shape = xs.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last /= count as i64;
        }
        let views = vec![xs.view(&shape); count];
        let work = self.moved(xs.elements(), 2.0);
        self.record(&[xs], views, Record { outputs: count, work, ..Record::default() })
    }

    /// `[b, s, c]`, `[b, t, c]`, `[b, t, c]` to `[b, s, c]`; a causal one does half the work.
    pub(super) fn attend(&self, q: &Shadow, k: &Shadow, v: &Shadow, heads: i64, causal: bool) -> Shadow {
        self.attend_masked(q, k, v, heads, causal, None)
    }

    /// The same with what is added to the scores.
    pub(super) fn attend_masked(
        &self,
        q: &Shadow,
        k: &Shadow,
        v: &Shadow,
        heads: i64,
        causal: bool,
        mask: Option<Rc<Storage>>,
    ) -> Shadow {
        let (batch, rows, keys, width) = (q.shape[0], q.shape[1], k.shape[1], q.shape[2]);
        let share = if causal { 0.5 } else { 1.0 };
        let product = Product::Attention { heads: batch * heads, rows, keys, width: width / heads.max(1) };
        let work = Work::of(product).times(share);
        self.count(work.clone());
        let ys = self.tensor(&q.shape);
        let log_sums = self.bytes((batch * heads * rows * 4) as u64);
        let needed = [q, k, v].iter().filter(|xs| xs.requires_grad()).count().max(1);
        let unneeded: i64 = [q, k, v].iter().filter(|xs| !xs.requires_grad()).map(|xs| xs.elements()).sum();
        let saved = [q.storage(), k.storage(), v.storage(), ys.storage(), log_sums];
        let record = Record {
            saved: saved.into_iter().chain(mask).collect(),
            // All three gradients are made, wanted or not.
            scratch: unneeded as u64 * self.width(),
            work: work.times(2.5 / needed as f64),
            ..Record::default()
        };
        self.record_one(&[q, k, v], ys, record)
    }
}
