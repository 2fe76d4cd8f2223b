#include <ATen/Context.h>

// Names the fast mode of oneDNN's matrix products alone: CUDA's and the convolutions' precision stay as they are.
extern "C" void lorabooth_use_onednn_matmul() {
  at::globalContext().setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL, at::Float32Precision::BF16);
}
