//! Gradient checkpointing: a segment's activations are computed again in backward instead of being kept.
//! The same results as `torch.utils.checkpoint(use_reentrant=False)`: gradients reach parameters that the segment
//! holds even where none of its inputs needs one, and dropout draws the same mask again.

use super::failure::or_panic;
use super::{autograd_node, random};
use crate::error::Result;
use tch::{Device, Tensor};

/// A segment that C++ may call on its own device thread.
struct Segment<F>(F);
// SAFETY: autograd calls the segment while the thread that owns the model is blocked inside `backward`, so the tensors
// and reference counts that it holds are never touched by two threads at once.
unsafe impl<F> Send for Segment<F> {}

impl<F: Fn(&[Tensor]) -> Tensor> Segment<F> {
    fn run(&self, inputs: &[Tensor]) -> Tensor {
        (self.0)(inputs)
    }
}

/// `segment(inputs)`, keeping only the inputs for backward. `segment` runs twice and must compute the same each time.
/// Like every tensor operation in a forward it panics where libtorch fails; the step's boundary catches that.
pub fn checkpoint<F>(inputs: &[&Tensor], segment: F) -> Tensor
where
    F: Fn(&[Tensor]) -> Tensor + 'static,
{
    or_panic(checked(inputs, segment))
}

fn checked<F>(inputs: &[&Tensor], segment: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Tensor + 'static,
{
    let device = inputs.first().map_or(Device::Cpu, |input| input.device());
    let states = GeneratorStates::now(device)?;
    let detached: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let output = tch::no_grad(|| segment(&detached));
    drop(detached);
    let needs_grad: Vec<bool> = inputs.iter().map(|input| input.requires_grad()).collect();
    // A leaf of no elements makes the node exist although only parameters inside the segment need gradients.
    let anchor = Tensor::zeros([0], (tch::Kind::Float, device)).set_requires_grad(true);
    let mut all_inputs = inputs.to_vec();
    all_inputs.push(&anchor);
    let segment = Segment(segment);
    let recompute = move |grads: &[Option<Tensor>], saved: &[Tensor]| -> Result<Vec<Option<Tensor>>> {
        let before = GeneratorStates::now(device)?;
        states.restore(device)?;
        let leaves: Vec<Tensor> =
            saved.iter().zip(&needs_grad).map(|(input, &needs)| input.detach().set_requires_grad(needs)).collect();
        let output = tch::with_grad(|| segment.run(&leaves));
        before.restore(device)?;
        autograd_node::backward(&[&output], &[grads[0].as_ref()])?;
        let mut gradients: Vec<Option<Tensor>> =
            leaves.iter().map(|leaf| Some(leaf.grad()).filter(Tensor::defined)).collect();
        gradients.push(None);
        Ok(gradients)
    };
    autograd_node::attach(&all_inputs, inputs, &[&output], Box::new(recompute))?;
    Ok(output)
}

/// Where the global generators stood when a segment first ran.
struct GeneratorStates {
    cpu: Tensor,
    device: Option<Tensor>,
}

impl GeneratorStates {
    fn now(device: Device) -> Result<Self> {
        let on_device = match device {
            Device::Cuda(_) => Some(random::global_state(device)?),
            _ => None,
        };
        Ok(Self { cpu: random::global_state(Device::Cpu)?, device: on_device })
    }

    fn restore(&self, device: Device) -> Result<()> {
        random::set_global_state(Device::Cpu, &self.cpu)?;
        match &self.device {
            Some(state) => random::set_global_state(device, state),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn block(weight: &Tensor, xs: &Tensor) -> Tensor {
        xs.matmul(weight).gelu("none").dropout(0.3, true)
    }

    fn gradient_of(checkpointed: bool) -> (Tensor, Tensor) {
        tch::manual_seed(3);
        let weights: Vec<Tensor> =
            (0..3).map(|_| Tensor::randn([8, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true)).collect();
        let mut xs = Tensor::randn([4, 8], (Kind::Float, Device::Cpu));
        for weight in &weights {
            let held = weight.shallow_clone();
            xs = match checkpointed {
                true => checkpoint(&[&xs], move |inputs| block(&held, &inputs[0])),
                false => block(&held, &xs),
            };
        }
        let loss = xs.square().mean(Kind::Float);
        loss.backward();
        (loss.detach(), weights[0].grad())
    }

    #[test]
    fn checkpointing_changes_neither_loss_nor_gradients() {
        let _turn = random::turn();
        let (loss, grad) = gradient_of(false);
        let (loss_again, grad_again) = gradient_of(true);
        assert_eq!(loss, loss_again);
        assert_eq!(grad, grad_again);
        assert!(f64::try_from(grad.abs().max()).unwrap() > 0.);
    }
}
