// The element-wise nonlinearities of transformers on a CUDA device, in one kernel forward and one backward.
#include "cuda_kernels.h"
#include "planned.h"
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {
const char *const kSource = R"(
// x Φ(x) and its derivative (arXiv 1606.08415).
__device__ float normal_share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ float gelu_slope(float x) { return normal_share(x) + x * 0.39894228f * expf(-0.5f * x * x); }

// xs [rows, 2 * width] to ys [rows, width]: the first half of a row times the GELU of the second.
template <typename T> __device__ void gated_gelu(const T *xs, int width, long long numbers, T *ys) {
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
  if (at >= numbers) return;
  const T *row = xs + at / width * 2 * width + at % width;
  const float gate = wide(row[width]);
  ys[at] = narrow<T>(wide(row[0]) * gate * normal_share(gate));
}
template <typename T> __device__ void gated_gelu_gradient(const T *grad, const T *xs, int width, long long numbers, T *to_xs) {
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
  if (at >= numbers) return;
  const long long first = at / width * 2 * width + at % width;
  const float g = wide(grad[at]), x = wide(xs[first]), gate = wide(xs[first + width]);
  to_xs[first] = narrow<T>(g * gate * normal_share(gate));
  to_xs[first + width] = narrow<T>(g * x * gelu_slope(gate));
}

// x σ(1.702 x): CLIP's.
template <typename T> __device__ void quick_gelu(const T *xs, int, long long numbers, T *ys) {
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
  if (at >= numbers) return;
  const float x = wide(xs[at]);
  ys[at] = narrow<T>(x * sigmoid_of(1.702f * x));
}
template <typename T> __device__ void quick_gelu_gradient(const T *grad, const T *xs, int, long long numbers, T *to_xs) {
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
  if (at >= numbers) return;
  const float x = wide(xs[at]), s = sigmoid_of(1.702f * x);
  to_xs[at] = narrow<T>(wide(grad[at]) * s * (1.0f + 1.702f * x * (1.0f - s)));
}

#define KERNELS(T, NAME)                                                                                                                    \
  extern "C" __global__ void gated_gelu_##NAME(const T *xs, int width, long long numbers, T *ys) { gated_gelu(xs, width, numbers, ys); }    \
  extern "C" __global__ void gated_gelu_gradient_##NAME(const T *grad, const T *xs, int width, long long numbers, T *to_xs) {               \
    gated_gelu_gradient(grad, xs, width, numbers, to_xs);                                                                                   \
  }                                                                                                                                         \
  extern "C" __global__ void quick_gelu_##NAME(const T *xs, int width, long long numbers, T *ys) { quick_gelu(xs, width, numbers, ys); }    \
  extern "C" __global__ void quick_gelu_gradient_##NAME(const T *grad, const T *xs, int width, long long numbers, T *to_xs) {               \
    quick_gelu_gradient(grad, xs, width, numbers, to_xs);                                                                                   \
  }
IN_EACH_KIND(KERNELS)
)";

CudaKernels &kernels() {
  static CudaKernels all(kSource);
  return all;
}

// The kernel `name` forward and `name`_gradient backward.
struct Gate : torch::autograd::Function<Gate> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &given, const std::string &name, bool halves) {
    const c10::DeviceGuard on_device(given.device());
    const auto xs = given.contiguous();
    auto sizes = xs.sizes().vec();
    sizes.back() /= halves ? 2 : 1;
    auto ys = at::empty(sizes, xs.options());
    int width = static_cast<int>(sizes.back());
    long long numbers = ys.numel();
    const void *x = xs.data_ptr();
    void *y = ys.data_ptr();
    kernels().run(name, xs.scalar_type(), xs.device(), {parts(numbers, 256), 1}, {&x, &width, &numbers, &y});
    if (is_planned(xs)) count_moved(double(xs.nbytes() + ys.nbytes()));
    ctx->save_for_backward({xs});
    ctx->saved_data["name"] = name;
    return ys;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const auto xs = ctx->get_saved_variables()[0];
    const c10::DeviceGuard on_device(xs.device());
    const auto grad = grads[0].contiguous();
    auto to_xs = at::empty_like(xs);
    int width = static_cast<int>(grad.size(-1));
    long long numbers = grad.numel();
    const void *g = grad.data_ptr(), *x = xs.data_ptr();
    void *to = to_xs.data_ptr();
    kernels().run(ctx->saved_data["name"].toStringRef() + "_gradient", xs.scalar_type(), xs.device(), {parts(numbers, 256), 1},
                  {&g, &x, &width, &numbers, &to});
    if (is_planned(xs)) count_moved(double(grad.nbytes() + 2 * xs.nbytes()));
    return {to_xs, at::Tensor(), at::Tensor()};
  }
};

char *gate(at::Tensor *xs, const char *name, bool halves, at::Tensor **out) {
  return guarded([&] {
    *out = nullptr;
    if (xs->numel() > 0 && kernels().take(*xs)) *out = new at::Tensor(Gate::apply(*xs, std::string(name), halves));
  });
}
} // namespace

extern "C" {
// Of xs [.., 2 * width]: [.., width]. No tensor where the kernels cannot be had.
char *lorabooth_gated_gelu(at::Tensor *xs, at::Tensor **out) { return gate(xs, "gated_gelu", true, out); }

// Element by element. No tensor where the kernels cannot be had.
char *lorabooth_quick_gelu(at::Tensor *xs, at::Tensor **out) { return gate(xs, "quick_gelu", false, out); }
}
