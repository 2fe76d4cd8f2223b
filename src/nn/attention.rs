//! Scaled dot-product attention over several heads (arXiv 1706.03762).

use tch::Tensor;

/// Attention of `queries` to `keys` and `values`, all `[batch, length, heads · width]`, through libtorch's kernels that
/// never hold the matrix of scores. Returns `[batch, length, heads · width]`.
pub fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: i64, causal: bool) -> Tensor {
    let (batch, length, width) = match queries.size()[..] {
        [batch, length, width] => (batch, length, width),
        _ => unreachable!("attention takes [batch, length, width]"),
    };
    // [b, s, h·d] -> [b, h, s, d]
    let split = |xs: &Tensor| xs.view([batch, -1, heads, width / heads]).transpose(1, 2);
    let (q, k, v) = (split(queries), split(keys), split(values));
    let ys = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, causal, None, false);
    ys.transpose(1, 2).reshape([batch, length, width]) // [b, h, s, d] -> [b, s, h·d]
}
