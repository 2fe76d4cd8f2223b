//! A low-rank product added to a linear layer's output by one autograd node, and copies of its factors in the dtype that computes.

use super::failure::or_panic;
use super::{check, handles, made, raw};
use crate::error::Result;
use std::cell::RefCell;
use std::ffi::c_char;
use std::rc::{Rc, Weak};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_add_low_rank(
        ys: *mut C_tensor,
        xs: *mut C_tensor,
        a: *mut C_tensor,
        b: *mut C_tensor,
        a_copy: *mut C_tensor,
        b_copy: *mut C_tensor,
        factor: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn lorabooth_scaled_product(
        x: *mut C_tensor,
        y: *mut C_tensor,
        factor: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn lorabooth_wide_product(x: *mut C_tensor, y: *mut C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_add_product(sum: *mut C_tensor, x: *mut C_tensor, y: *mut C_tensor) -> *mut c_char;
    fn lorabooth_version(tensor: *mut C_tensor, out: *mut i64) -> *mut c_char;
    fn lorabooth_copy_all(to: *const *mut C_tensor, from: *const *mut C_tensor, n: i64) -> *mut c_char;
}

/// `ys + factor · xs Aᵀ Bᵀ`, in the memory of `ys`. Shapes: `xs` `[m, in]`, `a` `[r, in]`, `b` `[out, r]`, `ys` `[m, out]`, which is no
/// view. Gradients reach the leaves of `a` and `b`.
/// Like every tensor operation in a forward it panics where libtorch fails; the step's boundary catches that.
pub fn add_low_rank(ys: Tensor, xs: &Tensor, a: &Factor, b: &Factor, factor: f64) -> Tensor {
    let kind = xs.kind();
    let added = a.in_kind(kind).and_then(|a_copy| {
        let b_copy = b.in_kind(kind)?;
        let mut out = std::ptr::null_mut();
        // SAFETY: the handles live through the call; on success `out` is a new handle that is ours.
        unsafe {
            check(lorabooth_add_low_rank(
                raw(&ys),
                raw(xs),
                raw(&a.0.leaf),
                raw(&b.0.leaf),
                raw(&a_copy),
                raw(&b_copy),
                factor,
                &mut out,
            ))?;
            Ok(Tensor::from_ptr(out))
        }
    });
    or_panic(added)
}

/// `factor · x y` in the dtype of `x`, whose numbers are finite. Without a gradient.
pub fn scaled_product(x: &Tensor, y: &Tensor, factor: f64) -> Result<Tensor> {
    // SAFETY: living handles.
    let product = made(|out| unsafe { lorabooth_scaled_product(raw(x), raw(y), factor, out) })?;
    Ok(product.unwrap_or_default())
}

/// `x y` in float32. Without a gradient.
pub fn wide_product(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    // SAFETY: living handles.
    let product = made(|out| unsafe { lorabooth_wide_product(raw(x), raw(y), out) })?;
    Ok(product.unwrap_or_default())
}

/// Adds `x y` to `sum`, in place and without a gradient.
pub fn add_product(sum: &mut Tensor, x: &Tensor, y: &Tensor) -> Result<()> {
    // SAFETY: living handles.
    check(unsafe { lorabooth_add_product(raw(sum), raw(x), raw(y)) })
}

fn version(tensor: &Tensor) -> Result<i64> {
    let mut out = 0;
    // SAFETY: a living handle, and a place for the number.
    check(unsafe { lorabooth_version(raw(tensor), &mut out) })?;
    Ok(out)
}

/// Copies each of `from` over its `to`, in one launch for all where the device can.
fn copy_all(to: &[Tensor], from: &[Tensor]) -> Result<()> {
    let (to, from) = (handles(to), handles(from));
    // SAFETY: two lists of as many living handles.
    check(unsafe { lorabooth_copy_all(to.as_ptr(), from.as_ptr(), to.len().min(from.len()) as i64) })
}

/// The factors that change together, at an optimizer's step: where one of them is found changed, the copies of all are made anew.
#[derive(Default)]
pub struct Factors(Rc<RefCell<Vec<Weak<Kept>>>>);

/// One of two factors: a float32 leaf, and its numbers in the dtype that computes.
pub struct Factor(Rc<Kept>);

struct Kept {
    leaf: Tensor,
    copy: RefCell<Option<Copy>>,
    group: Rc<RefCell<Vec<Weak<Kept>>>>,
}

struct Copy {
    tensor: Tensor,
    /// The leaf's when it was made.
    version: i64,
}

impl Factors {
    /// A factor of these whose numbers are those of `leaf`.
    pub fn add(&self, leaf: Tensor) -> Factor {
        let kept = Rc::new(Kept { leaf, copy: RefCell::new(None), group: self.0.clone() });
        let mut group = self.0.borrow_mut();
        group.retain(|other| other.strong_count() > 0);
        group.push(Rc::downgrade(&kept));
        Factor(kept)
    }
}

impl Factor {
    /// The float32 leaf.
    pub fn leaf(&self) -> &Tensor {
        &self.0.leaf
    }

    /// Its present numbers in `kind`, without a gradient: the leaf's own in float32.
    pub fn in_kind(&self, kind: Kind) -> Result<Tensor> {
        let Kept { leaf, copy, group } = &*self.0;
        if kind == leaf.kind() {
            return Ok(leaf.detach());
        }
        let now = version(leaf)?;
        let of_kind = |copy: &&Copy| copy.tensor.kind() == kind;
        let present = copy.borrow().as_ref().filter(of_kind).map(|copy| (copy.tensor.shallow_clone(), copy.version));
        match present {
            // In the same memory where it has to be made anew.
            Some((tensor, made)) if made == now => Ok(tensor),
            Some((tensor, _)) => refresh(&group.borrow(), kind).map(|()| tensor),
            None => {
                let tensor = tch::no_grad(|| leaf.detach().f_to_kind(kind))?;
                *copy.borrow_mut() = Some(Copy { tensor: tensor.shallow_clone(), version: now });
                Ok(tensor)
            }
        }
    }
}

/// Makes the copies of all of `group` anew whose leaf has changed.
fn refresh(group: &[Weak<Kept>], kind: Kind) -> Result<()> {
    let (mut to, mut from) = (Vec::new(), Vec::new());
    for kept in group.iter().filter_map(Weak::upgrade) {
        let now = version(&kept.leaf)?;
        let mut copy = kept.copy.borrow_mut();
        if let Some(copy) = copy.as_mut().filter(|copy| copy.version != now && copy.tensor.kind() == kind) {
            copy.version = now;
            to.push(copy.tensor.shallow_clone());
            from.push(kept.leaf.detach());
        }
    }
    copy_all(&to, &from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::fused_adamw::{adamw_step, decay_and_add, AdamWStep};
    use crate::libtorch::random::Generator;
    use tch::Device;

    /// The output and the gradients of the input, A, B and the layer's own weight, in `kind`.
    fn computed(kind: Kind, add: impl Fn(Tensor, &Tensor, &Factor, &Factor) -> Tensor) -> Vec<Tensor> {
        let mut generator = Generator::new(3);
        let mut leaf = |shape: &[i64]| generator.randn(shape).set_requires_grad(true);
        let (xs, w, a, b) = (leaf(&[5, 12]), leaf(&[9, 12]), leaf(&[3, 12]), leaf(&[9, 3]));
        let factors = Factors::default();
        let (a, b) = (factors.add(a), factors.add(b));
        let narrow = xs.to_kind(kind);
        let ys = add(narrow.linear(&w.to_kind(kind), None::<&Tensor>), &narrow, &a, &b);
        (ys.to_kind(Kind::Float).square()).sum(Kind::Float).backward();
        vec![ys.detach(), xs.grad(), a.leaf().grad(), b.leaf().grad(), w.grad()]
    }

    #[test]
    fn outputs_and_gradients_are_those_of_the_operations_one_by_one() {
        for (kind, bound) in [(Kind::Double, 1e-6), (Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
            let fused = computed(kind, |ys, xs, a, b| add_low_rank(ys, xs, a, b, 0.7));
            let plain = computed(kind, |ys, xs, a, b| {
                let hidden = xs.linear(&a.leaf().to_kind(kind), None::<&Tensor>);
                ys + hidden.linear(&b.leaf().to_kind(kind), None::<&Tensor>) * 0.7
            });
            for (fused, plain) in fused.iter().zip(&plain) {
                assert_eq!((fused.kind(), fused.size()), (plain.kind(), plain.size()));
                let error = ((fused - plain).abs().max() / plain.abs().max()).double_value(&[]);
                assert!(error < bound, "{kind:?}: {error}");
            }
        }
    }

    #[test]
    fn copies_follow_their_leaves() {
        let factors = Factors::default();
        let leaves: Vec<Tensor> = (0..3).map(|i| Tensor::full([4], f64::from(i), (Kind::Float, Device::Cpu))).collect();
        let all: Vec<Factor> = leaves.iter().map(|leaf| factors.add(leaf.shallow_clone())).collect();
        let value = |factor: &Factor| factor.in_kind(Kind::BFloat16).unwrap().double_value(&[2]);
        assert_eq!([value(&all[0]), value(&all[1])], [0.0, 1.0]);
        for leaf in &leaves {
            let _ = leaf.shallow_clone().g_add_scalar_(5.0);
        }
        assert_eq!([value(&all[2]), value(&all[1]), value(&all[0])], [7.0, 6.0, 5.0]);
        let zeros = || leaves.iter().map(|leaf| leaf.zeros_like()).collect::<Vec<_>>();
        let steps: Vec<Tensor> = leaves.iter().map(|_| Tensor::from(0f32)).collect();
        let decay = AdamWStep { lr: 0.5, betas: (0.9, 0.999), weight_decay: 1.0, eps: 1e-8 };
        adamw_step(&leaves, &zeros(), &zeros(), &zeros(), &steps, decay).unwrap();
        assert_eq!([value(&all[2]), value(&all[1]), value(&all[0])], [3.5, 3.0, 2.5]);
        decay_and_add(&leaves, 2.0, &[Tensor::from(1f32), Tensor::from(1f32), Tensor::from(1f32)]).unwrap();
        assert_eq!([value(&all[2]), value(&all[1]), value(&all[0])], [8.0, 7.0, 6.0]);
        let first = all[0].in_kind(Kind::BFloat16).unwrap().data_ptr();
        assert_eq!(all[0].in_kind(Kind::BFloat16).unwrap().data_ptr(), first);
        assert_eq!(all[0].in_kind(Kind::Half).unwrap().kind(), Kind::Half);
        drop(all);
        factors.add(leaves[0].shallow_clone());
        assert_eq!(factors.0.borrow().len(), 1);
    }
}
