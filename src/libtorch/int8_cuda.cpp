// LLM.int8() on a CUDA device without a wait for it: kernels of our own around libtorch's int8 product.
#include "cuda_kernels.h"
#include <c10/core/DeviceGuard.h>

namespace {
// Columns of outliers are found on the device and stay there.
const char *const kSource = R"(
// Marks the columns of xs [m, k] that hold a number of at least the threshold. A thread looks through 8 rows of one column.
template <typename T> __device__ void mark(const T *xs, int m, int k, float threshold, int *marks) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= k) return;
  const int end = min(m, (int)(blockIdx.y + 1) * 8);
  bool found = false;
  for (int row = blockIdx.y * 8; row < end; ++row) found |= fabsf(wide(xs[(long long)row * k + column])) >= threshold;
  if (found) marks[column] = 1;
}

// A block quantises a row: its largest number that is no outlier becomes 127. One more block lists the marked columns, in order.
template <typename T>
__device__ void quantise(const T *xs, int m, int k, float threshold, const int *marks, signed char *codes, float *largest, int *columns,
                         int *count) {
  __shared__ float most[256];
  __shared__ int before[257];
  const int thread = threadIdx.x;
  if (blockIdx.x == m) {
    const int share = (k + 255) / 256, start = min(k, thread * share), end = min(k, start + share);
    int found = 0;
    for (int c = start; c < end; ++c) found += marks[c];
    before[thread + 1] = found;
    __syncthreads();
    if (thread == 0) {
      before[0] = 0;
      for (int i = 0; i < 256; ++i) before[i + 1] += before[i];
      *count = before[256];
    }
    __syncthreads();
    int at = before[thread];
    for (int c = start; c < end; ++c)
      if (marks[c]) columns[at++] = c;
    return;
  }
  const T *row = xs + (long long)blockIdx.x * k;
  float mine = 0;
  for (int c = thread; c < k; c += 256) {
    const float x = fabsf(wide(row[c]));
    if (!(x >= threshold)) mine = x > mine || x != x ? x : mine;
  }
  most[thread] = mine;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (thread < half) {
      const float other = most[thread + half];
      if (other > most[thread] || other != other) most[thread] = other;
    }
    __syncthreads();
  }
  const float scale = __fdiv_rn(127.0f, fmaxf(most[0], 1.17549435e-38f));
  for (int c = thread; c < k; c += 256)
    codes[(long long)blockIdx.x * k + c] = marks[c] ? 0 : (signed char)rintf(__fmul_rn(wide(row[c]), scale));
  if (thread == 0) largest[blockIdx.x] = most[0];
}

// ys [m, n]: the sums of codes in the numbers that they stand for, the outliers' columns times theirs, and the bias. A block makes 64
// columns of 16 rows.
template <typename T>
__device__ void finish(const int *sums, const T *xs, const signed char *weight, const float *scales, const float *largest,
                       const int *columns, const int *count, const T *bias, int m, int n, int k, T *ys) {
  const int column = blockIdx.x * 64 + threadIdx.x % 64, first = blockIdx.y * 16 + threadIdx.x / 64;
  if (column >= n) return;
  const float scale = scales[column], added = bias ? wide(bias[column]) : 0.0f;
  float outliers[4] = {0, 0, 0, 0};
  const int outlying = *count;
  for (int i = 0; i < outlying; ++i) {
    const int c = columns[i];
    const float w = weight[(long long)column * k + c] * scale;
    for (int j = 0; j < 4; ++j)
      if (first + 4 * j < m) outliers[j] += wide(xs[(long long)(first + 4 * j) * k + c]) * w;
  }
  for (int j = 0; j < 4; ++j) {
    const int row = first + 4 * j;
    if (row >= m) break;
    const float y = sums[(long long)row * n + column] * __fdiv_rn(largest[row], 127.0f) * scale + outliers[j];
    // In two roundings where there is a bias, as a sum of two tensors has it.
    ys[(long long)row * n + column] = bias ? narrow<T>(wide(narrow<T>(y)) + added) : narrow<T>(y);
  }
}

// grad [m, n] times the scales of the weight's rows.
template <typename T> __device__ void scale_columns(const T *grad, const float *scales, int n, long long numbers, T *scaled) {
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
  if (at < numbers) scaled[at] = narrow<T>(wide(grad[at]) * scales[at % n]);
}

#define KERNELS(T, NAME)                                                                                                     \
  extern "C" __global__ void mark_##NAME(const T *xs, int m, int k, float threshold, int *marks) {                           \
    mark(xs, m, k, threshold, marks);                                                                                        \
  }                                                                                                                          \
  extern "C" __global__ void quantise_##NAME(const T *xs, int m, int k, float threshold, const int *marks,                   \
                                             signed char *codes, float *largest, int *columns, int *count) {                 \
    quantise(xs, m, k, threshold, marks, codes, largest, columns, count);                                                    \
  }                                                                                                                          \
  extern "C" __global__ void finish_##NAME(const int *sums, const T *xs, const signed char *weight, const float *scales,     \
                                           const float *largest, const int *columns, const int *count, const T *bias, int m, \
                                           int n, int k, T *ys) {                                                            \
    finish(sums, xs, weight, scales, largest, columns, count, bias, m, n, k, ys);                                            \
  }                                                                                                                          \
  extern "C" __global__ void scale_##NAME(const T *grad, const float *scales, int n, long long numbers, T *scaled) {         \
    scale_columns(grad, scales, n, numbers, scaled);                                                                         \
  }
IN_EACH_KIND(KERNELS)
)";

CudaKernels &kernels() {
  static CudaKernels all(kSource);
  return all;
}

bool is_taken(const at::Tensor &xs) { return xs.dim() == 2 && kernels().take(xs); }

// CUDA's int8 product takes no fewer rows.
constexpr int64_t kRows = 32;
} // namespace

extern "C" {
// xs [m, k] times the transpose of the weight that codes [n, k] and scales [n] stand for, plus the bias [n] where there is one: [m, n]. No
// tensor where these kernels cannot be had. k and n are multiples of 8.
char *lorabooth_int8_product(at::Tensor *xs_in, at::Tensor *codes, at::Tensor *scales, at::Tensor *bias_in, double threshold,
                             at::Tensor **out) {
  return guarded([&] {
    *out = nullptr;
    if (!is_taken(*xs_in)) return;
    const at::NoGradGuard no_grad;
    const c10::DeviceGuard on_device(xs_in->device());
    const auto xs = xs_in->contiguous(), bias = bias_in ? bias_in->to(xs_in->scalar_type()).contiguous() : at::Tensor();
    int m = static_cast<int>(xs.size(0)), k = static_cast<int>(xs.size(1)), n = static_cast<int>(codes->size(0));
    if (m == 0) return;
    const auto numbers = [&](at::ScalarType kind) { return xs.options().dtype(kind); };
    // The columns' marks, the columns that are marked, and how many they are.
    auto columns = at::zeros({2 * int64_t(k) + 1}, numbers(at::kInt));
    int *marks = static_cast<int *>(columns.data_ptr()), *list = marks + k, *count = list + k;
    auto rows = at::empty({std::max<int64_t>(m, kRows), k}, numbers(at::kChar));
    auto largest = at::empty({m}, numbers(at::kFloat));
    auto ys = at::empty({m, n}, xs.options());
    const void *x = xs.data_ptr(), *w = codes->data_ptr(), *s = scales->data_ptr(), *b = bias.defined() ? bias.data_ptr() : nullptr;
    void *q = rows.data_ptr(), *l = largest.data_ptr(), *y = ys.data_ptr();
    float limit = threshold > 0 ? static_cast<float>(threshold) : std::numeric_limits<float>::infinity();
    const auto run = [&](const char *name, std::array<unsigned, 2> blocks, std::initializer_list<void *> arguments) {
      kernels().run(name, xs.scalar_type(), xs.device(), blocks, arguments);
    };
    if (threshold > 0) run("mark", {parts(k, 256), parts(m, 8)}, {&x, &m, &k, &limit, &marks});
    run("quantise", {unsigned(m) + 1, 1}, {&x, &m, &k, &limit, &marks, &q, &l, &list, &count});
    const auto sums = at::_int_mm(rows, codes->t());
    const void *sum = sums.data_ptr();
    run("finish", {parts(n, 64), parts(m, 16)}, {&sum, &x, &w, &s, &l, &list, &count, &b, &m, &n, &k, &y});
    *out = new at::Tensor(ys);
  });
}

// grad [m, n] with each column times its scale, in its dtype. No tensor where these kernels cannot be had.
char *lorabooth_int8_scaled(at::Tensor *grad_in, at::Tensor *scales, at::Tensor **out) {
  return guarded([&] {
    *out = nullptr;
    if (!is_taken(*grad_in)) return;
    const at::NoGradGuard no_grad;
    const c10::DeviceGuard on_device(grad_in->device());
    const auto grad = grad_in->contiguous();
    auto scaled = at::empty_like(grad);
    long long numbers = grad.numel();
    int n = static_cast<int>(grad.size(1));
    const void *g = grad.data_ptr(), *s = scales->data_ptr();
    void *to = scaled.data_ptr();
    if (numbers) kernels().run("scale", grad.scalar_type(), grad.device(), {parts(numbers, 256), 1}, {&g, &s, &n, &numbers, &to});
    *out = new at::Tensor(scaled);
  });
}
}
