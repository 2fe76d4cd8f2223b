//! Cross entropy through a projection to a large vocabulary, whose logits never exist all at once: a part of the rows is projected
//! and learnt from at a time, and the gradient of its hidden states takes the logits' place (as Liger Kernel's fused linear cross
//! entropy does it, arXiv 2410.10989).
//!
//! Shapes: n rows, d width, v vocabulary.

use crate::error::Result;
use crate::libtorch::autograd_node;
use tch::{no_grad, with_grad, Kind, Tensor};

/// Logits that exist at once: 128 MiB of float32. A part's product should stay large enough to be computed at full speed.
const LOGITS_AT_ONCE: i64 = 1 << 25;
/// Logits whose probabilities exist at once beside them: few enough for a processor's cache.
const PROBABILITIES_AT_ONCE: i64 = 1 << 21;

/// Mean cross entropy, in float32, of `labels` `[n]` given `hidden` `[n, d]` through `logits` `[n, d] -> [n, v]`, whose outputs are
/// overwritten: the same as `torch.nn.functional.cross_entropy(logits(hidden).float(), labels)`.
pub fn mean_cross_entropy(hidden: &Tensor, labels: &Tensor, logits: impl Fn(&Tensor) -> Tensor) -> Result<Tensor> {
    in_parts(hidden, labels, LOGITS_AT_ONCE, logits)
}

fn in_parts(hidden: &Tensor, labels: &Tensor, at_once: i64, logits: impl Fn(&Tensor) -> Tensor) -> Result<Tensor> {
    let rows = hidden.size()[0];
    // A projection that learns itself needs the usual graph. No row at all tells: nothing is computed, and dropout draws nothing.
    let learns = with_grad(|| logits(&hidden.detach().narrow(0, 0, 0)));
    if rows == 0 || learns.requires_grad() {
        return Ok(logits(hidden).to_kind(Kind::Float).cross_entropy_for_logits(labels));
    }
    let part_rows = (at_once / learns.size()[1]).max(1);
    drop(learns);
    let needs_gradient = hidden.requires_grad();
    let (mut sum, mut gradients) = (Tensor::zeros([], (Kind::Float, hidden.device())), Vec::new());
    for first in (0..rows).step_by(part_rows as usize) {
        let count = part_rows.min(rows - first);
        let part = hidden.detach().narrow(0, first, count).set_requires_grad(needs_gradient);
        let labels = labels.narrow(0, first, count).unsqueeze(1);
        let made = if needs_gradient { with_grad(|| logits(&part)) } else { no_grad(|| logits(&part)) };
        sum += no_grad(|| into_gradient(&made.detach(), &labels));
        if needs_gradient {
            autograd_node::backward(&[&made], &[Some(&made.detach())])?;
            gradients.push(part.grad());
        }
    }
    let mean = sum / rows as f64;
    if needs_gradient {
        let gradient = no_grad(|| Tensor::cat(&gradients, 0));
        let backward = move |grads: &[Option<Tensor>], saved: &[Tensor]| {
            let scaled = |grad: &Tensor| saved[0].to_kind(Kind::Float) * (grad / rows as f64);
            Ok(vec![grads[0].as_ref().map(|grad| scaled(grad).to_kind(saved[0].kind()))])
        };
        autograd_node::attach(&[hidden], &[&gradient], &[&mean], Box::new(backward))?;
    }
    Ok(mean)
}

/// The sum of the cross entropies of `logits` `[n, v]`, which are overwritten by the sum's gradient: their probabilities, less 1 at
/// the labels `[n, 1]`. The mean's would be too small for float16.
fn into_gradient(logits: &Tensor, labels: &Tensor) -> Tensor {
    let rows = logits.size();
    let (rows, at_once) = (rows[0], (PROBABILITIES_AT_ONCE / rows[1]).max(1));
    let mut sum = Tensor::zeros([], (Kind::Float, logits.device()));
    for first in (0..rows).step_by(at_once as usize) {
        let count = at_once.min(rows - first);
        let (mut logits, labels) = (logits.narrow(0, first, count), labels.narrow(0, first, count));
        let mut logarithms = logits.log_softmax(-1, Kind::Float);
        sum -= logarithms.gather(1, &labels, false).sum(Kind::Float);
        let less_one = Tensor::full([count, 1], -1.0, (Kind::Float, logits.device()));
        logits.copy_(&logarithms.exp_().scatter_add_(1, &labels, &less_one));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::{seed_globally, turn, Generator};
    use tch::Device;

    /// Loss and gradients of the hidden states and of the projection, where it learns.
    fn learnt(trained: bool, loss: impl Fn(&Tensor, &Tensor, &dyn Fn(&Tensor) -> Tensor) -> Tensor) -> Vec<Tensor> {
        let mut generator = Generator::new(3);
        let hidden = generator.randn(&[10, 6]).set_requires_grad(true);
        let weight = generator.randn(&[40, 6]).set_requires_grad(trained);
        let labels = generator.randint(0, 40, &[10]);
        let loss = loss(&hidden, &labels, &|rows| rows.matmul(&weight.tr()));
        (&loss * 3.0).backward();
        let all = [loss.detach(), hidden.grad(), weight.grad()];
        all.into_iter().filter(Tensor::defined).collect()
    }

    #[test]
    fn parts_learn_what_the_whole_learns() {
        for trained in [false, true] {
            let whole = learnt(trained, |hidden, labels, logits| logits(hidden).cross_entropy_for_logits(labels));
            for at_once in [40 * 3, 40 * 10, 1] {
                let parts =
                    learnt(trained, |hidden, labels, logits| in_parts(hidden, labels, at_once, logits).unwrap());
                assert_eq!(parts.len(), whole.len());
                for (part, whole) in parts.iter().zip(&whole) {
                    assert!(part.allclose(whole, 1e-5, 1e-7, false), "{at_once}: {part} {whole}");
                }
            }
        }
    }

    #[test]
    fn a_projection_with_dropout_draws_once() {
        let _turn = turn();
        let seeded = || seed_globally(Device::Cpu, 9).unwrap();
        let whole = learnt(true, |hidden, labels, logits| {
            seeded();
            logits(&hidden.dropout(0.5, true)).cross_entropy_for_logits(labels)
        });
        let parts = learnt(true, |hidden, labels, logits| {
            seeded();
            in_parts(hidden, labels, 40, |rows| logits(&rows.dropout(0.5, true))).unwrap()
        });
        assert_eq!(parts, whole);
    }

    #[test]
    fn without_gradients_it_is_the_loss_alone() {
        let hidden = Generator::new(1).randn(&[4, 5]);
        let loss = in_parts(&hidden, &Tensor::from_slice(&[0i64, 4, 2, 2]), 10, |rows| rows * 1.0).unwrap();
        assert!(!loss.requires_grad());
        assert!(loss.allclose(
            &hidden.cross_entropy_for_logits(&Tensor::from_slice(&[0i64, 4, 2, 2])),
            1e-6,
            0.0,
            false
        ));
    }
}
