//! Dropout of a model's own, as its configuration asks for (arXiv 1207.0580).

use super::loader::Loader;
use crate::libtorch::dropout::dropout;
use std::cell::Cell;
use std::rc::Rc;
use tch::Tensor;

/// Zeroes each number with a probability while the model trains, and scales the others up; else nothing.
#[derive(Clone)]
pub struct Dropout {
    probability: f64,
    training: Rc<Cell<bool>>,
}

impl Dropout {
    /// Dropout with `probability` in the model that `loader` loads.
    pub fn new(loader: &Loader, probability: f64) -> Self {
        Self { probability, training: loader.training() }
    }

    /// The probability that holds now: 0 where the model does not train.
    pub fn rate(&self) -> f64 {
        if self.training.get() {
            self.probability
        } else {
            0.0
        }
    }

    /// `[..] -> [..]`
    pub fn forward(&self, xs: Tensor) -> Tensor {
        match self.rate() {
            0.0 => xs,
            rate => dropout(&xs, rate),
        }
    }
}
