//! A Rust closure as the gradient of a tensor: what `torch.autograd.Function` is to Python.

use super::{check, failure, handles};
use crate::error::Result;
use std::ffi::{c_char, c_void, CString};
use tch::Tensor;
use torch_sys::C_tensor;

/// Gradients of the inputs, from the gradients of the outputs and the saved tensors.
pub type Backward = dyn Fn(&[Option<Tensor>], &[Tensor]) -> Result<Vec<Option<Tensor>>> + Send;

type RawBackward = unsafe extern "C" fn(
    data: *mut c_void,
    grads: *const *mut C_tensor,
    n_grads: i64,
    saved: *const *mut C_tensor,
    n_saved: i64,
    results: *mut *mut C_tensor,
    n_results: i64,
) -> *mut c_char;
type RawDrop = unsafe extern "C" fn(data: *mut c_void);

extern "C" {
    fn lorabooth_attach(
        inputs: *const *mut C_tensor,
        n_inputs: i64,
        saved: *const *mut C_tensor,
        n_saved: i64,
        outputs: *const *mut C_tensor,
        n_outputs: i64,
        data: *mut c_void,
        backward: RawBackward,
        drop: RawDrop,
    ) -> *mut c_char;
    fn lorabooth_backward(outputs: *const *mut C_tensor, grads: *const *mut C_tensor, n: i64) -> *mut c_char;
}

/// Makes `backward` the gradient of `outputs` (computed without one) with respect to `inputs`. `saved` is kept, with
/// libtorch's checks against changes in place, until the graph is freed. Does nothing where no input needs a gradient.
pub fn attach(inputs: &[&Tensor], saved: &[&Tensor], outputs: &[&Tensor], backward: Box<Backward>) -> Result<()> {
    let data = Box::into_raw(Box::new(backward)).cast();
    let (inputs, saved, outputs) =
        (handles(inputs.iter().copied()), handles(saved.iter().copied()), handles(outputs.iter().copied()));
    // SAFETY: the handles live through the call; C++ takes its own references to the tensors. `data` is a boxed
    // closure that C++ gives to `call` any number of times and to `release` exactly once, on failure too.
    check(unsafe {
        lorabooth_attach(
            inputs.as_ptr(),
            inputs.len() as i64,
            saved.as_ptr(),
            saved.len() as i64,
            outputs.as_ptr(),
            outputs.len() as i64,
            data,
            call,
            release,
        )
    })
}

/// Runs backward from `outputs` with the given gradients (`None`: no gradient flows into that one).
pub fn backward(outputs: &[&Tensor], grads: &[Option<&Tensor>]) -> Result<()> {
    let mut roots = Vec::with_capacity(outputs.len());
    let mut seeds = Vec::with_capacity(outputs.len());
    for (output, grad) in outputs.iter().zip(grads) {
        if let (true, Some(grad)) = (output.requires_grad(), grad) {
            roots.push(output.as_ptr().cast_mut());
            seeds.push(grad.as_ptr().cast_mut());
        }
    }
    // SAFETY: two lists of `roots.len()` living handles.
    check(unsafe { lorabooth_backward(roots.as_ptr(), seeds.as_ptr(), roots.len() as i64) })
}

unsafe extern "C" fn call(
    data: *mut c_void,
    grads: *const *mut C_tensor,
    n_grads: i64,
    saved: *const *mut C_tensor,
    n_saved: i64,
    results: *mut *mut C_tensor,
    n_results: i64,
) -> *mut c_char {
    // A panic must not cross into C++.
    let outcome = failure::catching(|| {
        // SAFETY: C++ passes the closure of `attach` and lists of the lengths it says; an undefined gradient is a
        // null handle. `clone_from_ptr` takes references of its own.
        let (closure, grads, saved, results) = unsafe {
            let own = |list: *const *mut C_tensor, n: i64| -> Vec<Option<Tensor>> {
                (0..n as usize)
                    .map(|i| *list.add(i))
                    .map(|handle| (!handle.is_null()).then(|| Tensor::clone_from_ptr(handle)))
                    .collect()
            };
            (
                &*data.cast::<Box<Backward>>(),
                own(grads, n_grads),
                own(saved, n_saved),
                std::slice::from_raw_parts_mut(results, n_results as usize),
            )
        };
        let saved: Vec<Tensor> = saved.into_iter().flatten().collect();
        let gradients = closure(&grads, &saved)?;
        for (place, gradient) in results.iter_mut().zip(gradients) {
            if let Some(gradient) = gradient {
                let gradient = std::mem::ManuallyDrop::new(gradient);
                *place = gradient.as_ptr().cast_mut();
            }
        }
        Ok(())
    });
    let Err(error) = outcome else { return std::ptr::null_mut() };
    let message = CString::new(failure::set_aside(error)).unwrap_or_default();
    // SAFETY: copies a NUL-terminated string into malloc'ed memory, which C++ frees.
    unsafe { libc::strdup(message.as_ptr()) }
}

unsafe extern "C" fn release(data: *mut c_void) {
    // SAFETY: C++ calls this once, with the box of `attach`.
    drop(unsafe { Box::from_raw(data.cast::<Box<Backward>>()) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn a_rust_closure_is_the_gradient() {
        let x = Tensor::from_slice(&[1f32, 2., 3.]).set_requires_grad(true);
        let y = tch::no_grad(|| &x * &x);
        let square =
            |grads: &[Option<Tensor>], saved: &[Tensor]| Ok(vec![grads[0].as_ref().map(|grad| grad * &saved[0] * 2.)]);
        attach(&[&x], &[&x], &[&y], Box::new(square)).unwrap();
        (y * 3.).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [6., 12., 18.]);
    }

    /// What backward through a node with this gradient ends with.
    fn failed(gradient: impl Fn() -> Result<Tensor> + Send + 'static) -> String {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|info| {
            if !failure::is_caught() {
                eprintln!("{info}");
            }
        }));
        let x = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let y = tch::no_grad(|| &x * 1.);
        attach(&[&x], &[], &[&y], Box::new(move |_, _| Ok(vec![Some(gradient()?)]))).unwrap();
        let sum = y.sum(Kind::Float);
        let run = || {
            sum.backward();
            Ok(())
        };
        let error = failure::catching(run).unwrap_err().to_string();
        std::panic::set_hook(hook);
        error
    }

    #[test]
    fn a_failure_in_a_gradient_is_the_error_that_it_was() {
        assert_eq!(failed(|| Err(crate::error::Error::file("x", "is cut short"))), "x is cut short");
        let ones = |n: i64| Tensor::ones([n], (Kind::Float, Device::Cpu));
        let error = failed(move || Ok(ones(2) + ones(3)));
        assert!(error.contains("must match the size") && !error.contains('\n'), "{error}");
        let full = failed(|| Ok(Tensor::zeros([1 << 60], (Kind::Float, Device::Cpu))));
        assert!(full.contains("memory"), "{full}");
    }
}
