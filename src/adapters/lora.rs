//! LoRA: a frozen weight W gains a trained product of low rank, `W + scaling · B A` (arXiv 2106.09685), and DoRA, which
//! trains its rows' norms beside (arXiv 2402.09353). Reference: peft `tuners/lora/layer.py`, `dora.py`, `variants.py`.

use super::adapter::{Adapter, Init};
use super::config::{InitWeights, LoraConfig};
use super::site::Site;
use crate::error::{Error, Result};
use crate::libtorch::dropout::dropout;
use crate::weights::{Op, Stride};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Ends of the names of A and B in PEFT's files.
pub(super) const A: &str = ".lora_A.weight";
pub(super) const B: &str = ".lora_B.weight";
/// Of a table's.
pub(super) const EMBEDDING_A: &str = ".lora_embedding_A";
pub(super) const EMBEDDING_B: &str = ".lora_embedding_B";

/// One site's LoRA.
struct Lora {
    /// `[r, in]` or `[r, in, k, k]`, float32; of a table `[r, rows]`.
    a: Tensor,
    /// `[out, r]` or `[out, r, 1, 1]`, float32; of a table `[width, r]`.
    b: Tensor,
    scaling: f64,
    dropout: f64,
    /// DoRA's row norms: `[out]` or `[1, out, 1, 1]`, float32.
    magnitude: Option<Tensor>,
}

/// Makes the LoRA of `site`.
pub(super) fn make(
    site: &Site,
    config: &LoraConfig,
    init: &mut Init,
) -> Result<(Box<dyn Adapter>, BTreeMap<String, Tensor>)> {
    let path = site.path();
    let (rank, scaling) = (config.rank_of(path), config.scaling_of(path));
    if config.use_dora && site.op() == Op::Embedding {
        return Err(Error::invalid(format!(
            "`{path}` is an embedding, for which there is no DoRA; leave one of them out"
        )));
    }
    let (a_shape, b_shape) = shapes(site, rank);
    let [a_name, b_name] = match site.op() {
        Op::Embedding => [EMBEDDING_A, EMBEDDING_B].map(|end| format!("{path}{end}")),
        Op::Linear | Op::Conv2d(_) => [A, B].map(|end| format!("{path}{end}")),
    };
    let magnitude_name = format!("{path}.lora_magnitude_vector");
    let device = site.with_weight(|weight| weight.device());
    let leaf = |tensor: Tensor| tensor.to_device(device).to_kind(Kind::Float).detach().set_requires_grad(true);
    let (a, b) = match init {
        Init::Draw(generator) if site.op() == Op::Embedding => {
            draw_for_table(&a_shape, &b_shape, config.init_lora_weights, generator)
        }
        Init::Draw(generator) => draw(&a_shape, &b_shape, config.init_lora_weights, generator),
        Init::Tensors(tensors) => (taken(tensors, &a_name, &a_shape)?, taken(tensors, &b_name, &b_shape)?),
    };
    let (a, b) = (leaf(a), leaf(b));
    let mut lora = Lora { a, b, scaling, dropout: config.lora_dropout, magnitude: None };
    if config.use_dora {
        let magnitude = match init {
            Init::Draw(_) => lora.row_norms(site),
            Init::Tensors(tensors) => taken(tensors, &magnitude_name, &lora.row_norms(site).size())?,
        };
        lora.magnitude = Some(leaf(magnitude.copy()));
    }
    let mut params = BTreeMap::from([(a_name, lora.a.shallow_clone()), (b_name, lora.b.shallow_clone())]);
    if let Some(magnitude) = &lora.magnitude {
        params.insert(magnitude_name, magnitude.shallow_clone());
    }
    Ok((Box::new(lora), params))
}

/// Shapes of A and B.
fn shapes(site: &Site, rank: i64) -> (Vec<i64>, Vec<i64>) {
    let mut a_shape = site.shape();
    let mut b_shape = vec![1; a_shape.len()];
    match site.op() {
        Op::Embedding => (a_shape, b_shape) = (vec![rank, a_shape[0]], vec![a_shape[1], rank]),
        Op::Linear | Op::Conv2d(_) => {
            (b_shape[0], b_shape[1]) = (a_shape[0], rank);
            a_shape[0] = rank;
        }
    }
    (a_shape, b_shape)
}

/// Those of a table's, which PEFT draws otherwise: A zero and B normal; with `false` both are normal.
fn draw_for_table(
    a_shape: &[i64],
    b_shape: &[i64],
    init: InitWeights,
    generator: &mut crate::libtorch::random::Generator,
) -> (Tensor, Tensor) {
    let a = match init {
        InitWeights::Drawn => generator.randn(a_shape),
        InitWeights::Kaiming | InitWeights::Gaussian => Tensor::zeros(a_shape, (Kind::Float, tch::Device::Cpu)),
    };
    (a, generator.randn(b_shape))
}

/// A and B as PEFT's `reset_lora_parameters` makes them: A Kaiming-uniform with a = √5 (or normal with deviation 1/r)
/// and B zero, so that a fresh adapter changes nothing; with `false` both are drawn.
fn draw(
    a_shape: &[i64],
    b_shape: &[i64],
    init: InitWeights,
    generator: &mut crate::libtorch::random::Generator,
) -> (Tensor, Tensor) {
    // Kaiming's bound √(6 / ((1 + a²) fan_in)) with a = √5.
    let mut kaiming = |shape: &[i64]| {
        let bound = 1.0 / (shape[1..].iter().product::<i64>() as f64).sqrt();
        generator.uniform(shape, -bound, bound)
    };
    match init {
        InitWeights::Kaiming => (kaiming(a_shape), Tensor::zeros(b_shape, (Kind::Float, tch::Device::Cpu))),
        InitWeights::Drawn => {
            let a = kaiming(a_shape);
            (a, kaiming(b_shape))
        }
        InitWeights::Gaussian => {
            let a = generator.randn(a_shape) / a_shape[0] as f64;
            (a, Tensor::zeros(b_shape, (Kind::Float, tch::Device::Cpu)))
        }
    }
}

fn taken(tensors: &BTreeMap<String, Tensor>, name: &str, shape: &[i64]) -> Result<Tensor> {
    let tensor = tensors
        .get(name)
        .ok_or_else(|| Error::invalid(format!("the adapter has no `{name}`; is it whole, and made for this model?")))?;
    // A magnitude is [out] in some files and [1, out, 1, 1] in others.
    if tensor.size() != shape && tensor.numel() as i64 != shape.iter().product::<i64>() {
        return Err(Error::invalid(format!(
            "the adapter does not fit this model: `{name}` has shape {:?}, the model needs {shape:?}",
            tensor.size()
        )));
    }
    Ok(tensor.reshape(shape))
}

impl Lora {
    /// `B A xs`, without scaling; `[rows, out]` or `[batch, out, h', w']`.
    fn low_rank(&self, op: Op, xs: &Tensor, factor: f64) -> Tensor {
        let kind = xs.kind();
        let (a, b) = (self.a.to_kind(kind), self.b.to_kind(kind));
        let hidden = op.run(xs, &a, None) * factor;
        match op {
            Op::Linear | Op::Embedding => hidden.linear(&b, None::<&Tensor>),
            Op::Conv2d(_) => Op::Conv2d(Stride { stride: 1, padding: 0 }).run(&hidden, &b, None),
        }
    }

    /// Of ids, in the dtype of `like`: the rows of `Aᵀ`, through B. A table has no dropout in PEFT.
    fn low_rank_rows(&self, ids: &Tensor, factor: f64, like: Kind) -> Tensor {
        let hidden = Tensor::embedding(&self.a.tr(), ids, -1, false, false).to_kind(like) * factor;
        hidden.linear(&self.b.to_kind(like), None::<&Tensor>)
    }

    /// `B A` in the weight's shape, float32.
    fn product(&self, op: Op) -> Tensor {
        let (a, b) = (self.a.flatten(1, -1), self.b.flatten(1, -1));
        if op == Op::Embedding {
            return a.tr().matmul(&b.tr());
        }
        let mut shape = self.a.size();
        shape[0] = self.b.size()[0];
        b.matmul(&a).view(shape.as_slice())
    }

    fn dropped(&self, site: &Site, xs: &Tensor) -> Option<Tensor> {
        (site.training() && self.dropout > 0.0).then(|| dropout(xs, self.dropout))
    }

    /// Norm of each output row of `W + scaling · B A`, in the magnitude's shape. No gradient flows through it
    /// (section 4.3 of the paper).
    fn row_norms(&self, site: &Site) -> Tensor {
        self.scaled_row_norms(site.op(), &site.with_weight(|weight| weight.dense(Kind::Float)), 1.0)
    }

    fn scaled_row_norms(&self, op: Op, weight: &Tensor, scale: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let whole = weight + self.product(op) * (self.scaling * scale);
        let dims: Vec<i64> = (1..whole.dim() as i64).collect();
        let norms = whole.norm_scalaropt_dim(2.0, dims.as_slice(), false);
        match whole.dim() {
            2 => norms,
            _ => norms.view([1, -1, 1, 1]),
        }
    }
}

impl Adapter for Lora {
    fn forward(&self, site: &Site, xs: &Tensor, mut ys: Tensor, scale: f64) -> Tensor {
        if site.op() == Op::Embedding {
            let kind = ys.kind();
            return ys + self.low_rank_rows(xs, self.scaling * scale, kind);
        }
        let dropped = self.dropped(site, xs);
        let inputs = dropped.as_ref().unwrap_or(xs);
        let factor = self.scaling * scale;
        let Some(magnitude) = &self.magnitude else {
            if site.op() == Op::Linear {
                // Added inside the matrix product: no tensor of the output's size is made.
                let kind = xs.kind();
                let hidden = inputs.linear(&self.a.to_kind(kind), None::<&Tensor>) * factor;
                return ys.addmm_(&hidden, &self.b.to_kind(kind).tr());
            }
            return ys + self.low_rank(site.op(), inputs, factor);
        };
        // As PEFT computes it: the change is measured from the base projection, without its bias.
        let (base, norms) = site.with_weight(|weight| {
            (weight.run(site.op(), inputs, None), self.scaled_row_norms(site.op(), &weight.dense(Kind::Float), 1.0))
        });
        let gain = (magnitude / norms).to_kind(xs.kind());
        let gain = if site.op() == Op::Linear { gain.view([1, -1]) } else { gain };
        let change = base * (&gain - 1.0) + self.low_rank(site.op(), inputs, self.scaling) * &gain;
        ys + change * scale
    }

    fn merged(&self, site: &Site, weight: Tensor, scale: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let Some(magnitude) = &self.magnitude else {
            return weight + self.product(site.op()) * (self.scaling * scale);
        };
        let rows: Vec<i64> = std::iter::once(-1).chain(std::iter::repeat_n(1, weight.dim() - 1)).collect();
        let gain = (magnitude / self.scaled_row_norms(site.op(), &weight, 1.0)).view(rows.as_slice());
        let target = (&weight + self.product(site.op()) * self.scaling) * gain;
        &weight + (target - &weight) * scale
    }
}
