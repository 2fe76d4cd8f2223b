//! Decodes large latents tile by tile, so that memory is a tile's and not the image's.
//! Reference: diffusers `autoencoder_kl.py`, `tiled_decode`.
//!
//! Tiles overlap by a quarter, over which one fades into the next. The picture is not quite that of decoding at once: the
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

    /// Whether `latents` `[b, c, h, w]` are larger than a tile.
    pub fn are_smaller_than(&self, latents: &Tensor) -> bool {
        latents.size()[2..].iter().any(|&size| size > self.side)
    }

    /// Latents `[b, c, h, w]` to images `[b, 3, h·f, w·f]`, with `decode` for each tile.
    pub fn decode(&self, latents: &Tensor, decode: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let (height, width) = (latents.size()[2], latents.size()[3]);
        let kept = self.stride * self.factor;
        let faded = (self.side - self.stride) * self.factor;
        let keep = |tile: &Tensor, dim: i64| tile.narrow(dim, 0, kept.min(tile.size()[dim as usize]));
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in self.starts(height) {
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in self.starts(width).enumerate() {
                let (h, w) = (self.side.min(height - top), self.side.min(width - left));
                let mut tile = decode(&latents.narrow(2, top, h).narrow(3, left, w));
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

    fn starts(&self, size: i64) -> impl Iterator<Item = i64> {
        (0..size).step_by(self.stride as usize)
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
