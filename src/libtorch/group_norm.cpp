// Group normalisation (arXiv 1803.08494) of channels-last images on a CUDA device, with SiLU behind it where wanted, in one kernel forward and
// one backward. libtorch's own takes and makes images of the other layout, so that each of its norms costs two copies beside a convolution.
#include "cuda_kernels.h"
#include "planned.h"
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {
const char *const kSource = R"(
// A thread goes through the places of one channel of a group: threads that follow each other have channels that do.
struct Share {
  int channel, place, step; // of the group; of the part; places from one to the next
  bool works;
  __device__ Share(int width) : channel(threadIdx.x % width), place(threadIdx.x / width), step(256 / width), works(place < step) {}
};

// The sum over a block's threads, in each of them.
__device__ float sum_of_block(float mine) {
  __shared__ float all[256];
  __shared__ float some[16];
  __syncthreads();
  all[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x < 16) {
    float sum = 0;
    for (int i = 0; i < 16; ++i) sum += all[threadIdx.x * 16 + i];
    some[threadIdx.x] = sum;
  }
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += some[i];
  return sum;
}


// The places of a part of an image: a part has `size` of them, the last one the rest.
__device__ int end_of_part(int part, int size, int places) { return min(places, (part + 1) * size); }

// Mean and sum of squared deviations of a group in the places from `first` to `end`, in each thread.
template <typename T>
__device__ void moments_of(const T *group, const Share &share, int first, int end, int channels, int width, float *mean, float *squares) {
  float sum = 0;
  if (share.works)
    for (int p = first + share.place; p < end; p += share.step) sum += wide(group[(long long)p * channels + share.channel]);
  *mean = sum_of_block(sum) / ((end - first) * width);
  sum = 0;
  if (share.works)
    for (int p = first + share.place; p < end; p += share.step) {
      const float apart = wide(group[(long long)p * channels + share.channel]) - *mean;
      sum += apart * apart;
    }
  *squares = sum_of_block(sum);
}

// Those of each group of xs [images, places, channels] in each part of the places, to moments [images * groups, parts, 2]. Blocks are (image
// and group, part).
template <typename T> __device__ void moments_of_parts(const T *xs, int places, int channels, int groups, int size, float *moments) {
  const int width = channels / groups, group = blockIdx.x % groups;
  const T *start = xs + (long long)(blockIdx.x / groups) * places * channels + group * width;
  float mean, squares;
  moments_of(start, Share(width), blockIdx.y * size, end_of_part(blockIdx.y, size, places), channels, width, &mean, &squares);
  if (threadIdx.x == 0) {
    float *own = moments + ((long long)blockIdx.x * gridDim.y + blockIdx.y) * 2;
    own[0] = mean, own[1] = squares;
  }
}

// Mean and reciprocal deviation of a group from the moments of its parts (Chan et al. 1979).
__device__ void joined(const float *moments, int parts, int size, int places, int width, float eps, float *mean, float *scale) {
  float sum = 0;
  for (int i = 0; i < parts; ++i) sum += moments[2 * i] * (end_of_part(i, size, places) - i * size);
  *mean = sum / places;
  float squares = 0;
  for (int i = 0; i < parts; ++i) {
    const float apart = moments[2 * i] - *mean;
    squares += moments[2 * i + 1] + apart * apart * ((end_of_part(i, size, places) - i * size) * width);
  }
  *scale = rsqrtf(squares / ((float)places * width) + eps);
}

// To ys, and mean and reciprocal deviation to stats [images * groups, 2]. Without moments there is one part, whose moments are found here.
template <typename T>
__device__ void norm(const T *xs, const T *weight, const T *bias, const float *moments, int parts, int places, int channels, int groups,
                     int size, float eps, int silu, T *ys, float *stats) {
  const int width = channels / groups, group = blockIdx.x % groups, end = end_of_part(blockIdx.y, size, places);
  const Share share(width);
  float mean, scale;
  if (moments) {
    joined(moments + (long long)blockIdx.x * parts * 2, parts, size, places, width, eps, &mean, &scale);
  } else {
    float own[2];
    const T *start = xs + (long long)(blockIdx.x / groups) * places * channels + group * width;
    moments_of(start, share, 0, places, channels, width, own, own + 1);
    joined(own, 1, places, places, width, eps, &mean, &scale);
  }
  if (threadIdx.x == 0 && blockIdx.y == 0) stats[2 * blockIdx.x] = mean, stats[2 * blockIdx.x + 1] = scale;
  if (!share.works) return;
  const int channel = group * width + share.channel;
  const long long start = (long long)(blockIdx.x / groups) * places * channels + channel;
  const float w = wide(weight[channel]) * scale, b = wide(bias[channel]);
  for (int p = blockIdx.y * size + share.place; p < end; p += share.step) {
    const float y = (wide(xs[start + (long long)p * channels]) - mean) * w + b;
    ys[start + (long long)p * channels] = narrow<T>(silu ? y * sigmoid_of(y) : y);
  }
}

// The gradient of the input; blocks are (image and group, 1).
template <typename T>
__device__ void norm_gradient(const T *grad, const T *xs, const T *weight, const T *bias, const float *stats, int places, int channels,
                              int groups, int silu, T *to_xs) {
  const int width = channels / groups, group = blockIdx.x % groups;
  const Share share(width);
  const float mean = stats[2 * blockIdx.x], scale = stats[2 * blockIdx.x + 1];
  const int channel = group * width + share.channel;
  const long long start = (long long)(blockIdx.x / groups) * places * channels + channel;
  const float w = share.works ? wide(weight[channel]) : 0, b = share.works ? wide(bias[channel]) : 0;
  const auto unit_and_gradient = [&](int p, float *unit) {
    const long long at = start + (long long)p * channels;
    *unit = (wide(xs[at]) - mean) * scale;
    float g = wide(grad[at]) * w;
    if (silu) {
      const float y = *unit * w + b, s = sigmoid_of(y);
      g *= s * (1.0f + y * (1.0f - s));
    }
    return g;
  };
  float sum = 0, along = 0, unit;
  if (share.works)
    for (int p = share.place; p < places; p += share.step) {
      const float g = unit_and_gradient(p, &unit);
      sum += g, along += g * unit;
    }
  const float numbers = (float)places * width;
  sum = sum_of_block(sum) / numbers, along = sum_of_block(along) / numbers;
  if (share.works)
    for (int p = share.place; p < places; p += share.step) {
      const float g = unit_and_gradient(p, &unit);
      to_xs[start + (long long)p * channels] = narrow<T>(scale * (g - sum - unit * along));
    }
}

#define KERNELS(T, NAME)                                                                                                       \
  extern "C" __global__ void moments_##NAME(const T *xs, int places, int channels, int groups, int size, float *to) {          \
    moments_of_parts(xs, places, channels, groups, size, to);                                                                  \
  }                                                                                                                            \
  extern "C" __global__ void norm_##NAME(const T *xs, const T *weight, const T *bias, const float *moments, int parts,         \
                                         int places, int channels, int groups, int size, float eps, int silu, T *ys,           \
                                         float *stats) {                                                                       \
    norm(xs, weight, bias, moments, parts, places, channels, groups, size, eps, silu, ys, stats);                              \
  }                                                                                                                            \
  extern "C" __global__ void norm_gradient_##NAME(const T *grad, const T *xs, const T *weight, const T *bias,                  \
                                                  const float *stats, int places, int channels, int groups, int silu,          \
                                                  T *to_xs) {                                                                  \
    norm_gradient(grad, xs, weight, bias, stats, places, channels, groups, silu, to_xs);                                       \
  }
IN_EACH_KIND(KERNELS)
)";

CudaKernels &kernels() {
  static CudaKernels all(kSource);
  return all;
}

// Numbers of a group that one block goes through; a large image has several.
constexpr int64_t kAtOnce = 1 << 16;
constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

struct GroupNorm : torch::autograd::Function<GroupNorm> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &given, const at::Tensor &weight, const at::Tensor &bias, int64_t groups_,
                            double eps_, bool silu_) {
    const c10::DeviceGuard on_device(given.device());
    const auto xs = given.contiguous(kLayout);
    auto ys = at::empty_like(xs, xs.options(), kLayout);
    int images = static_cast<int>(xs.size(0)), channels = static_cast<int>(xs.size(1)), places = static_cast<int>(xs.size(2) * xs.size(3));
    int groups = static_cast<int>(groups_), width = channels / groups, silu = silu_;
    int count = static_cast<int>(parts(int64_t(places) * width, kAtOnce)), size = static_cast<int>(parts(places, count));
    count = static_cast<int>(parts(places, size));
    float eps = static_cast<float>(eps_);
    const auto floats = [&](int64_t n) { return at::empty({n}, xs.options().dtype(at::kFloat)); };
    auto stats = floats(int64_t(images) * groups * 2), moments = count > 1 ? floats(int64_t(images) * groups * count * 2) : at::Tensor();
    const void *x = xs.data_ptr(), *w = weight.data_ptr(), *b = bias.data_ptr();
    void *m = count > 1 ? moments.data_ptr() : nullptr, *y = ys.data_ptr(), *s = stats.data_ptr();
    const std::array<unsigned, 2> blocks{unsigned(images) * groups, unsigned(count)};
    if (count > 1) kernels().run("moments", xs.scalar_type(), xs.device(), blocks, {&x, &places, &channels, &groups, &size, &m});
    kernels().run("norm", xs.scalar_type(), xs.device(), blocks,
                  {&x, &w, &b, &m, &count, &places, &channels, &groups, &size, &eps, &silu, &y, &s});
    if (is_planned(xs)) count_moved(3.0 * xs.nbytes());
    ctx->save_for_backward({xs, weight, bias, stats});
    ctx->saved_data["groups"] = groups_;
    ctx->saved_data["silu"] = silu_;
    return ys;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &xs = saved[0];
    const c10::DeviceGuard on_device(xs.device());
    const auto grad = grads[0].contiguous(kLayout);
    auto to_xs = at::empty_like(xs, xs.options(), kLayout);
    int groups = static_cast<int>(ctx->saved_data["groups"].toInt()), silu = ctx->saved_data["silu"].toBool();
    int channels = static_cast<int>(xs.size(1)), places = static_cast<int>(xs.size(2) * xs.size(3));
    const void *g = grad.data_ptr(), *x = xs.data_ptr(), *w = saved[1].data_ptr(), *b = saved[2].data_ptr(), *s = saved[3].data_ptr();
    void *to = to_xs.data_ptr();
    kernels().run("norm_gradient", xs.scalar_type(), xs.device(), {unsigned(xs.size(0)) * groups, 1},
                  {&g, &x, &w, &b, &s, &places, &channels, &groups, &silu, &to});
    if (is_planned(xs)) count_moved(4.0 * xs.nbytes());
    return {to_xs, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};
} // namespace

extern "C" {
// xs [b, c, h, w], weight and bias [c] in its dtype, which learn nothing. No tensor where the kernels cannot be had or are not made for it.
char *lorabooth_group_norm(at::Tensor *xs, at::Tensor *weight, at::Tensor *bias, int64_t groups, double eps, bool silu, at::Tensor **out) {
  return guarded([&] {
    *out = nullptr;
    const bool learns = at::GradMode::is_enabled() && (weight->requires_grad() || bias->requires_grad());
    const bool fits = xs->dim() == 4 && xs->numel() > 0 && xs->numel() < (int64_t(1) << 31) && xs->size(1) / groups <= 256;
    const bool alike = weight->scalar_type() == xs->scalar_type() && bias->scalar_type() == xs->scalar_type();
    if (learns || !fits || !alike || !kernels().take(*xs)) return;
    *out = new at::Tensor(GroupNorm::apply(*xs, *weight, *bias, groups, eps, silu));
  });
}
}
