//! A step's boundary: tch's operations panic where libtorch fails, and this turns the panic into an error. What fails in a gradient of ours
//! goes through libtorch's engine, on a thread of its own for a GPU, and comes out as it was.

use crate::error::{Error, Result};
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

/// What libtorch is told of an error that waits in `WAITING`.
const MARK: &str = "a gradient of lorabooth's failed";
/// The error of a gradient, while libtorch's engine unwinds.
static WAITING: Mutex<Option<Error>> = Mutex::new(None);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// `work`, with what libtorch said where an operation in it failed.
pub fn catching<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let outer = INSIDE.replace(true);
    let has_gradients = set_gradients(true);
    set_gradients(has_gradients);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(outer);
    // What tch turned off for a closure stays off where that unwinds.
    set_gradients(has_gradients);
    outcome.unwrap_or_else(|payload| {
        let payload = match payload.downcast::<Error>() {
            Ok(error) => return Err(*error),
            Err(payload) => payload,
        };
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("an operation failed");
        match text.split_once("Torch(\"") {
            Some((_, message)) => Err(error_of(first_line(message))),
            None => Err(Error::Internal(text.lines().next().unwrap_or_default().to_owned())),
        }
    })
}

/// Turns the recording of gradients on this thread on or off; what it was.
fn set_gradients(on: bool) -> bool {
    // SAFETY: sets one flag of the thread.
    unsafe { torch_sys::at_grad_set_enabled(i32::from(on)) != 0 }
}

/// What was `made` in a forward, which panics where libtorch fails as each of tch's operations does; [`catching`] makes an error of it.
pub fn or_panic<T>(made: Result<T>) -> T {
    made.unwrap_or_else(|error| std::panic::panic_any(error))
}

/// Lets `error` go through libtorch: the text to fail with, from which [`error_of`] makes it again.
pub(super) fn set_aside(error: Error) -> &'static str {
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    MARK
}

/// The error that libtorch's `message` stands for.
pub(super) fn error_of(message: String) -> Error {
    let waiting = match message.contains(MARK) {
        true => WAITING.lock().unwrap_or_else(PoisonError::into_inner).take(),
        false => None,
    };
    waiting.unwrap_or_else(|| Error::from(tch::TchError::Torch(message)))
}

/// Whether a panic on this thread is about to become an error: the process' panic hook stays silent then.
pub fn is_caught() -> bool {
    INSIDE.get()
}

/// Libtorch's first line in `text`, what follows ``called `Result::unwrap()` on an `Err` value: Torch("`` in tch's panic.
fn first_line(text: &str) -> String {
    let end = text.find("\\n").unwrap_or(text.len());
    text[..end].trim_end_matches("\")").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_mistake_of_ours_is_not_blamed_on_libtorch() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let error = catching::<()>(|| panic!("index 3\nof 2")).unwrap_err().to_string();
        std::panic::set_hook(hook);
        assert!(error.contains("(index 3)") && error.contains("report"), "{error}");
    }

    #[test]
    fn an_error_that_an_operation_panics_with_stays_what_it_is() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let error = catching::<()>(|| std::panic::panic_any(Error::file("x", "is cut short"))).unwrap_err();
        std::panic::set_hook(hook);
        assert_eq!(error.to_string(), "x is cut short");
    }

    #[test]
    fn gradients_are_recorded_after_a_failure_without_them() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        drop(catching::<()>(|| tch::no_grad(|| panic!("in it"))));
        std::panic::set_hook(hook);
        let leaf = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        assert!((leaf * 2.0).requires_grad());
    }

    #[test]
    fn a_failed_operation_is_an_error_with_libtorchs_words() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let ones = |n: i64| Tensor::ones([n], (Kind::Float, Device::Cpu));
        let error = catching(|| Ok(ones(2) + ones(3))).unwrap_err().to_string();
        std::panic::set_hook(hook);
        assert!(error.contains("must match the size") && !error.contains('\n'), "{error}");
    }
}
