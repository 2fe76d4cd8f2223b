//! What a computation costs, beside memory.

use crate::libtorch::planned::Computed;
pub use crate::libtorch::planned::Product;
use std::collections::BTreeMap;

/// What the computation costs, beside memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// How often each product is made.
    pub products: BTreeMap<Product, f64>,
    /// Bytes read and written by element-wise operations and norms.
    pub bytes: f64,
    /// Those operations, each of which takes some time however little it moves.
    pub operations: f64,
}

impl From<Computed> for Work {
    fn from(Computed { products, bytes, operations }: Computed) -> Self {
        Self { products, bytes, operations }
    }
}

impl Work {
    /// Floating-point operations of the products.
    pub fn flops(&self) -> f64 {
        self.products.iter().map(|(product, times)| product.flops() * times).sum()
    }

    /// This much, `times` over.
    pub(super) fn times(mut self, times: f64) -> Self {
        self.products.values_mut().for_each(|count| *count *= times);
        self.bytes *= times;
        self.operations *= times;
        self
    }

    /// Both together.
    pub fn plus(mut self, more: Self) -> Self {
        for (product, times) in more.products {
            *self.products.entry(product).or_default() += times;
        }
        self.bytes += more.bytes;
        self.operations += more.operations;
        self
    }
}
