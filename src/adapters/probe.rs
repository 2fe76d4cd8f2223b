//! Finds the first layer of a forward, or of a backward, that makes an infinity or a NaN of numbers.

use crate::libtorch::autograd_node;
use crate::libtorch::failure::or_panic;
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Kind, Tensor};

/// What looks on, for one network of those that compute together.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    network: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The layer that was seen last.
    last: Option<String>,
    found: Option<Lost>,
}

/// Where numbers were lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The layer, behind the name of its network where there are several.
    pub layer: String,
    /// In its gradient, not in its output.
    pub in_backward: bool,
}

impl Lost {
    /// Where, in words: the output of a layer, or its gradient.
    pub fn in_words(&self) -> String {
        let what = if self.in_backward { "the gradient of the output" } else { "the output" };
        format!("{what} of `{}`", self.layer)
    }
}

impl Probe {
    /// The same look at the network `name`.
    pub fn of_network(&self, name: &str) -> Self {
        Self { network: name.to_owned(), seen: self.seen.clone() }
    }

    /// What was found.
    pub fn found(&self) -> Option<Lost> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).found.clone()
    }

    /// Looks at what the layer at `path` made of `xs`, and gives it back. Waits for the device.
    pub(super) fn see(&self, path: &str, xs: &Tensor, ys: Tensor) -> Tensor {
        let layer = match self.network.as_str() {
            "" => path.to_owned(),
            network => format!("{network}.{path}"),
        };
        if !self.is_done() && !is_finite(&ys) {
            // Lost between two layers, in a sum or a product: the one before made numbers that were too large for it.
            let before = self.seen.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
            let made_before = before.filter(|_| !is_finite(xs));
            self.note(made_before.unwrap_or_else(|| layer.clone()), false);
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last = Some(layer.clone());
        self.watched(layer, ys)
    }

    /// `ys`, whose gradient is looked at when it comes.
    fn watched(&self, layer: String, ys: Tensor) -> Tensor {
        // No view, which could not be added to in place.
        let same = tch::no_grad(|| &ys * 1.0);
        let probe = self.clone();
        let look = move |grads: &[Option<Tensor>], _: &[Tensor]| {
            let grad = grads[0].as_ref().map(Tensor::shallow_clone);
            if !probe.is_done() && grad.as_ref().is_some_and(|grad| !is_finite(grad)) {
                probe.note(layer.clone(), true);
            }
            Ok(vec![grad])
        };
        or_panic(autograd_node::attach(&[&ys], &[], &[&same], Box::new(look)));
        same
    }

    fn is_done(&self) -> bool {
        self.found().is_some()
    }

    fn note(&self, layer: String, in_backward: bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.found.get_or_insert(Lost { layer, in_backward });
    }
}

/// Whether all of `xs` are numbers.
fn is_finite(xs: &Tensor) -> bool {
    xs.isfinite().all().to_kind(Kind::Int64).int64_value(&[]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    #[test]
    fn the_first_layer_whose_output_is_lost_is_found_or_the_one_before_where_its_input_is_lost_already() {
        let probe = Probe::default();
        let (unet, vae) = (probe.of_network("unet"), probe.of_network("vae"));
        let _ = vae.see("conv", &row(&[1.]), row(&[2.]));
        assert_eq!(probe.found(), None);
        let _ = unet.see("a", &row(&[f32::INFINITY]), row(&[f32::NAN]));
        assert_eq!(probe.found(), Some(Lost { layer: "vae.conv".into(), in_backward: false }));
        let _ = unet.see("b", &row(&[1.]), row(&[f32::NAN]));
        assert_eq!(probe.found().unwrap().layer, "vae.conv");

        let alone = Probe::default();
        let _ = alone.see("a", &row(&[1.]), row(&[2.]));
        let _ = alone.see("b", &row(&[2.]), row(&[f32::NEG_INFINITY]));
        assert_eq!(alone.found().unwrap().layer, "b");
    }

    #[test]
    fn a_gradient_is_looked_at_where_the_outputs_are_numbers() {
        let probe = Probe::default();
        let xs = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let ys = probe.see("a", &xs, &xs * 2.0);
        let ys = probe.see("b", &ys, &ys + 0.0);
        // The root's slope at 0 is none.
        ys.sqrt().sum(Kind::Float).backward();
        assert_eq!(probe.found(), Some(Lost { layer: "b".into(), in_backward: true }));
    }
}
