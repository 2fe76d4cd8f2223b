//! NF4: a linear weight in 4 bits (Dettmers et al., "QLoRA", arXiv 2305.14314), packed as bitsandbytes packs it. It is expanded for each
//! use, and nothing but the codes is kept for backward.

use super::dynamic_map::dynamic_map;
use crate::error::Result;
use crate::libtorch::failure::or_panic;
use crate::libtorch::nf4;
use tch::{Device, Kind, Tensor};

/// Numbers that share a scale.
const BLOCK: i64 = 64;
/// Scales that share one, where they are quantised themselves.
const NESTED_BLOCK: i64 = 256;
/// bitsandbytes' steps from -1 to 1, each of which has the code nearest to it.
const STEPS: i64 = 1 << 16;

/// What NF4 codes are of.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4Form {
    /// The weight's shape.
    pub shape: Vec<i64>,
    /// Numbers that share a scale: a multiple of 8.
    pub block: i64,
    /// Where the scales are quantised themselves: how many of them share a scale, and what is added to them.
    pub nested: Option<(i64, f64)>,
}

/// A frozen weight in NF4.
pub struct Nf4Weight {
    form: Nf4Form,
    /// Two codes a byte: uint8.
    packed: Tensor,
    /// float32 `[blocks]`, or their codes.
    scales: Tensor,
    /// Of scales that are quantised: float32 `[blocks of scales]`, and what their codes stand for: float32 `[256]`.
    over: Option<(Tensor, Tensor)>,
    /// The dtype that it stands for.
    kind: Kind,
}

impl Nf4Weight {
    /// Quantises `weight`, on the CPU, from its own dtype, and goes where it was. `double`: the scales are quantised too.
    pub fn quantise(weight: &Tensor, kind: Kind, double: bool) -> Result<Self> {
        let (packed, scales) = nf4::quantise(&weight.f_to_device(Device::Cpu)?, BLOCK)?;
        let form = Nf4Form { shape: weight.size(), block: BLOCK, nested: None };
        let single = Self { form, packed, scales, over: None, kind };
        if double { single.doubly() } else { Ok(single) }.map(|made| made.on(weight.device()))
    }

    /// That of a planned weight, with quantised scales.
    pub(super) fn planned(weight: &Tensor, kind: Kind) -> Self {
        let form = Nf4Form { shape: weight.size(), block: BLOCK, nested: Some((NESTED_BLOCK, 0.0)) };
        let numbers = weight.numel() as u64;
        let blocks = numbers.div_ceil(BLOCK as u64);
        let made = |count: u64, kind: Kind| Tensor::empty([count as i64], (kind, weight.device()));
        let over = (made(blocks.div_ceil(NESTED_BLOCK as u64), Kind::Float), made(256, Kind::Float));
        let (packed, scales) = (made(numbers.div_ceil(2), Kind::Uint8), made(blocks, Kind::Uint8));
        Self { form, packed, scales, over: Some(over), kind }
    }

    /// The same with quantised scales.
    fn doubly(self) -> Result<Self> {
        let offset = self.scales.f_mean(Kind::Float)?;
        let map = dynamic_map(true);
        let (codes, over) = in_8_bits(&(&self.scales - &offset), &map);
        let form = Nf4Form { nested: Some((NESTED_BLOCK, offset.double_value(&[]))), ..self.form };
        Ok(Self { form, scales: codes, over: Some((over, map)), ..self })
    }

    /// The same on `device`.
    pub fn on(self, device: Device) -> Self {
        let parts = self.parts().iter().map(|part| part.to_device(device)).collect();
        Self::of(self.form, parts, self.kind)
    }

    /// The weight of `parts`: codes, scales, and where these are quantised their own scales and what their codes stand for.
    pub fn of(form: Nf4Form, parts: Vec<Tensor>, kind: Kind) -> Self {
        let mut parts = parts.into_iter();
        let mut next = || parts.next().unwrap_or_default();
        let (packed, scales) = (next(), next());
        let over = form.nested.map(|_| (next(), next()));
        Self { form, packed, scales, over, kind }
    }

    /// What [`Nf4Weight::of`] makes it of.
    pub fn parts(&self) -> Vec<Tensor> {
        let over = self.over.iter().flat_map(|(over, map)| [over, map]);
        [&self.packed, &self.scales].into_iter().chain(over).map(Tensor::shallow_clone).collect()
    }

    /// What it is of.
    pub fn form(&self) -> &Nf4Form {
        &self.form
    }

    /// The weight that the codes stand for, in `kind`.
    pub fn dense(&self, kind: Kind) -> Tensor {
        or_panic(self.f_dense(kind))
    }

    /// Refuses parts that do not belong together.
    pub fn check(&self) -> Result<()> {
        nf4::check_parts(&self.packed, &self.scales, self.nested().as_ref(), self.form.block, &self.form.shape)
    }

    fn f_dense(&self, kind: Kind) -> Result<Tensor> {
        nf4::expand(&self.packed, &self.scales, self.nested(), self.form.block, &self.form.shape, kind)
    }

    fn nested(&self) -> Option<nf4::Nested<'_>> {
        let over = self.over.as_ref().zip(self.form.nested);
        over.map(|((scales, map), (size, offset))| nf4::Nested { scales, map, offset, size })
    }

    /// The dtype that it stands for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.packed.device()
    }
}

/// The codes of float32 `values` and the largest magnitude of each block, as bitsandbytes' CPU code has them: what a value is of that is
/// rounded to one of 65536 steps, and each step has the code that is nearest to it. uint8 `[n]`, float32 `[blocks]`.
fn in_8_bits(values: &Tensor, map: &Tensor) -> (Tensor, Tensor) {
    let n = values.size()[0];
    let missing = (-n).rem_euclid(NESTED_BLOCK);
    let blocks = values.constant_pad_nd([0, missing]).view([-1, NESTED_BLOCK]);
    let largest = blocks.abs().amax([1i64].as_slice(), true);
    let midpoints = (map.narrow(0, 0, 255) + map.narrow(0, 1, 255)) * 0.5;
    let steps = Tensor::arange(STEPS, (Kind::Float, Device::Cpu)) * 2.0 / (STEPS - 1) as f64 - 1.0;
    let nearest = steps.bucketize(&midpoints, true, false).to_kind(Kind::Uint8);
    // A block of zeros: each code times its scale is one.
    let of_largest = (&blocks * largest.reciprocal()).nan_to_num(-1.0, None, None).clamp(-1.0, 1.0);
    let step = (of_largest + 1.0) * 0.5 * (STEPS - 1) as f64 + 0.5;
    let codes = nearest.index_select(0, &step.to_kind(Kind::Int64).view(-1)).narrow(0, 0, n).contiguous();
    (codes, largest.view(-1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;

    #[test]
    fn numbers_expand_to_the_nearest_of_the_sixteen_of_their_block() {
        let weight = Generator::new(1).randn(&[7, 45]);
        let nf4 = Nf4Weight::quantise(&weight, Kind::Float, false).unwrap();
        let error = ((nf4.dense(Kind::Float) - &weight).norm() / weight.norm()).double_value(&[]);
        // Of normal numbers: 0.092.
        assert!((0.08..0.1).contains(&error), "{error}");
        let (dense, flat) = (nf4.dense(Kind::Float).view(-1), weight.view(-1));
        for (i, scale) in Vec::<f32>::try_from(nf4.scales.shallow_clone()).unwrap().into_iter().enumerate() {
            let start = i as i64 * BLOCK;
            let count = BLOCK.min(7 * 45 - start);
            let (made, exact) = (dense.narrow(0, start, count), flat.narrow(0, start, count));
            // Half of the widest gap between two of them.
            assert!((made - &exact).abs().max().double_value(&[]) <= 0.153 * f64::from(scale));
            assert_eq!(exact.abs().max().double_value(&[]) as f32, scale);
        }
    }

    #[test]
    fn both_ways_to_look_codes_up_agree_in_every_dtype() {
        let weight = Generator::new(2).randn(&[5, 64]);
        let whole = Nf4Weight::quantise(&weight, Kind::Float, true).unwrap();
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let dense = whole.dense(kind);
            assert_eq!(dense.kind(), kind);
            assert_eq!(dense, whole.dense(Kind::Float).to_kind(kind));
            // Blocks of 8 are below what is looked up at a time.
            let short: Vec<Tensor> = (0..5)
                .map(|row| {
                    let (packed, scales) = nf4::quantise(&weight.get(row), 8).unwrap();
                    nf4::expand(&packed, &scales, None, 8, &[64], kind).unwrap()
                })
                .collect();
            let error = (Tensor::stack(&short, 0).to_kind(Kind::Float) - &weight).norm() / weight.norm();
            assert!(error.double_value(&[]) < 0.09, "{error:?}");
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let zeros = Tensor::zeros([3, 50], (Kind::Float, Device::Cpu));
        for double in [false, true] {
            let dense = Nf4Weight::quantise(&zeros, Kind::Float, double).unwrap().dense(Kind::Float);
            assert!(dense.abs().max().double_value(&[]) < 1e-30);
        }
    }

    #[test]
    fn codes_that_do_not_belong_together_are_refused() {
        let weight = Generator::new(1).randn(&[4, 64]);
        let parts = Nf4Weight::quantise(&weight, Kind::Float, false).unwrap().parts();
        for (shape, block, nested) in
            [(vec![4, 66], 64, None), (vec![4, 64], 32, None), (vec![4, 64], 64, Some((256, 0.0)))]
        {
            let form = Nf4Form { shape, block, nested };
            let message = Nf4Weight::of(form, parts.iter().map(Tensor::shallow_clone).collect(), Kind::Float).check();
            assert!(message.err().unwrap().to_string().contains("codes and scales"));
        }
    }
}
