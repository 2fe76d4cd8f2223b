//! Products in bfloat16 and float16 on processors without units for them: computed in float32, one operation at a time.
//!
//! The C++ side registers its kernels when the program is loaded, and only on such processors.

use tch::Kind;

extern "C" {
    fn lorabooth_has_half_units(bfloat16: bool) -> bool;
}

/// Whether libtorch's own kernels for the CPU multiply and convolve in `kind`; true of all but bfloat16 and float16.
pub fn has_units(kind: Kind) -> bool {
    match kind {
        // SAFETY: asks for a fact about the processor.
        Kind::BFloat16 | Kind::Half => unsafe { lorabooth_has_half_units(kind == Kind::BFloat16) },
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;
    use tch::Tensor;

    type Compute = dyn Fn(&[Tensor]) -> Tensor;

    /// What `compute` gives of `inputs` in `kind`, and its gradients for them, each next to that in float64 of the same numbers.
    fn beside_exact(kind: Kind, compute: &Compute, inputs: &[Tensor]) -> Vec<(Tensor, Tensor)> {
        let narrow: Vec<Tensor> = inputs.iter().map(|xs| xs.to_kind(kind)).collect();
        let run = |kind: Kind| {
            let xs: Vec<Tensor> =
                narrow.iter().map(|xs| xs.detach().to_kind(kind).copy().set_requires_grad(true)).collect();
            let ys = compute(&xs);
            let grad = Generator::new(7).randn(&ys.size()).to_kind(narrow[0].kind()).to_kind(kind);
            (&ys * grad).sum(kind).backward();
            let mut results = vec![ys.detach()];
            results.extend(xs.iter().map(Tensor::grad));
            results
        };
        run(kind).into_iter().zip(run(Kind::Double)).collect()
    }

    #[test]
    fn narrow_operations_round_once_and_stay_narrow() {
        let mut generator = Generator::new(1);
        let mut drawn = |shape: &[i64]| generator.randn(shape);
        let none = None::<&Tensor>;
        let operations: Vec<(&str, Box<Compute>, Vec<Tensor>)> = vec![
            ("mm", Box::new(|xs| xs[0].mm(&xs[1])), vec![drawn(&[9, 33]), drawn(&[33, 7])]),
            ("few rows", Box::new(|xs| xs[0].mm(&xs[1].tr())), vec![drawn(&[2, 33]), drawn(&[7, 33])]),
            (
                "linear",
                Box::new(|xs| xs[0].linear(&xs[1], Some(&xs[2]))),
                vec![drawn(&[2, 9, 33]), drawn(&[7, 33]), drawn(&[7])],
            ),
            (
                "addmm_",
                Box::new(|xs| (&xs[0] * 1.0).addmm_(&xs[1], &xs[2])),
                vec![drawn(&[9, 7]), drawn(&[9, 33]), drawn(&[33, 7])],
            ),
            ("bmm", Box::new(|xs| xs[0].bmm(&xs[1])), vec![drawn(&[3, 9, 33]), drawn(&[3, 33, 7])]),
            (
                "baddbmm",
                Box::new(|xs| xs[0].baddbmm(&xs[1], &xs[2], 0.5, 2.0)),
                vec![drawn(&[3, 9, 7]), drawn(&[3, 9, 33]), drawn(&[3, 33, 7])],
            ),
            (
                "conv2d",
                Box::new(|xs| xs[0].conv2d(&xs[1], Some(&xs[2]), [2, 2], [1, 1], [1, 1], 1)),
                vec![drawn(&[2, 8, 9, 9]), drawn(&[6, 8, 3, 3]), drawn(&[6])],
            ),
            (
                "conv_transpose2d",
                Box::new(move |xs| xs[0].conv_transpose2d(&xs[1], none, [2, 2], [1, 1], [1, 1], 1, [1, 1])),
                vec![drawn(&[2, 8, 9, 9]), drawn(&[8, 6, 3, 3])],
            ),
            (
                "attention",
                Box::new(move |xs| {
                    Tensor::scaled_dot_product_attention(&xs[0], &xs[1], &xs[2], none, 0.0, true, None, false)
                }),
                vec![drawn(&[2, 4, 33, 16]), drawn(&[2, 4, 33, 16]), drawn(&[2, 4, 33, 16])],
            ),
        ];
        for (kind, rounding) in [(Kind::BFloat16, 2f64.powi(-8)), (Kind::Half, 2f64.powi(-11))] {
            for (name, compute, inputs) in &operations {
                for (i, (actual, exact)) in beside_exact(kind, compute, inputs).into_iter().enumerate() {
                    assert_eq!(actual.kind(), kind, "{name}, result {i}");
                    let error = ((actual.to_kind(Kind::Double) - &exact).norm() / exact.norm()).double_value(&[]);
                    // The gradients of attention pass through a rounded output.
                    assert!(error < 2.0 * rounding, "{name} in {kind:?}, result {i}: {error}");
                }
            }
        }
    }

    #[test]
    fn operands_of_two_dtypes_are_refused() {
        let (a, b) = (Generator::new(1).randn(&[3, 3]), Generator::new(2).randn(&[3, 3]));
        for kind in [Kind::BFloat16, Kind::Half] {
            assert!(a.to_kind(kind).f_mm(&b).is_err());
            assert!(a.f_mm(&b.to_kind(kind)).is_err());
        }
    }

    #[test]
    fn products_of_bytes_are_exact() {
        let bytes =
            |shape: &[i64], seed: i64| (Generator::new(seed).randn(shape) * 100.0).clamp(-128, 127).to_kind(Kind::Int8);
        for (rows, columns) in [(1, 20), (50, 7)] {
            let (a, b) = (bytes(&[rows, 3000], 1), bytes(&[3000, columns], 2));
            let exact = a.to_kind(Kind::Double).mm(&b.to_kind(Kind::Double));
            assert_eq!(a.internal_int_mm(&b).to_kind(Kind::Double), exact);
        }
    }
}
