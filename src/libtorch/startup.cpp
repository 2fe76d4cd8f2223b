#include <ATen/Context.h>
#include <c10/util/Logging.h>

// Names the fast mode of oneDNN's matrix products alone: CUDA's and the convolutions' precision stay as they are.
extern "C" void lorabooth_use_onednn_matmul() {
  at::globalContext().setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL, at::Float32Precision::BF16);
}

// What is not written to stays as it is: filling it, too, is for finding mistakes.
extern "C" void lorabooth_use_deterministic_kernels(bool on) {
  auto &context = at::globalContext();
  context.setDeterministicAlgorithms(on, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(on);
  if (on) context.setBenchmarkCuDNN(false);
}

// 2 is "error" of c10's levels, for libtorch's warnings on the standard error output.
extern "C" void lorabooth_silence_warnings() { FLAGS_caffe2_log_level = 2; }
