// Kernels of our own for a CUDA device. They are compiled when they are first used, by the NVRTC that comes with libtorch, so that the
// program needs neither nvcc nor CUDA's headers.
#pragma once
#include "shim.h"
#include <array>
#include <map>
#include <mutex>

// The kernels of one source text. What it may use: float `wide(T)` and T `narrow<T>(float)` for T float, fp16 or bf16, `sigmoid_of`, and
// `IN_EACH_KIND` of a macro of (T, name of T). A kernel NAME exists as NAME_float, NAME_fp16 and NAME_bf16, and is launched with 256 threads a block.
class CudaKernels {
  const char *const source;
  std::once_flag compiled;
  std::string ptx;
  bool is_compiled = false;
  std::mutex lock;
  // A module belongs to one device's context.
  std::map<std::pair<int, std::string>, void *> functions;
  std::map<int, void *> modules;

  void compile();
  void *found(const std::string &name, int device);

public:
  explicit CudaKernels(const char *source) : source(source) {}

  // Whether `xs` is on a CUDA device, in a dtype that the kernels take, and they could be compiled; or is planned for one.
  bool take(const at::Tensor &xs);

  // Launches the kernel `name` for `kind` on the present stream of `device`, whose arguments these are addresses of; nothing for what is
  // planned.
  void run(const std::string &name, at::ScalarType kind, c10::Device device, std::array<unsigned, 2> blocks,
           std::initializer_list<void *> arguments);
};

inline unsigned parts(int64_t of, int64_t size) { return static_cast<unsigned>((of + size - 1) / size); }
