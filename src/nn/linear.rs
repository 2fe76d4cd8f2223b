//! A linear projection.

use super::embedding::Embedding;
use super::loader::{Bias, Loader};
use crate::adapters::{Site, SiteTraits};
use crate::error::Result;
use crate::libtorch::random::Generator;
use crate::weights::Op;
use std::rc::Rc;
use tch::Tensor;

/// `xs Wᵀ + b`, with the adapters of its site.
pub struct Linear(Rc<Site>);

impl Linear {
    /// Loads a weight `[outputs, inputs]`.
    pub fn load(loader: &Loader, inputs: i64, outputs: i64, bias: Bias) -> Result<Self> {
        Ok(Self(loader.site(Op::Linear, &[outputs, inputs], bias, SiteTraits::default())?))
    }

    /// Loads a weight that the checkpoint keeps as `[inputs, outputs]`, and its bias: transformers' `Conv1D`.
    pub fn load_transposed(loader: &Loader, inputs: i64, outputs: i64) -> Result<Self> {
        let traits = SiteTraits { transposed: true, ..SiteTraits::default() };
        Ok(Self(loader.site(Op::Linear, &[inputs, outputs], Bias::Yes, traits)?))
    }

    /// The projection of hidden states `inputs` wide to logits of a vocabulary of `outputs`, without a bias. Where
    /// `tied` is given and the checkpoint has no other weight, it is that embedding's.
    pub fn load_output(loader: &Loader, inputs: i64, outputs: i64, tied: Option<&Embedding>) -> Result<Self> {
        let traits = SiteTraits { output: true, ..SiteTraits::default() };
        if let Some(shared) = tied.map(Embedding::site) {
            // Some files hold the table twice.
            if !loader.has("weight") || loader.has_weight_of(shared)? {
                return Ok(Self(loader.tied(Op::Linear, shared, traits)?));
            }
        }
        Ok(Self(loader.site(Op::Linear, &[outputs, inputs], Bias::No, traits)?))
    }

    /// A projection that no checkpoint has yet: its weight normal with deviation `std`, its bias zero.
    pub fn draw(loader: &Loader, inputs: i64, outputs: i64, std: f64, bias: Bias, generator: &mut Generator) -> Self {
        let weight = loader.placed(generator.randn(&[outputs, inputs]) * std);
        let zeros = || loader.placed(Tensor::zeros([outputs], tch::kind::FLOAT_CPU));
        let bias = (bias == Bias::Yes).then(|| loader.put_param("bias", zeros()));
        Self(loader.put(Op::Linear, weight, bias))
    }

    /// The projections of one input by several layers: `[.., inputs] -> [.., outputs]` each.
    pub fn forward_all<const N: usize>(layers: [&Self; N], xs: &Tensor) -> [Tensor; N] {
        let sites = layers.map(|layer| &*layer.0);
        let mut outputs = Site::forward_all(&sites, xs).into_iter();
        std::array::from_fn(|_| outputs.next().unwrap_or_default())
    }

    /// `[.., inputs] -> [.., outputs]`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        self.0.forward(xs)
    }
}
