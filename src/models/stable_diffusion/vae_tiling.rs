//! Encodes and decodes large images tile by tile, so that memory is a tile's and not the image's.
//! Reference: diffusers `autoencoder_kl.py`, `_tiled_encode` and `tiled_decode`.
//!
//! Tiles overlap by a quarter, over which one fades into the next. The result is not quite that of the whole at once: the
//! norms and the attention in the middle see a tile.
//!
//! Shapes: b batch, h and w height and width of the latents, f the scale factor (8 for Stable Diffusion).

use super::vae::VaeConfig;
use tch::{Kind, Tensor};

/// The largest side of a tile, in latents' places.
const LARGEST_TILE: i64 = 64;

/// How an image is cut. All but `factor` count in latents' places.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    side: i64,
    stride: i64,
    factor: i64,
}

impl Tiles {
    /// Tiles of the size that the VAE was trained at, but no larger than those of Stable Diffusion 1.x: XL's 1024 pixels would save
    /// nothing. None where they are too small to be cut.
    pub fn of(config: &VaeConfig) -> Option<Self> {
        let factor = config.scale_factor();
        let side = (config.sample_size / factor).min(LARGEST_TILE);
        let stride = side * 3 / 4;
        (stride > 0).then_some(Self { side, stride, factor })
    }

    /// The side of a tile, in latents' places.
    pub fn side(&self) -> i64 {
        self.side
    }

    /// Images `[b, 3, h·f, w·f]` to what `encode` makes of each tile, `[b, c, h, w]`.
    pub fn encode(&self, images: &Tensor, encode: impl Fn(&Tensor) -> Tensor) -> Tensor {
        self.put_together(images, (self.factor, 1), encode)
    }

    /// Latents `[b, c, h, w]` to images `[b, 3, h·f, w·f]`, with `decode` for each tile.
    pub fn decode(&self, latents: &Tensor, decode: impl Fn(&Tensor) -> Tensor) -> Tensor {
        self.put_together(latents, (1, self.factor), decode)
    }

    /// What `compute` makes of `xs`, tile by tile where they are larger than one; `places` are those along one side of a latent's place,
    /// in `xs` and in what is made of them.
    fn put_together(&self, xs: &Tensor, places: (i64, i64), compute: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let (height, width) = (xs.size()[2], xs.size()[3]);
        let (side, stride) = (self.side * places.0, self.stride * places.0);
        if height <= side && width <= side {
            return compute(xs);
        }
        let (kept, faded) = (self.stride * places.1, (self.side - self.stride) * places.1);
        let starts = |size: i64| (0..size).step_by(stride as usize);
        let keep = |tile: &Tensor, dim: i64| tile.narrow(dim, 0, kept.min(tile.size()[dim as usize]));
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in starts(height) {
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in starts(width).enumerate() {
                let (h, w) = (side.min(height - top), side.min(width - left));
                let mut tile = compute(&xs.narrow(2, top, h).narrow(3, left, w));
                if let Some(above) = above.get(column) {
                    tile = fade(above, tile, 2, faded);
                }
                if let Some(left) = row.last() {
                    tile = fade(left, tile, 3, faded);
                }
                row.push(tile);
            }
            rows.push(Tensor::cat(&row.iter().map(|tile| keep(&keep(tile, 2), 3)).collect::<Vec<_>>(), 3));
            above = row;
        }
        Tensor::cat(&rows, 2)
    }
}

/// `tile` with its first `extent` places along `dim` faded in from the last ones of `before`.
fn fade(before: &Tensor, tile: Tensor, dim: i64, extent: i64) -> Tensor {
    let size = |tensor: &Tensor| tensor.size()[dim as usize];
    let extent = extent.min(size(before)).min(size(&tile));
    if extent == 0 {
        return tile;
    }
    let mut shape = [1; 4];
    shape[dim as usize] = extent;
    let weight =
        (Tensor::arange(extent, (Kind::Float, tile.device())) / extent as f64).view(shape).to_kind(tile.kind());
    let from = before.narrow(dim, size(before) - extent, extent);
    let mut start = tile.narrow(dim, 0, extent);
    let faded = from * (1.0 - &weight) + &start * weight;
    start.copy_(&faded);
    tile
}
