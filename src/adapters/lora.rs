//! LoRA: a frozen weight W gains a trained product of low rank, `W + scaling · B A` (arXiv 2106.09685), and DoRA, which
//! trains its rows' norms beside (arXiv 2402.09353). Reference: peft `tuners/lora/layer.py`, `dora.py`, `variants.py`.

use super::adapter::{Adapter, Init};
use super::config::{InitWeights, LoraConfig};
use super::projections::LowRank;
use super::site::Site;
use crate::error::{Error, Result};
use crate::libtorch::dropout::dropout;
use crate::libtorch::low_rank::{add_low_rank, Factor};
use crate::weights::{Op, Stride};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Ends of the names of A and B in PEFT's files.
pub(super) const A: &str = ".lora_A.weight";
pub(super) const B: &str = ".lora_B.weight";
/// Of DoRA's magnitude: a number for each output row, `[out]` or (of a convolution) `[1, out, 1, 1]`.
pub(super) const MAGNITUDE: &str = ".lora_magnitude_vector";
/// Of the magnitude with a number for each input column, `[1, in]` or `[1, in, 1, 1]`, which LyCORIS and OneTrainer write and
/// PEFT has not.
pub(super) const COLUMN_MAGNITUDE: &str = ".lora_column_magnitude";
/// Of a table's.
pub(super) const EMBEDDING_A: &str = ".lora_embedding_A";
pub(super) const EMBEDDING_B: &str = ".lora_embedding_B";

/// One site's LoRA.
struct Lora {
    /// `[r, in]` or `[r, in, k, k]`, float32; of a table `[r, rows]`.
    a: Factor,
    /// `[out, r]` or `[out, r, 1, 1]`, float32; of a table `[width, r]`.
    b: Factor,
    scaling: f64,
    dropout: f64,
    magnitude: Option<Magnitude>,
}

/// DoRA's trained norms of the weight, float32.
enum Magnitude {
    /// Of its output rows: `[out]` or `[1, out, 1, 1]`.
    OfRows(Tensor),
    /// Of its input columns: `[1, in]` or `[1, in, 1, 1]`.
    OfColumns(Tensor),
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
    let device = site.with_weight(|weight| weight.device());
    let leaf = |tensor: Tensor| tensor.to_device(device).to_kind(Kind::Float).detach().set_requires_grad(true);
    let (a, b) = match init {
        Init::Draw(generator) if site.op() == Op::Embedding => {
            draw_for_table(&a_shape, &b_shape, config.init_lora_weights, generator)
        }
        Init::Draw(generator) => draw(&a_shape, &b_shape, config.init_lora_weights, generator),
        Init::Tensors(tensors) => (taken(tensors, &a_name, &a_shape)?, taken(tensors, &b_name, &b_shape)?),
    };
    let [a, b] = [a, b].map(|tensor| site.factors().add(leaf(tensor)));
    let mut lora = Lora { a, b, scaling, dropout: config.lora_dropout, magnitude: None };
    if config.use_dora {
        lora.magnitude = Some(match init {
            Init::Draw(_) => Magnitude::OfRows(leaf(lora.row_norms(site).copy())),
            Init::Tensors(tensors) => match tensors.get(&format!("{path}{COLUMN_MAGNITUDE}")) {
                Some(_) => {
                    let magnitude = taken(tensors, &format!("{path}{COLUMN_MAGNITUDE}"), &column_shape(site))?;
                    Magnitude::OfColumns(leaf(magnitude.copy()))
                }
                None => Magnitude::OfRows(leaf(row_magnitude(tensors, site)?.copy())),
            },
        });
    }
    let mut params = BTreeMap::from([(a_name, lora.a().shallow_clone()), (b_name, lora.b().shallow_clone())]);
    match &lora.magnitude {
        Some(Magnitude::OfRows(magnitude)) => {
            _ = params.insert(format!("{path}{MAGNITUDE}"), magnitude.shallow_clone())
        }
        Some(Magnitude::OfColumns(magnitude)) => {
            _ = params.insert(format!("{path}{COLUMN_MAGNITUDE}"), magnitude.shallow_clone());
        }
        None => {}
    }
    Ok((Box::new(lora), params))
}

/// The magnitude of rows of `site` among `tensors`. A convolution's is `[1, out, 1, 1]` in PEFT's files, `[out]` in others.
fn row_magnitude(tensors: &BTreeMap<String, Tensor>, site: &Site) -> Result<Tensor> {
    let (name, shape) = (format!("{}{MAGNITUDE}", site.path()), site.shape());
    let is_vector = tensors.get(&name).is_some_and(|tensor| tensor.size() == shape[..1]);
    match shape.len() {
        4 if is_vector => Ok(taken(tensors, &name, &shape[..1])?.view([1, -1, 1, 1])),
        4 => taken(tensors, &name, &[1, shape[0], 1, 1]),
        _ => taken(tensors, &name, &shape[..1]),
    }
}

fn column_shape(site: &Site) -> Vec<i64> {
    let mut shape = vec![1; site.shape().len()];
    shape[1] = site.shape()[1];
    shape
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

/// Whether a tensor of shape `found` is one of shape `wanted`, but for ones behind: a 1×1 convolution's numbers are a linear
/// layer's.
pub(super) fn fits_up_to_ones(found: &[i64], wanted: &[i64]) -> bool {
    let (short, long) = if found.len() < wanted.len() { (found, wanted) } else { (wanted, found) };
    !short.is_empty() && long.starts_with(short) && long[short.len()..].iter().all(|&side| side == 1)
}

/// The tensor `name` as `shape`. One of another shape is refused, also where it has as many numbers.
fn taken(tensors: &BTreeMap<String, Tensor>, name: &str, shape: &[i64]) -> Result<Tensor> {
    let tensor = tensors
        .get(name)
        .ok_or_else(|| Error::invalid(format!("the adapter has no `{name}`; is it whole, and made for this model?")))?;
    if !fits_up_to_ones(&tensor.size(), shape) {
        let what = if name.contains("magnitude") { "its DoRA magnitude " } else { "" };
        return Err(Error::invalid(format!(
            "the adapter does not fit this model: {what}`{name}` has shape {:?}, the model needs {shape:?}",
            tensor.size()
        )));
    }
    Ok(tensor.f_reshape(shape)?)
}

impl Lora {
    fn a(&self) -> &Tensor {
        self.a.leaf()
    }

    fn b(&self) -> &Tensor {
        self.b.leaf()
    }

    /// `B A xs`, without scaling; `[rows, out]` or `[batch, out, h', w']`.
    fn low_rank(&self, op: Op, xs: &Tensor, factor: f64) -> Tensor {
        let kind = xs.kind();
        let (a, b) = (self.a().to_kind(kind), self.b().to_kind(kind));
        let hidden = op.run(xs, &a, None) * factor;
        match op {
            Op::Linear | Op::Embedding => hidden.linear(&b, None::<&Tensor>),
            Op::Conv2d(_) => Op::Conv2d(Stride { stride: 1, padding: 0 }).run(&hidden, &b, None),
        }
    }

    /// Of ids, in the dtype of `like`: the rows of `Aᵀ`, through B. A table has no dropout in PEFT.
    fn low_rank_rows(&self, ids: &Tensor, factor: f64, like: Kind) -> Tensor {
        let hidden = Tensor::embedding(&self.a().tr(), ids, -1, false, false).to_kind(like) * factor;
        hidden.linear(&self.b().to_kind(like), None::<&Tensor>)
    }

    /// `B A` in the weight's shape, float32.
    fn product(&self, op: Op) -> Tensor {
        let (a, b) = (self.a().flatten(1, -1), self.b().flatten(1, -1));
        if op == Op::Embedding {
            return a.tr().matmul(&b.tr());
        }
        let mut shape = self.a().size();
        shape[0] = self.b().size()[0];
        b.matmul(&a).view(shape.as_slice())
    }

    fn dropped(&self, site: &Site, xs: &Tensor) -> Option<Tensor> {
        (site.training() && self.dropout > 0.0).then(|| dropout(xs, self.dropout))
    }

    /// Norm of each output row of `W + scaling · B A`, in the magnitude's shape. No gradient flows through it
    /// (section 4.3 of the paper).
    fn row_norms(&self, site: &Site) -> Tensor {
        self.norms_of_rows(site.op(), &site.with_weight(|weight| weight.dense(Kind::Float)))
    }

    fn norms_of_rows(&self, op: Op, weight: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let whole = weight + self.product(op) * self.scaling;
        let dims: Vec<i64> = (1..whole.dim() as i64).collect();
        let norms = whole.norm_scalaropt_dim(2.0, dims.as_slice(), false);
        match whole.dim() {
            2 => norms,
            _ => norms.view([1, -1, 1, 1]),
        }
    }

    /// The same of each input column, over the rows and a kernel's places (LyCORIS `modules/locon.py`,
    /// `apply_weight_decompose`).
    fn norms_of_columns(&self, op: Op, weight: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let whole = weight + self.product(op) * self.scaling;
        let dims: Vec<i64> = std::iter::once(0).chain(2..whole.dim() as i64).collect();
        whole.norm_scalaropt_dim(2.0, dims.as_slice(), true)
    }

    /// What DoRA of rows adds to the output for `inputs`. As PEFT computes it: measured from the base projection, without its
    /// bias.
    fn change_of_rows(&self, site: &Site, inputs: &Tensor, magnitude: &Tensor) -> Tensor {
        let (base, norms) = site.with_weight(|weight| {
            (weight.run(site.op(), inputs, None), self.norms_of_rows(site.op(), &weight.dense(Kind::Float)))
        });
        let gain = (magnitude / norms).to_kind(inputs.kind());
        let gain = if site.op() == Op::Linear { gain.view([1, -1]) } else { gain };
        base * (&gain - 1.0) + self.low_rank(site.op(), inputs, self.scaling) * &gain
    }

    /// What DoRA of columns adds: a column's gain is its input's, `(W + s·BA) (g ∘ x) - W x`.
    fn change_of_columns(&self, site: &Site, inputs: &Tensor, magnitude: &Tensor) -> Tensor {
        let op = site.op();
        let norms = site.with_weight(|weight| self.norms_of_columns(op, &weight.dense(Kind::Float)));
        let gain = (magnitude / norms).to_kind(inputs.kind());
        let base = site.with_weight(|weight| weight.run(op, &(inputs * (&gain - 1.0)), None));
        base + self.low_rank(op, &(inputs * &gain), self.scaling)
    }
}

impl Adapter for Lora {
    fn forward(&self, site: &Site, xs: &Tensor, ys: Tensor, scale: f64) -> Tensor {
        if site.op() == Op::Embedding {
            let kind = ys.kind();
            return ys + self.low_rank_rows(xs, self.scaling * scale, kind);
        }
        let dropped = self.dropped(site, xs);
        let inputs = dropped.as_ref().unwrap_or(xs);
        let factor = self.scaling * scale;
        let change = match &self.magnitude {
            Some(Magnitude::OfRows(magnitude)) => self.change_of_rows(site, inputs, magnitude),
            Some(Magnitude::OfColumns(magnitude)) => self.change_of_columns(site, inputs, magnitude),
            // Added inside the matrix product: no tensor of the output's size is made.
            None if site.op() == Op::Linear => return add_low_rank(ys, inputs, &self.a, &self.b, factor),
            None => return ys + self.low_rank(site.op(), inputs, factor),
        };
        ys + change * scale
    }

    fn low_rank(&self, site: &Site) -> Option<LowRank<'_>> {
        let drops = site.training() && self.dropout > 0.0;
        let is_all = site.op() == Op::Linear && self.magnitude.is_none() && !drops;
        is_all.then_some(LowRank { a: &self.a, b: &self.b, factor: self.scaling })
    }

    fn merged(&self, site: &Site, weight: Tensor, scale: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let gain = match &self.magnitude {
            Some(Magnitude::OfRows(magnitude)) => {
                let rows: Vec<i64> = std::iter::once(-1).chain(std::iter::repeat_n(1, weight.dim() - 1)).collect();
                (magnitude / self.norms_of_rows(site.op(), &weight)).view(rows.as_slice())
            }
            Some(Magnitude::OfColumns(magnitude)) => magnitude / self.norms_of_columns(site.op(), &weight),
            None => return weight + self.product(site.op()) * (self.scaling * scale),
        };
        let target = (&weight + self.product(site.op()) * self.scaling) * gain;
        &weight + (target - &weight) * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::site::Sites;
    use crate::adapters::{attach, TargetModules};
    use crate::weights::BaseWeight;
    use std::rc::Rc;
    use tch::Device;

    fn randn(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn one_site(op: Op, weight: &Tensor) -> Rc<Sites> {
        let sites = Sites::new();
        sites.register("m", op, BaseWeight::Dense(weight.shallow_clone()), None);
        sites
    }

    /// A DoRA of rank 2 and alpha 3 on `m`.
    fn put(sites: &Sites, a: &Tensor, b: &Tensor, magnitude: (&str, &Tensor)) -> Result<()> {
        let targets = Some(TargetModules::from_flag("m"));
        let config =
            LoraConfig { r: 2, lora_alpha: 3.0, use_dora: true, target_modules: targets, ..Default::default() };
        let (end, magnitude) = magnitude;
        let tensors = BTreeMap::from([
            (format!("m{A}"), a.shallow_clone()),
            (format!("m{B}"), b.shallow_clone()),
            (format!("m{end}"), magnitude.shallow_clone()),
        ]);
        attach(sites, "a", config, Init::Tensors(&tensors)).map(|_| ())
    }

    fn largest(difference: Tensor) -> f64 {
        difference.abs().max().double_value(&[])
    }

    #[test]
    fn magnitudes_scale_rows_or_columns() {
        let _turn = crate::libtorch::random::turn();
        let conv = Op::Conv2d(Stride { stride: 1, padding: 1 });
        let cases: [(Op, &[i64], &[i64]); 4] = [
            (Op::Linear, &[6, 6], &[5, 6]),
            (Op::Linear, &[6, 4], &[5, 4]),
            (conv, &[4, 4, 3, 3], &[2, 4, 5, 5]),
            (conv, &[5, 3, 3, 3], &[2, 3, 5, 5]),
        ];
        for (op, shape, input) in cases {
            for axis in [0_usize, 1] {
                let (weight, xs) = (randn(shape), randn(input));
                let a = randn(&[&[2][..], &shape[1..]].concat());
                let b = randn(&[&[shape[0], 2][..], &vec![1; shape.len() - 2]].concat());
                let n = shape[axis];
                let magnitude = randn(&[n]).abs() + 0.5;
                // Row by row, or column by column: the slice of W + 1.5·BA at its magnitude's length.
                let whole = &weight + b.flatten(1, -1).matmul(&a.flatten(1, -1)).view(shape) * 1.5;
                let slices: Vec<Tensor> = (0..n)
                    .map(|i| {
                        let slice = whole.select(axis as i64, i);
                        &slice * (magnitude.double_value(&[i]) / slice.norm().double_value(&[]))
                    })
                    .collect();
                let expected = Tensor::stack(&slices, axis as i64);
                let mut magnitude_shape = vec![1; shape.len()];
                magnitude_shape[1] = n;
                let named = match (axis, op) {
                    (0, Op::Linear) => (MAGNITUDE, magnitude.shallow_clone()),
                    (0, _) => (MAGNITUDE, magnitude.view(magnitude_shape.as_slice())),
                    _ => (COLUMN_MAGNITUDE, magnitude.view(magnitude_shape.as_slice())),
                };
                let sites = one_site(op, &weight);
                put(&sites, &a, &b, (named.0, &named.1)).unwrap();
                let site = sites.get("m").unwrap();
                assert!(largest(site.merged_weight() - &expected) < 1e-4, "{op:?} {shape:?}, axis {axis}");
                let ys = op.run(&xs, &expected, None);
                assert!(largest(site.forward(&xs) - ys) < 1e-3, "{op:?} {shape:?}, axis {axis}: the forward");
            }
        }
    }

    #[test]
    fn a_tensor_of_another_shape_is_not_reshaped_into_place() {
        let _turn = crate::libtorch::random::turn();
        let sites = one_site(Op::Linear, &randn(&[6, 4]));
        let (a, b, ones) = (randn(&[2, 4]), randn(&[6, 2]), randn(&[6]));
        put(&sites, &a.view([2, 4, 1, 1]), &b.view([6, 2, 1]), (MAGNITUDE, &ones.view([6, 1]))).unwrap();
        for (a, b, magnitude) in [
            (a.view([4, 2]), b.shallow_clone(), ones.shallow_clone()),
            (a.view([2, 2, 2]), b.shallow_clone(), ones.shallow_clone()),
            (a.shallow_clone(), b.view([2, 6]), ones.shallow_clone()),
            (a.shallow_clone(), b.shallow_clone(), ones.view([1, 6])),
            (a.shallow_clone(), b.shallow_clone(), ones.view([2, 3])),
        ] {
            let error = put(&one_site(Op::Linear, &randn(&[6, 4])), &a, &b, (MAGNITUDE, &magnitude)).err().unwrap();
            assert!(error.to_string().contains("does not fit this model"), "{error}");
        }
        let error = put(&sites, &a, &b, (COLUMN_MAGNITUDE, &randn(&[4, 1]))).err().unwrap();
        assert!(error.to_string().contains("magnitude"), "{error}");
    }
}
