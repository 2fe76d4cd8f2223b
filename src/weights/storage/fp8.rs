//! Weights in 8 bits as they are, without scales: e4m3 (Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433), as
//! sd-scripts' `--fp8_base` keeps them. They are expanded for each use.

use crate::error::Result;
use crate::libtorch::failure::or_panic;
use crate::libtorch::fp8;
use tch::{Device, Kind, Tensor};

/// The largest number of e4m3. libtorch's conversion makes NaN of what is larger.
pub const LARGEST: f64 = 448.0;

/// A frozen weight in e4m3.
pub struct Fp8Weight {
    /// The bits of its numbers: uint8, in the weight's shape and layout.
    codes: Tensor,
    /// The dtype that it stands for.
    kind: Kind,
}

impl Fp8Weight {
    /// The nearest numbers of `weight`, those beyond ±448 as that.
    pub fn quantise(weight: &Tensor, kind: Kind) -> Result<Self> {
        let clamped = weight.f_clamp(-LARGEST, LARGEST)?;
        Ok(Self { codes: clamped.f_to_kind(Kind::Float8e4m3fn)?.f_view_dtype(Kind::Uint8)?, kind })
    }

    pub(super) fn of(codes: Tensor, kind: Kind) -> Self {
        Self { codes, kind }
    }

    /// The weight that the codes stand for, in `kind`.
    pub fn dense(&self, kind: Kind) -> Tensor {
        or_panic(fp8::expand(&self.codes, kind))
    }

    /// uint8, in the weight's shape and layout.
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// The dtype that it stands for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.codes.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_expands_to_what_libtorch_makes_of_it_in_every_dtype_and_layout() {
        let codes = Tensor::arange(256, (Kind::Int64, Device::Cpu)).to_kind(Kind::Uint8).view([4, 4, 4, 4]);
        for codes in [codes.shallow_clone(), codes.permute([0, 3, 1, 2]), codes.permute([3, 2, 1, 0])] {
            for kind in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double] {
                let (ours, theirs) =
                    (fp8::expand(&codes, kind).unwrap(), codes.view_dtype(Kind::Float8e4m3fn).to_kind(kind));
                assert_eq!((ours.kind(), ours.size(), ours.stride()), (kind, theirs.size(), theirs.stride()));
                let bits = |xs: &Tensor| xs.nan_to_num(1e4, None, None);
                assert_eq!(bits(&ours), bits(&theirs));
            }
        }
    }

    #[test]
    fn numbers_beyond_the_range_stay_numbers() {
        let weight = Tensor::from_slice(&[500f32, -1e6, 448.0, 463.0, 0.0, 1e-4]);
        let wide = Fp8Weight::quantise(&weight, Kind::Float).unwrap().dense(Kind::Float);
        assert_eq!(wide, Tensor::from_slice(&[448f32, -448.0, 448.0, 448.0, 0.0, 0.0]));
    }
}
