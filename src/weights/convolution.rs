//! Convolutions by frozen weights. Only the input has a gradient, so nothing is kept for the backward pass (libtorch would keep
//! the input), and on the CPU the quicker of two ways is taken.
//!
//! oneDNN reorders a convolution's weight on each call. At the low resolutions of a UNet the weight is far larger than the image
//! (1280 x 1280 x 3 x 3 for 8 x 8 places), and the reordering costs several times the arithmetic. Laying the image out instead
//! (im2col) costs little there.
//!
//! Shapes: b batch, c input channels, o output channels, h and w input size, y and x output size, k kernel.

use crate::libtorch::autograd_node;
use crate::libtorch::failure::or_panic;
use crate::libtorch::planned::device_of;
use tch::{Device, Kind, Tensor};

/// Step and padding of a square kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// Step of the kernel in both directions.
    pub stride: i64,
    /// Zeros added at each side.
    pub padding: i64,
}

/// The convolution of `xs` `[b, c, h, w]` by `weight` `[o, c, k, k]`: `[b, o, y, x]`.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, Stride { stride, padding }: Stride) -> Tensor {
    if weight.requires_grad() || bias.is_some_and(|bias| bias.requires_grad()) {
        return xs.conv2d(weight, bias, [stride; 2], [padding; 2], [1, 1], 1);
    }
    let convolution = Convolution::of(&xs.size(), weight, stride, padding);
    // No view, which could not be added to in place where gradients flow.
    let ys = tch::no_grad(|| convolution.forward(xs, weight, bias)).detach();
    let weight = weight.shallow_clone();
    with_gradient(xs, ys, move |grad| convolution.input_gradient(grad, &weight))
}

/// The gradient of an input of shape `[b, c, h, w]`, from that of the output `[b, o, y, x]`.
pub(super) fn conv2d_input_gradient(grad: &Tensor, weight: &Tensor, input: &[i64], stride: Stride) -> Tensor {
    let Stride { stride, padding } = stride;
    Convolution::of(input, weight, stride, padding).input_gradient(grad, weight)
}

/// `ys`, computed from `xs` without a gradient, with this one.
fn with_gradient(xs: &Tensor, ys: Tensor, gradient: impl Fn(&Tensor) -> Tensor + Send + 'static) -> Tensor {
    let backward = move |grads: &[Option<Tensor>], _: &[Tensor]| Ok(vec![grads[0].as_ref().map(&gradient)]);
    or_panic(autograd_node::attach(&[xs], &[], &[&ys], Box::new(backward)));
    ys
}

/// The sizes of a convolution.
#[derive(Clone, Copy)]
struct Convolution {
    batch: i64,
    inputs: i64,
    outputs: i64,
    kernel: i64,
    stride: i64,
    padding: i64,
    /// Height and width that come in.
    from: (i64, i64),
    /// Height and width that go out.
    to: (i64, i64),
}

/// How a convolution is computed.
enum Way {
    /// As a linear layer of each place.
    Projection,
    /// As a product with what the kernel sees at each place, laid out.
    Columns,
    /// By libtorch.
    Library,
}

impl Convolution {
    fn of(input: &[i64], weight: &Tensor, stride: i64, padding: i64) -> Self {
        let (&[batch, inputs, height, width], &[outputs, _, kernel, _]) = (input, weight.size().as_slice()) else {
            unreachable!("a convolution takes [b, c, h, w] and [o, c, k, k]")
        };
        let out = |size: i64| (size + 2 * padding - kernel) / stride + 1;
        let to = (out(height), out(width));
        Self { batch, inputs, outputs, kernel, stride, padding, from: (height, width), to }
    }

    fn columns_are_smaller_than_weight(self) -> bool {
        self.batch * self.to.0 * self.to.1 <= self.outputs
    }

    /// A kernel of one place projects each place by itself.
    fn is_a_projection(self) -> bool {
        (self.kernel, self.stride, self.padding) == (1, 1, 0)
    }

    fn forward(self, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self.way(device_of(xs)) {
            Way::Projection => {
                let rows = xs.permute([0, 2, 3, 1]).reshape([-1, self.inputs]); // [b·h·w, c]
                self.to_image(&rows.linear(&weight.view([self.outputs, self.inputs]), bias))
            }
            Way::Columns => self.to_image(&self.columns(xs).linear(&self.matrix(weight), bias)),
            Way::Library => xs.conv2d(weight, bias, [self.stride; 2], [self.padding; 2], [1, 1], 1),
        }
    }

    /// `[b, o, y, x] -> [b, c, h, w]`
    fn input_gradient(self, grad: &Tensor, weight: &Tensor) -> Tensor {
        let rows = || grad.permute([0, 2, 3, 1]).reshape([-1, self.outputs]); // [b·y·x, o]
        match self.way(device_of(grad)) {
            Way::Projection => {
                let rows = rows().mm(&weight.view([self.outputs, self.inputs]));
                rows.view([self.batch, self.from.0, self.from.1, self.inputs]).permute([0, 3, 1, 2])
            }
            Way::Columns => self.gathered(&rows().mm(&self.matrix(weight))),
            Way::Library => self.transpose(grad, weight),
        }
    }

    fn way(self, device: Device) -> Way {
        match device {
            _ if self.is_a_projection() => Way::Projection,
            Device::Cpu if self.columns_are_smaller_than_weight() => Way::Columns,
            _ => Way::Library,
        }
    }

    /// The transposed convolution, which is the gradient: `[b, o, y, x] -> [b, c, h, w]`
    fn transpose(self, grad: &Tensor, weight: &Tensor) -> Tensor {
        let cut = |from: i64, to: i64| from + 2 * self.padding - self.kernel - (to - 1) * self.stride;
        let cut = [cut(self.from.0, self.to.0), cut(self.from.1, self.to.1)];
        grad.conv_transpose2d(weight, None::<&Tensor>, [self.stride; 2], [self.padding; 2], cut, 1, [1, 1])
    }

    /// `[b·y·x, o] -> [b, o, y, x]`, channels-last as it lies
    fn to_image(self, rows: &Tensor) -> Tensor {
        rows.view([self.batch, self.to.0, self.to.1, self.outputs]).permute([0, 3, 1, 2])
    }

    /// The weight as a matrix, as it lies channels-last: `[o, k·k·c]`
    fn matrix(self, weight: &Tensor) -> Tensor {
        weight.permute([0, 2, 3, 1]).reshape([self.outputs, -1])
    }

    /// What the kernel sees at each place: `[b, c, h, w] -> [b·y·x, k·k·c]`
    fn columns(self, xs: &Tensor) -> Tensor {
        let pad = self.padding;
        let padded = xs.permute([0, 2, 3, 1]).constant_pad_nd([0, 0, pad, pad, pad, pad]).contiguous();
        let strides = padded.stride();
        let (line, place) = (strides[1], strides[2]);
        let shape = [self.batch, self.to.0, self.to.1, self.kernel, self.kernel * self.inputs];
        let steps = [strides[0], line * self.stride, place * self.stride, line, 1];
        padded.as_strided(shape, steps, None).reshape([-1, self.kernel * self.kernel * self.inputs])
    }

    /// The transpose of [`Self::columns`]: what all places say of an input, added up. `[b·y·x, k·k·c] -> [b, c, h, w]`
    fn gathered(self, columns: &Tensor) -> Tensor {
        let (height, width) = self.from;
        let (y, x) = self.to;
        let columns = columns.view([self.batch, y, x, self.kernel, self.kernel, self.inputs]);
        let (tall, wide) = (height + 2 * self.padding, width + 2 * self.padding);
        let sum = Tensor::zeros([self.batch, tall, wide, self.inputs], (Kind::Float, columns.device()));
        for row in 0..self.kernel {
            for column in 0..self.kernel {
                let last = |first: i64, count: i64| first + (count - 1) * self.stride + 1;
                let mut place = sum.slice(1, row, last(row, y), self.stride);
                place = place.slice(2, column, last(column, x), self.stride);
                let _ = place.g_add_(&columns.select(3, row).select(3, column));
            }
        }
        let sum = sum.narrow(1, self.padding, height).narrow(2, self.padding, width);
        sum.to_kind(columns.kind()).permute([0, 3, 1, 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        ((a - b).abs().max() / b.abs().max()).double_value(&[])
    }

    #[test]
    fn both_ways_convolve_as_libtorch_does() {
        let mut generator = Generator::new(1);
        for (kernel, stride, padding, height) in [(3, 1, 1, 4), (3, 2, 1, 5), (3, 2, 0, 7), (1, 1, 0, 4), (5, 3, 2, 6)]
        {
            let image = generator.randn(&[2, 6, height, 3 + kernel]);
            let run = |convolve: &dyn Fn(&Tensor) -> Tensor, grad: &Tensor| {
                let xs = image.copy().set_requires_grad(true);
                // In place, as the UNet adds the time embedding.
                let mut ys = convolve(&xs);
                ys += 1.0;
                (&ys * grad).sum(Kind::Float).backward();
                (ys, xs.grad())
            };
            for outputs in [3, 80] {
                let weight = generator.randn(&[outputs, 6, kernel, kernel]);
                let (bias, grad) = (generator.randn(&[outputs]), generator.randn(&[2, outputs, 1, 1]));
                let small = Convolution::of(&image.size(), &weight, stride, padding).columns_are_smaller_than_weight();
                assert_eq!(small, outputs == 80);
                let (ys, gradient) = run(&|xs| conv2d(xs, &weight, Some(&bias), Stride { stride, padding }), &grad);
                let (wanted, wanted_gradient) =
                    run(&|xs| xs.conv2d(&weight, Some(&bias), [stride; 2], [padding; 2], [1, 1], 1), &grad);
                assert_eq!(ys.size(), wanted.size());
                for (actual, wanted) in [(&ys, &wanted), (&gradient, &wanted_gradient)] {
                    let error = difference(actual, wanted);
                    assert!(error < 1e-6, "kernel {kernel}, stride {stride}, {outputs} outputs: {error}");
                }
            }
        }
    }

    #[test]
    fn a_weight_that_learns_gets_its_gradient() {
        let mut generator = Generator::new(1);
        let weight = generator.randn(&[40, 6, 3, 3]).set_requires_grad(true);
        let sizes = Stride { stride: 1, padding: 1 };
        conv2d(&generator.randn(&[1, 6, 4, 4]), &weight, None, sizes).sum(Kind::Float).backward();
        assert!(weight.grad().defined());
    }
}
