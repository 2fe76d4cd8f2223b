//! cuDNN's search for the fastest algorithm of a convolution (PyTorch's `torch.backends.cudnn.benchmark`).

use tch::Cuda;

/// While it lives, a convolution on a GPU whose shape is new is made with several of cuDNN's algorithms, whose workspaces may be as large
/// as all memory that is free. The fastest serves that shape for as long as the process lives; what was convolved before is not searched.
pub struct ConvolutionSearch(());

impl ConvolutionSearch {
    /// Begins it, for the whole process.
    pub fn begin() -> Self {
        Cuda::cudnn_set_benchmark(true);
        Self(())
    }
}

impl Drop for ConvolutionSearch {
    fn drop(&mut self) {
        Cuda::cudnn_set_benchmark(false);
    }
}
