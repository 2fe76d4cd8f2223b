//! Linear projections of one input with their low-rank changes as one node of the graph, on a CUDA device, which waits for the host between
//! small kernels: the input's gradient is added up inside the products, and those of A and B come out of them in float32.
//!
//! Shapes: m rows, k inputs, n outputs, r rank.

use super::site::Site;
use crate::error::Result;
use crate::libtorch::autograd_node;
use crate::libtorch::low_rank::{add_product, scaled_product, wide_product, Factor};
use crate::weights::BaseWeight;
use tch::{no_grad, Tensor};

/// What a low-rank adapter adds to a projection: `factor · B A`.
pub struct LowRank<'a> {
    /// `[r, k]`
    pub a: &'a Factor,
    /// `[n, r]`
    pub b: &'a Factor,
    /// What their product is multiplied by.
    pub factor: f64,
}

/// One projection's share in backward.
struct Share {
    weight: BaseWeight,
    low_rank: Option<Added>,
}

/// What backward knows of a projection's low-rank product.
struct Added {
    factor: f64,
    /// A and B have gradients.
    learns: bool,
}

/// The projections of `xs` `[m, k]` by `sites`: each `[m, n]`. `None` where one of them cannot take part.
///
/// Saved are of each low-rank product A, B and, where they learn, what A makes of `xs` times the factor; and `xs` once, at the end.
pub(super) fn project(sites: &[&Site], xs: &Tensor) -> Result<Option<Vec<Tensor>>> {
    let mut outputs = Vec::with_capacity(sites.len());
    let mut shares = Vec::with_capacity(sites.len());
    let (mut leaves, mut saved) = (Vec::new(), Vec::new());
    let input = xs.detach();
    for site in sites {
        let made = site.with_low_rank(|weight, bias, low_rank| -> Result<(Tensor, Share)> {
            let mut ys = no_grad(|| weight.run(site.op(), &input, bias)).detach();
            let Some(LowRank { a, b, factor }) = low_rank else {
                return Ok((ys, Share { weight: weight.share(), low_rank: None }));
            };
            let (a_copy, b_copy) = (a.in_kind(xs.kind())?, b.in_kind(xs.kind())?);
            let hidden = scaled_product(&input, &a_copy.tr(), factor)?; // [m, r]
            add_product(&mut ys, &hidden, &b_copy.tr())?;
            let learns = a.leaf().requires_grad() || b.leaf().requires_grad();
            leaves.extend([a.leaf().shallow_clone(), b.leaf().shallow_clone()]);
            saved.extend([a_copy, b_copy]);
            saved.extend(learns.then_some(hidden));
            Ok((ys, Share { weight: weight.share(), low_rank: Some(Added { factor, learns }) }))
        });
        let Some(made) = made else { return Ok(None) };
        let (ys, share) = made?;
        outputs.push(ys);
        shares.push(share);
    }
    if shares.iter().any(|share| share.low_rank.as_ref().is_some_and(|added| added.learns)) {
        saved.push(input);
    }
    let reaches_input = xs.requires_grad();
    let backward = move |grads: &[Option<Tensor>], saved: &[Tensor]| gradients(&shares, reaches_input, grads, saved);
    let inputs: Vec<&Tensor> = std::iter::once(xs).chain(&leaves).collect();
    autograd_node::attach(&inputs, &each(&saved), &each(&outputs), Box::new(backward))?;
    Ok(Some(outputs))
}

fn each(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}

/// Those of the input, and of A and B of each projection that has them, from what [`project`] saved.
fn gradients(
    shares: &[Share],
    reaches_input: bool,
    grads: &[Option<Tensor>],
    saved: &[Tensor],
) -> Result<Vec<Option<Tensor>>> {
    let _no_grad = tch::no_grad_guard();
    let mut rest = saved;
    let (mut to_xs, mut to_factors): (Option<Tensor>, Vec<Option<Tensor>>) = (None, Vec::new());
    for (share, grad) in shares.iter().zip(grads) {
        let grad = grad.as_ref();
        if let (true, Some(grad)) = (reaches_input, grad) {
            to_xs = Some(share.weight.add_input_gradient(to_xs, grad));
        }
        let Some(&Added { factor, learns }) = share.low_rank.as_ref() else { continue };
        let (a, b, hidden) = (&rest[0], &rest[1], learns.then(|| &rest[2]));
        rest = &rest[2 + usize::from(learns)..];
        let Some(grad) = grad else {
            to_factors.extend([None, None]);
            continue;
        };
        let to_hidden = scaled_product(grad, b, factor)?; // [m, r]
        if let Some(to_xs) = &mut to_xs {
            add_product(to_xs, &to_hidden, a)?;
        }
        let xs = hidden.and(saved.last());
        to_factors.push(xs.map(|xs| wide_product(&to_hidden.tr(), xs)).transpose()?);
        to_factors.push(hidden.map(|hidden| wide_product(&grad.tr(), hidden)).transpose()?);
    }
    Ok(std::iter::once(to_xs).chain(to_factors).collect())
}
