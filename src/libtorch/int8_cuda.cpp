// LLM.int8() on a CUDA device without a wait for it: kernels of our own around libtorch's int8 product.
#include "cuda_kernels.h"
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace {
// Columns of outliers are found on the device and stay there.
const char *const kSource = R"(
// A block quantises a row of xs [m, k]: its largest number that is no outlier becomes 127, and outliers become 0. Columns that hold one are
// marked, a bit each. One more block clears the marks that the next product will use.
template <typename T>
__device__ void quantise(const T *xs, int m, int k, float threshold, signed char *codes, float *largest, unsigned *marks, unsigned *next,
                         int words) {
  __shared__ float most[256];
  const int thread = threadIdx.x;
  if (blockIdx.x == m) {
    for (int i = thread; i < words; i += 256) next[i] = 0;
    return;
  }
  const T *row = xs + (long long)blockIdx.x * k;
  float mine = 0;
  for (int c = thread; c < k; c += 256) {
    const float x = fabsf(wide(row[c]));
    if (x >= threshold) atomicOr(marks + c / 32, 1u << (c % 32));
    else mine = x > mine || x != x ? x : mine;
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
  for (int c = thread; c < k; c += 256) {
    const float x = wide(row[c]);
    codes[(long long)blockIdx.x * k + c] = fabsf(x) >= threshold ? 0 : (signed char)rintf(__fmul_rn(x, scale));
  }
  if (thread == 0) largest[blockIdx.x] = most[0];
}

// ys [m, n]: the sums of codes in the numbers that they stand for, with the marked columns as they are in place of their codes, and the
// bias. A block makes 64 columns of 16 rows.
template <typename T>
__device__ void finish(const int *sums, const T *xs, const signed char *codes, const signed char *weight, const float *scales,
                       const float *largest, const unsigned *marks, int words, const T *bias, int m, int n, int k, T *ys) {
  __shared__ unsigned marked[256];
  __shared__ int any;
  const int thread = threadIdx.x, column = blockIdx.x * 64 + thread % 64, first = blockIdx.y * 16 + thread / 64;
  const float scale = column < n ? scales[column] : 0.0f;
  float outliers[4] = {0, 0, 0, 0};
  int quantised[4] = {0, 0, 0, 0};
  for (int start = 0; start < words; start += 256) {
    if (thread == 0) any = 0;
    __syncthreads();
    marked[thread] = start + thread < words ? marks[start + thread] : 0;
    if (marked[thread]) any = 1;
    __syncthreads();
    for (int w = 0; any && column < n && w < 256; ++w)
      for (unsigned bits = marked[w]; bits; bits &= bits - 1) {
        const int c = (start + w) * 32 + __ffs(bits) - 1, code = weight[(long long)column * k + c];
        for (int j = 0; j < 4; ++j) {
          const long long at = (long long)(first + 4 * j) * k + c;
          if (first + 4 * j >= m) break;
          outliers[j] += wide(xs[at]) * (code * scale);
          quantised[j] += codes[at] * code;
        }
      }
    __syncthreads();
  }
  if (column >= n) return;
  const float added = bias ? wide(bias[column]) : 0.0f;
  for (int j = 0; j < 4; ++j) {
    const int row = first + 4 * j;
    if (row >= m) break;
    const float y = (sums[(long long)row * n + column] - quantised[j]) * __fdiv_rn(largest[row], 127.0f) * scale + outliers[j];
    // In two roundings where there is a bias, as a sum of two tensors has it.
    ys[(long long)row * n + column] = bias ? narrow<T>(wide(narrow<T>(y)) + added) : narrow<T>(y);
  }
}

template <typename T> struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

// In one launch what a product with columns of the weight takes: the first blocks make scaled, grad [m, n] times the scales of the weight's
// rows, and the others dense [n, width], the codes of `width` columns.
template <typename T>
__device__ void widen(const T *grad, const float *scales, int n, long long numbers, int blocks, T *scaled, const signed char *codes, int k,
                      int width, T *dense) {
  if (blockIdx.x < blocks) {
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    if (at < numbers) scaled[at] = narrow<T>(wide(grad[at]) * scales[at % n]);
    return;
  }
  const long long at = ((long long)(blockIdx.x - blocks) * 256 + threadIdx.x) * 4;
  if (at >= (long long)n * width) return;
  const unsigned packed = *(const unsigned *)(codes + at / width * k + at % width);
  Four<T> four;
  for (int j = 0; j < 4; ++j) four.x[j] = narrow<T>((float)(signed char)(packed >> (8 * j)));
  *(Four<T> *)(dense + at) = four;
}

#define KERNELS(T, NAME)                                                                                                           \
  extern "C" __global__ void quantise_##NAME(const T *xs, int m, int k, float threshold, signed char *codes, float *largest,       \
                                             unsigned *marks, unsigned *next, int words) {                                         \
    quantise(xs, m, k, threshold, codes, largest, marks, next, words);                                                             \
  }                                                                                                                                \
  extern "C" __global__ void finish_##NAME(const int *sums, const T *xs, const signed char *codes, const signed char *weight,      \
                                           const float *scales, const float *largest, const unsigned *marks, int words,            \
                                           const T *bias, int m, int n, int k, T *ys) {                                            \
    finish(sums, xs, codes, weight, scales, largest, marks, words, bias, m, n, k, ys);                                             \
  }                                                                                                                                \
  extern "C" __global__ void widen_##NAME(const T *grad, const float *scales, int n, long long numbers, int blocks, T *scaled,     \
                                          const signed char *codes, int k, int width, T *dense) {                                  \
    widen(grad, scales, n, numbers, blocks, scaled, codes, k, width, dense);                                                       \
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

// Two sets of a bit a column on a device's stream: a product marks its outliers in one, which is clear, and clears the other for the next.
// So no launch is needed that clears them.
struct Marks {
  at::Tensor sets[2];
  int64_t words = 0;
  bool second = false;

  // With room for `columns`.
  static Marks &of(const at::Tensor &xs, int64_t columns) {
    static auto *all = new std::map<std::pair<int, c10::StreamId>, Marks>; // for as long as the process lives
    const c10::impl::VirtualGuardImpl device_api(xs.device().type());
    auto &own = (*all)[{xs.device().index(), device_api.getStream(xs.device()).id()}];
    const int64_t words = (columns + 31) / 32;
    if (words > own.words) {
      const auto made = [&] { return at::zeros({words}, xs.options().dtype(at::kInt)); };
      at::Tensor first = made(), second = made();
      own = {{first, second}, words};
    }
    return own;
  }
};
std::mutex lock; // of the marks, and of the order in which they are used
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
    const std::lock_guard<std::mutex> guard(lock);
    const auto numbers = [&](at::ScalarType kind) { return xs.options().dtype(kind); };
    auto rows = at::empty({std::max<int64_t>(m, kRows), k}, numbers(at::kChar));
    auto largest = at::empty({m}, numbers(at::kFloat));
    auto &marks = Marks::of(xs, k);
    void *now = marks.sets[marks.second].data_ptr(), *next = marks.sets[!marks.second].data_ptr();
    const void *x = xs.data_ptr(), *w = codes->data_ptr(), *s = scales->data_ptr(), *b = bias.defined() ? bias.data_ptr() : nullptr;
    void *q = rows.data_ptr(), *l = largest.data_ptr();
    float limit = threshold > 0 ? static_cast<float>(threshold) : std::numeric_limits<float>::infinity();
    const auto run = [&](const char *name, std::array<unsigned, 2> blocks, std::initializer_list<void *> arguments) {
      kernels().run(name, xs.scalar_type(), xs.device(), blocks, arguments);
    };
    int to_clear = static_cast<int>(marks.words), words = (k + 31) / 32;
    run("quantise", {unsigned(m) + 1, 1}, {&x, &m, &k, &limit, &q, &l, &now, &next, &to_clear});
    marks.second = !marks.second; // what fails from here on leaves the other set clear
    const auto sums = at::_int_mm(rows, codes->t());
    auto ys = at::empty({m, n}, xs.options());
    const void *sum = sums.data_ptr();
    void *y = ys.data_ptr();
    run("finish", {parts(n, 64), parts(m, 16)}, {&sum, &x, &q, &w, &s, &l, &now, &words, &b, &m, &n, &k, &y});
    *out = new at::Tensor(ys);
  });
}

// grad [m, n] times the weight that codes [n, k] and scales [n] stand for: [m, k] in its dtype. The codes are made dense in columns of
// about at_once numbers. No tensor where these kernels cannot be had. k is a multiple of 4.
char *lorabooth_int8_gradient(at::Tensor *grad_in, at::Tensor *codes, at::Tensor *scales, int64_t at_once, at::Tensor **out) {
  return guarded([&] {
    *out = nullptr;
    if (!is_taken(*grad_in) || reinterpret_cast<uintptr_t>(codes->data_ptr()) % 4 != 0) return;
    const at::NoGradGuard no_grad;
    const c10::DeviceGuard on_device(grad_in->device());
    const auto grad = grad_in->contiguous();
    int n = static_cast<int>(codes->size(0)), k = static_cast<int>(codes->size(1));
    if (grad.size(0) == 0 || n == 0) return;
    const auto scaled = at::empty_like(grad);
    const int most = static_cast<int>(std::clamp<int64_t>(at_once / n / 8 * 8, 8, k));
    auto ys = most < k ? at::empty({grad.size(0), k}, grad.options()) : at::Tensor();
    for (int first = 0; first < k; first += most) {
      int width = std::min(most, k - first), blocks = first == 0 ? static_cast<int>(parts(grad.numel(), 256)) : 0;
      const auto dense = at::empty({n, width}, grad.options());
      long long numbers = grad.numel();
      const void *g = grad.data_ptr(), *s = scales->data_ptr(), *c = static_cast<const char *>(codes->data_ptr()) + first;
      void *to = scaled.data_ptr(), *d = dense.data_ptr();
      kernels().run("widen", grad.scalar_type(), grad.device(), {unsigned(blocks) + parts(int64_t(n) * width, 1024), 1},
                    {&g, &s, &n, &numbers, &blocks, &to, &c, &k, &width, &d});
      if (!ys.defined()) {
        ys = at::mm(scaled, dense);
        break;
      }
      auto part = ys.narrow(1, first, width);
      at::mm_out(part, scaled, dense);
    }
    *out = new at::Tensor(ys);
  });
}
}
