//! A training step without numbers: tensors that know only their size, and a tape that keeps and frees them when
//! libtorch's autograd does. What each operation saves was read from its `grad_fn` in libtorch 2.11.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Blocks from this size on leave no gaps worth counting (`host_allocator`); smaller ones do.
pub(super) const SMALL: u64 = 1 << 17;

/// A product of many numbers, by what its speed depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Product {
    /// A convolution by a square kernel, with half the kernel around it.
    Conv {
        /// Images at a time.
        images: i64,
        /// Channels that come in.
        inputs: i64,
        /// Channels that go out.
        outputs: i64,
        /// Height and width of what goes out.
        size: [i64; 2],
        /// Side of the kernel.
        kernel: i64,
        /// Step of the kernel.
        stride: i64,
    },
    /// A matrix product `[rows, inputs] x [inputs, outputs]`.
    Matmul {
        /// Rows of the left side.
        rows: i64,
        /// What is summed over.
        inputs: i64,
        /// Columns of the right side.
        outputs: i64,
    },
    /// Attention: two products with what lies between.
    Attention {
        /// Heads, of all texts together.
        heads: i64,
        /// Queries.
        rows: i64,
        /// Keys.
        keys: i64,
        /// Width of a head.
        width: i64,
    },
}

impl Product {
    /// Its floating-point operations.
    pub fn flops(&self) -> f64 {
        let product = |factors: &[i64]| factors.iter().map(|factor| *factor as f64).product::<f64>();
        match *self {
            Product::Conv { images, inputs, outputs, size: [height, width], kernel, .. } => {
                product(&[2, images, inputs, outputs, height, width, kernel, kernel])
            }
            Product::Matmul { rows, inputs, outputs } => product(&[2, rows, inputs, outputs]),
            Product::Attention { heads, rows, keys, width } => product(&[4, heads, rows, keys, width]),
        }
    }
}

/// What the computation costs, beside memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// How often each product is made.
    pub products: BTreeMap<Product, f64>,
    /// Bytes read and written by element-wise operations and norms.
    pub bytes: f64,
    /// Those operations, each of which takes some time however little it moves.
    pub operations: f64,
}

impl Work {
    /// One product.
    pub(super) fn of(product: Product) -> Self {
        Self { products: BTreeMap::from([(product, 1.0)]), ..Self::default() }
    }

    /// Operations that read and write so many bytes in all.
    pub(super) fn moving(bytes: f64) -> Self {
        Self { bytes, operations: 1.0, ..Self::default() }
    }

    /// Floating-point operations of the products.
    pub fn flops(&self) -> f64 {
        self.products.iter().map(|(product, times)| product.flops() * times).sum()
    }

    /// This much, `times` over.
    pub(super) fn times(mut self, times: f64) -> Self {
        self.products.values_mut().for_each(|count| *count *= times);
        self.bytes *= times;
        self.operations *= times;
        self
    }

    /// Both together.
    pub fn plus(mut self, more: Self) -> Self {
        for (product, times) in more.products {
            *self.products.entry(product).or_default() += times;
        }
        self.bytes += more.bytes;
        self.operations += more.operations;
        self
    }
}

/// Bytes that live now, the most that lived, and the work done.
#[derive(Default)]
pub(super) struct Meter {
    live: Cell<u64>,
    peak: Cell<u64>,
    small: Cell<u64>,
    work: RefCell<Work>,
}

impl Meter {
    pub(super) fn live(&self) -> u64 {
        self.live.get()
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.get()
    }

    /// Bytes that live in blocks below [`SMALL`].
    pub(super) fn small(&self) -> u64 {
        self.small.get()
    }

    pub(super) fn work(&self) -> Work {
        self.work.borrow().clone()
    }

    fn count(&self, more: Work) {
        self.work.replace_with(|work| std::mem::take(work).plus(more));
    }
}

/// Memory that is free again when the last one who needs it lets it go.
pub(super) struct Storage {
    bytes: u64,
    meter: Rc<Meter>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.meter.live.set(self.meter.live.get() - self.bytes);
        if self.bytes < SMALL {
            self.meter.small.set(self.meter.small.get() - self.bytes);
        }
    }
}

/// A tensor without numbers.
#[derive(Clone)]
pub(super) struct Shadow {
    pub(super) shape: Vec<i64>,
    storage: Rc<Storage>,
    /// The node whose gradient this is, and which of its outputs.
    node: Option<(usize, usize)>,
}

impl Shadow {
    pub(super) fn elements(&self) -> i64 {
        self.shape.iter().product()
    }

    pub(super) fn requires_grad(&self) -> bool {
        self.node.is_some()
    }

    pub(super) fn storage(&self) -> Rc<Storage> {
        self.storage.clone()
    }

    /// The same memory in another shape.
    pub(super) fn view(&self, shape: &[i64]) -> Self {
        Self { shape: shape.to_vec(), ..self.clone() }
    }
}

/// A part of a forward that can be run again.
pub(super) type Segment = Rc<dyn Fn(&Tape, &[Shadow]) -> Shadow>;

/// What a node does in backward.
enum Action {
    /// A leaf: keeps its gradient.
    Leaf,
    /// Makes a gradient for each input.
    Make,
    /// Hands its gradient on as it is (a view, a sum).
    PassOn,
    /// Runs a segment again on its inputs, with a tape of its own.
    Recompute(Segment, Vec<Shadow>),
}

struct Edge {
    to: (usize, usize),
    bytes: u64,
}

struct Node {
    action: Action,
    edges: Vec<Edge>,
    saved: Vec<Rc<Storage>>,
    scratch: u64,
    work: Work,
    grads: Vec<Option<Rc<Storage>>>,
}

/// What a node keeps and does beside its inputs.
#[derive(Default)]
pub(super) struct Record {
    /// Memory that backward needs.
    pub(super) saved: Vec<Rc<Storage>>,
    /// Bytes that live only while backward runs this node.
    pub(super) scratch: u64,
    /// Work in backward, for each input that needs a gradient.
    pub(super) work: Work,
    /// The gradient is handed on, not computed.
    pub(super) pass_on: bool,
    /// Something inside is trained: there is a node even where no input needs a gradient.
    pub(super) trained: bool,
    /// Outputs of the node; 0 counts as 1.
    pub(super) outputs: usize,
}

/// Records operations on shadows.
pub(super) struct Tape {
    meter: Rc<Meter>,
    nodes: RefCell<Vec<Node>>,
    grad: Cell<bool>,
    /// Bytes of a number in the compute dtype.
    width: u64,
}

impl Tape {
    pub(super) fn new(width: u64, grad: bool) -> Self {
        Self { meter: Rc::default(), nodes: RefCell::default(), grad: Cell::new(grad), width }
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Bytes of a number in the compute dtype.
    pub(super) fn width(&self) -> u64 {
        self.width
    }

    /// Counts `work` as done now.
    pub(super) fn count(&self, work: Work) {
        self.meter.count(work);
    }

    pub(super) fn bytes(&self, bytes: u64) -> Rc<Storage> {
        let live = self.meter.live.get() + bytes;
        self.meter.live.set(live);
        self.meter.peak.set(self.meter.peak.get().max(live));
        if bytes < SMALL {
            self.meter.small.set(self.meter.small.get() + bytes);
        }
        Rc::new(Storage { bytes, meter: self.meter.clone() })
    }

    /// A new tensor in the compute dtype that needs no gradient.
    pub(super) fn tensor(&self, shape: &[i64]) -> Shadow {
        let elements: i64 = shape.iter().product();
        Shadow { shape: shape.to_vec(), storage: self.bytes(elements as u64 * self.width), node: None }
    }

    fn size(&self, xs: &Shadow) -> u64 {
        xs.elements() as u64 * self.width
    }

    /// Puts a node behind `outputs`, where autograd would.
    pub(super) fn record(&self, inputs: &[&Shadow], mut outputs: Vec<Shadow>, record: Record) -> Vec<Shadow> {
        let needed = record.trained || inputs.iter().any(|input| input.requires_grad());
        if !self.grad.get() || !needed {
            return outputs;
        }
        let edges: Vec<Edge> =
            inputs.iter().filter_map(|xs| xs.node.map(|to| Edge { to, bytes: self.size(xs) })).collect();
        let action = if record.pass_on { Action::PassOn } else { Action::Make };
        let id = self.push(Node {
            action,
            work: record.work.times(edges.len() as f64),
            edges,
            saved: record.saved,
            scratch: record.scratch,
            grads: vec![None; record.outputs.max(1)],
        });
        for (slot, output) in outputs.iter_mut().enumerate() {
            output.node = Some((id, slot));
        }
        outputs
    }

    /// [`Tape::record`] for one output.
    pub(super) fn record_one(&self, inputs: &[&Shadow], output: Shadow, record: Record) -> Shadow {
        let mut outputs = self.record(inputs, vec![output], record);
        outputs.remove(0)
    }

    fn push(&self, node: Node) -> usize {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        nodes.len() - 1
    }

    /// `segment(inputs)`, of which only the inputs are kept; it runs again in backward.
    pub(super) fn checkpoint(&self, inputs: &[&Shadow], segment: Segment) -> Shadow {
        let inputs: Vec<Shadow> = inputs.iter().map(|&xs| xs.clone()).collect();
        let grad = self.grad.replace(false);
        let mut output = segment(self, &inputs);
        self.grad.set(grad);
        if grad {
            let edges = inputs.iter().filter_map(|xs| xs.node.map(|to| Edge { to, bytes: self.size(xs) })).collect();
            let action = Action::Recompute(segment, inputs);
            let id = self.push(Node {
                action,
                edges,
                saved: Vec::new(),
                scratch: 0,
                work: Work::default(),
                grads: vec![None],
            });
            output.node = Some((id, 0));
        }
        output
    }

    /// Runs backward from `root`, whose gradient is a new tensor.
    pub(super) fn backward(&self, root: Shadow) {
        let grad = self.bytes(self.size(&root));
        self.backward_from(root, grad);
    }

    /// Returns the leaves' gradients.
    fn backward_from(&self, root: Shadow, grad: Rc<Storage>) -> Vec<Option<Rc<Storage>>> {
        let mut leaves = Vec::new();
        let Some((id, slot)) = root.node else { return leaves };
        self.nodes.borrow_mut()[id].grads[slot] = Some(grad);
        // Nodes run in the reverse of the order in which they were made, as autograd's queue has them.
        loop {
            let Some(node) = self.nodes.borrow_mut().pop() else { break };
            let Node { action, edges, saved, scratch, work, grads } = node;
            if let Action::Leaf = action {
                leaves.extend(grads);
                continue;
            }
            if grads.iter().all(Option::is_none) {
                continue;
            }
            self.meter.count(work);
            let made: Vec<Option<Rc<Storage>>> = match &action {
                Action::Leaf => Vec::new(),
                Action::PassOn => edges.iter().map(|_| grads.iter().flatten().next().cloned()).collect(),
                Action::Make => {
                    let made = edges.iter().map(|edge| Some(self.bytes(edge.bytes))).collect();
                    drop(self.bytes(scratch));
                    made
                }
                Action::Recompute(segment, inputs) => self.recompute(segment, inputs, &grads),
            };
            drop((action, saved, grads));
            for (edge, grad) in edges.iter().zip(made) {
                self.accumulate(edge, grad);
            }
        }
        leaves.reverse();
        leaves
    }

    fn recompute(
        &self,
        segment: &Segment,
        inputs: &[Shadow],
        grads: &[Option<Rc<Storage>>],
    ) -> Vec<Option<Rc<Storage>>> {
        let inner =
            Tape { meter: self.meter.clone(), nodes: RefCell::default(), grad: Cell::new(true), width: self.width };
        let leaves: Vec<Shadow> = inputs
            .iter()
            .map(|input| {
                let node = input.requires_grad().then(|| {
                    let leaf = Node {
                        action: Action::Leaf,
                        edges: Vec::new(),
                        saved: Vec::new(),
                        scratch: 0,
                        work: Work::default(),
                        grads: vec![None],
                    };
                    (inner.push(leaf), 0)
                });
                Shadow { node, ..input.clone() }
            })
            .collect();
        let output = segment(&inner, &leaves);
        match &grads[0] {
            Some(grad) => inner.backward_from(output, grad.clone()),
            None => Vec::new(),
        }
    }

    /// As autograd's input buffer: the first gradient is taken as it is, further ones are added in place only where
    /// nobody else holds the first.
    fn accumulate(&self, edge: &Edge, grad: Option<Rc<Storage>>) {
        let Some(grad) = grad else { return };
        let (id, slot) = edge.to;
        let before = self.nodes.borrow_mut()[id].grads[slot].take();
        let sum = match before {
            None => grad,
            Some(before) if Rc::strong_count(&before) == 1 => before,
            Some(_before) => self.bytes(edge.bytes),
        };
        self.nodes.borrow_mut()[id].grads[slot] = Some(sum);
    }
}
