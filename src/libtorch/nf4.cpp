// NF4: weights in blocks with one scale each, of which every number is one of 16 (Dettmers et al., "QLoRA", arXiv 2305.14314, appendix E).
// Codes, scales and their bytes are those of bitsandbytes.
#include "cuda_kernels.h"
#include "planned.h"
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// What the sixteen codes stand for, here and in the kernels' source.
#define NF4_CODE -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f, \
  -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, \
  0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f
#define AS_TEXT_(...) #__VA_ARGS__
#define AS_TEXT(...) AS_TEXT_(__VA_ARGS__)

namespace {
constexpr float kCode[16] = {NF4_CODE};
// bitsandbytes' least scale to divide by.
constexpr float kLeast = 1e-38f;
// Numbers that a thread takes at least.
constexpr int64_t kGrain = 1 << 15;

// The codes of n numbers between -1 and 1: how many midpoints lie below each.
void codes_of(const float *scaled, int64_t n, uint8_t *codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = 0;
  for (int k = 0; k < 15; ++k) {
    const float midpoint = (kCode[k] + kCode[k + 1]) / 2;
    for (int64_t i = 0; i < n; ++i) codes[i] += scaled[i] > midpoint;
  }
}

template <typename T> void quantise(const T *weight, int64_t n, int64_t size, uint8_t *packed, float *scales) {
  const int64_t blocks = (n + size - 1) / size;
  at::parallel_for(0, blocks, std::max<int64_t>(1, kGrain / size), [&](int64_t first, int64_t last) {
    std::vector<float> numbers(size);
    std::vector<uint8_t> codes(size + 1);
    for (int64_t block = first; block < last; ++block) {
      const int64_t start = block * size, count = std::min(size, n - start);
      float largest = 0;
      for (int64_t i = 0; i < count; ++i) {
        numbers[i] = static_cast<float>(weight[start + i]);
        largest = std::max(largest, std::fabs(numbers[i]));
      }
      // As bitsandbytes: a whole block is multiplied by the reciprocal, a short one divided.
      const bool is_whole = count == size;
      const float divisor = std::max(largest, kLeast), factor = 1.0f / divisor;
      scales[block] = is_whole ? largest : divisor;
      if (is_whole) {
        for (int64_t i = 0; i < count; ++i) numbers[i] *= factor;
      } else {
        for (int64_t i = 0; i < count; ++i) numbers[i] /= divisor;
      }
      codes_of(numbers.data(), count, codes.data());
      // What an odd number of them is filled up with stands for 0.
      codes[count] = 7;
      for (int64_t i = 0; i < count; i += 2) packed[(start + i) / 2] = static_cast<uint8_t>(codes[i] << 4 | codes[i + 1]);
    }
  });
}

// The scales of all blocks as they lie in memory.
struct Scales {
  // float32, or uint8 where they are quantised themselves.
  const void *data;
  // Those of the scales, in blocks of `size`; null where they are not quantised.
  const float *nested;
  const float *map;
  float offset;
  int64_t size;

  float of(int64_t block) const {
    if (!nested) return static_cast<const float *>(data)[block];
    const float scaled = map[static_cast<const uint8_t *>(data)[block]] * nested[block / size];
    return scaled + offset;
  }
};

#if defined(__x86_64__)
// The 32 codes of 16 bytes, a byte each.
__attribute__((target("ssse3"))) inline void take_apart(const uint8_t *packed, __m128i both[2]) {
  const __m128i mask = _mm_set1_epi8(0xf), codes = _mm_loadu_si128((const __m128i *)packed);
  const __m128i first = _mm_and_si128(_mm_srli_epi16(codes, 4), mask), second = _mm_and_si128(codes, mask);
  both[0] = _mm_unpacklo_epi8(first, second);
  both[1] = _mm_unpackhi_epi8(first, second);
}

// The numbers of 16 bytes of codes, of which `table` has the 16 that there are: a plane of bytes of the table at a time is looked up.
__attribute__((target("ssse3"))) void look_up(const uint8_t *packed, const uint16_t *table, uint16_t *out, int64_t bytes) {
  alignas(16) uint8_t planes[2][16];
  for (int i = 0; i < 16; ++i) planes[0][i] = table[i] & 0xff, planes[1][i] = table[i] >> 8;
  const __m128i low = _mm_load_si128((const __m128i *)planes[0]), high = _mm_load_si128((const __m128i *)planes[1]);
  for (int64_t i = 0; i < bytes; i += 16) {
    __m128i both[2];
    take_apart(packed + i, both);
    for (int half = 0; half < 2; ++half) {
      const __m128i l = _mm_shuffle_epi8(low, both[half]), h = _mm_shuffle_epi8(high, both[half]);
      __m128i *to = (__m128i *)(out + 2 * i + 16 * half);
      _mm_storeu_si128(to, _mm_unpacklo_epi8(l, h));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(l, h));
    }
  }
}

__attribute__((target("ssse3"))) void look_up(const uint8_t *packed, const uint32_t *table, uint32_t *out, int64_t bytes) {
  alignas(16) uint8_t planes[4][16];
  __m128i plane[4];
  for (int p = 0; p < 4; ++p) {
    for (int i = 0; i < 16; ++i) planes[p][i] = table[i] >> (8 * p) & 0xff;
    plane[p] = _mm_load_si128((const __m128i *)planes[p]);
  }
  for (int64_t i = 0; i < bytes; i += 16) {
    __m128i both[2];
    take_apart(packed + i, both);
    for (int half = 0; half < 2; ++half) {
      __m128i b[4];
      for (int p = 0; p < 4; ++p) b[p] = _mm_shuffle_epi8(plane[p], both[half]);
      const __m128i low[2] = {_mm_unpacklo_epi8(b[0], b[1]), _mm_unpackhi_epi8(b[0], b[1])};
      const __m128i high[2] = {_mm_unpacklo_epi8(b[2], b[3]), _mm_unpackhi_epi8(b[2], b[3])};
      __m128i *to = (__m128i *)(out + 2 * i + 16 * half);
      for (int part = 0; part < 2; ++part) {
        _mm_storeu_si128(to + 2 * part, _mm_unpacklo_epi16(low[part], high[part]));
        _mm_storeu_si128(to + 2 * part + 1, _mm_unpackhi_epi16(low[part], high[part]));
      }
    }
  }
}

bool looks_up() {
  static const bool can = __builtin_cpu_supports("ssse3");
  return can;
}
#else
template <typename Bits> void look_up(const uint8_t *, const Bits *, Bits *, int64_t) {}
bool looks_up() { return false; }
#endif

template <typename T> void expand(const uint8_t *packed, const Scales &scales, int64_t n, int64_t size, T *out) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  const int64_t blocks = (n + size - 1) / size;
  at::parallel_for(0, blocks, std::max<int64_t>(1, kGrain / size), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t start = block * size, count = std::min(size, n - start);
      const float scale = scales.of(block);
      T table[16];
      for (int i = 0; i < 16; ++i) table[i] = static_cast<T>(kCode[i] * scale);
      int64_t done = 0;
      if (looks_up()) {
        done = count / 32 * 32;
        Bits bits[16];
        memcpy(bits, table, sizeof bits);
        look_up(packed + start / 2, bits, reinterpret_cast<Bits *>(out + start), done / 2);
      }
      for (int64_t i = done; i < count; ++i) {
        const uint8_t byte = packed[(start + i) / 2];
        out[start + i] = table[i % 2 ? byte & 0xf : byte >> 4];
      }
    }
  });
}

const char *const kSource = "__device__ const float kCode[16] = {" AS_TEXT(NF4_CODE) "};" R"(

template <typename T> struct alignas(8 * sizeof(T) < 16 ? 8 * sizeof(T) : 16) Eight { T numbers[8]; };

// A thread makes 8 numbers of 4 bytes; a block of numbers with one scale is a multiple of that.
template <typename T>
__device__ void expand(const unsigned char *packed, const unsigned char *bytes, const float *scales, const float *nested, const float *map,
                       float offset, long long n, int size, int nested_size, T *out) {
  __shared__ float code[16];
  if (threadIdx.x < 16) code[threadIdx.x] = kCode[threadIdx.x];
  __syncthreads();
  const long long start = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
  if (start >= n) return;
  const long long block = start / size;
  const float scale = nested ? __fadd_rn(__fmul_rn(map[bytes[block]], nested[block / nested_size]), offset) : scales[block];
  Eight<T> made;
  for (int i = 0; i < 4; ++i) {
    const unsigned char byte = start + 2 * i < n ? packed[start / 2 + i] : 0;
    made.numbers[2 * i] = narrow<T>(__fmul_rn(code[byte >> 4], scale));
    made.numbers[2 * i + 1] = narrow<T>(__fmul_rn(code[byte & 15], scale));
  }
  if (start + 8 <= n) {
    *(Eight<T> *)(out + start) = made;
  } else {
    for (int i = 0; start + i < n; ++i) out[start + i] = made.numbers[i];
  }
}

#define KERNELS(T, NAME)                                                                                                              \
  extern "C" __global__ void expand_##NAME(const unsigned char *packed, const unsigned char *bytes, const float *scales,              \
                                           const float *nested, const float *map, float offset, long long n, int size,                \
                                           int nested_size, T *out) {                                                                 \
    expand(packed, bytes, scales, nested, map, offset, n, size, nested_size, out);                                                    \
  }
IN_EACH_KIND(KERNELS)
)";

CudaKernels &kernels() {
  static CudaKernels all(kSource);
  return all;
}

// The same by libtorch's operations, where the kernels cannot be had.
at::Tensor expand_by_operations(const at::Tensor &packed, const at::Tensor &scales, int64_t n, int64_t size, at::ScalarType kind) {
  const auto nibbles = at::stack({packed.flatten().bitwise_right_shift(4), packed.flatten().bitwise_and(15)}, 1).flatten().narrow(0, 0, n);
  const auto code = at::tensor(at::ArrayRef<float>(kCode, 16)).to(packed.device());
  const auto repeated = scales.repeat_interleave(size).narrow(0, 0, n);
  return (code.index_select(0, nibbles.to(at::kLong)) * repeated).to(kind);
}
} // namespace

extern "C" {
// The codes (uint8, two a byte) and scales (float32) of a weight on the CPU in blocks of `size` numbers, an even number.
char *lorabooth_nf4_quantise(at::Tensor *weight_in, int64_t size, at::Tensor **packed_out, at::Tensor **scales_out) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    const auto weight = weight_in->contiguous();
    const int64_t n = weight.numel();
    auto packed = at::empty({(n + 1) / 2, 1}, at::kByte);
    auto scales = at::empty({(n + size - 1) / size}, at::kFloat);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, weight.scalar_type(), "nf4_quantise", [&] {
      quantise(weight.const_data_ptr<scalar_t>(), n, size, packed.data_ptr<uint8_t>(), scales.data_ptr<float>());
    });
    *packed_out = new at::Tensor(packed);
    *scales_out = new at::Tensor(scales);
  });
}

// The weight of `shape` that they stand for, in `kind`, float32, float16 or bfloat16. `nested` (float32), `map` (float32 [256]) and `offset` are what the scales are
// quantised by; no tensors where they are float32 themselves.
char *lorabooth_nf4_expand(at::Tensor *packed_in, at::Tensor *scales_in, at::Tensor *nested, at::Tensor *map, double offset, int64_t size,
                           int64_t nested_size, const int64_t *shape, int64_t dims, int32_t kind_in, at::Tensor **out) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    const c10::DeviceGuard on_device(packed_in->device());
    const auto kind = static_cast<at::ScalarType>(kind_in);
    const auto packed = packed_in->contiguous(), scales = scales_in->contiguous();
    const at::IntArrayRef sizes(shape, dims);
    int64_t n = 1;
    for (const int64_t d : sizes) n *= d;
    auto weight = at::empty(sizes, packed.options().dtype(kind));
    // Codes are read, and numbers written and read.
    if (is_planned(packed)) count_moved(double(packed.nbytes()) + 2.0 * weight.nbytes());
    if (n == 0 || is_planned(packed)) {
      *out = new at::Tensor(weight);
      return;
    }
    if (kernels().take(weight)) {
      const void *p = packed.data_ptr(), *data = scales.data_ptr(), *none = nullptr;
      const void *bytes = nested ? data : none, *floats = nested ? none : data;
      const void *over = nested ? nested->data_ptr() : none, *of = nested ? map->data_ptr() : none;
      float added = static_cast<float>(offset);
      long long numbers = n;
      int block = static_cast<int>(size), nested_block = static_cast<int>(nested_size);
      void *to = weight.data_ptr();
      kernels().run("expand", kind, weight.device(), {parts(n, 2048), 1},
                    {&p, &bytes, &floats, &over, &of, &added, &numbers, &block, &nested_block, &to});
    } else if (packed.is_cpu()) {
      const Scales all{scales.const_data_ptr(), nested ? nested->const_data_ptr<float>() : nullptr, nested ? map->const_data_ptr<float>() : nullptr,
                       static_cast<float>(offset), nested_size};
      AT_DISPATCH_SWITCH(kind, "nf4_expand", AT_DISPATCH_CASE(at::kFloat, [&] {
        expand(packed.const_data_ptr<uint8_t>(), all, n, size, weight.data_ptr<scalar_t>());
      }) AT_DISPATCH_CASE(at::kHalf, [&] {
        expand(packed.const_data_ptr<uint8_t>(), all, n, size, weight.data_ptr<scalar_t>());
      }) AT_DISPATCH_CASE(at::kBFloat16, [&] {
        expand(packed.const_data_ptr<uint8_t>(), all, n, size, weight.data_ptr<scalar_t>());
      }));
    } else {
      const auto wide = nested ? map->index_select(0, scales.to(at::kLong)) *
                                         nested->repeat_interleave(nested_size).narrow(0, 0, scales.numel()) + offset
                               : scales;
      weight = expand_by_operations(packed, wide, n, size, kind).view(sizes);
    }
    *out = new at::Tensor(weight);
  });
}
}
