// Dropout on the CPU with the draws of libtorch's own, which takes them one by one through a function pointer, on one thread, and
// keeps a number for each: here they are made in blocks, and a byte is kept.
#include "planned.h"
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <cmath>
#include <mutex>

namespace {
constexpr uint32_t kWords = 624, kShift = 397;

inline uint32_t twisted(uint32_t a, uint32_t b) {
  return ((a & 0x80000000u) | (b & 0x7fffffffu)) >> 1 ^ (0u - (b & 1u) & 0x9908b0dfu);
}

// The Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998) behind libtorch's CPU generator, 624 words at a time.
class Words {
public:
  explicit Words(const at::mt19937 &engine) : pod_(engine.data()), next_(pod_.left_ == 1 ? kWords : pod_.next_) {
    if (next_ < kWords)
      temper();
  }

  at::mt19937 engine() {
    pod_.next_ = next_;
    pod_.left_ = static_cast<int>(kWords + 1 - next_);
    at::mt19937 engine;
    engine.set_data(pod_);
    return engine;
  }

  // For each place whether 53 random bits, as a fraction, are below `probability`: at::bernoulli_distribution<double>.
  void below(double probability, uint8_t *out, int64_t n) {
    const auto limit = static_cast<uint64_t>(std::ceil(std::ldexp(probability, 53)));
    const auto high = static_cast<uint32_t>(limit >> 32), low = static_cast<uint32_t>(limit);
    const auto is_below = [=](uint32_t first, uint32_t second) -> uint8_t {
      const uint32_t top = first & 0x1fffffu;
      return (top < high) | ((top == high) & (second < low));
    };
    while (n > 0) {
      const int64_t pairs = std::min<int64_t>(n, (kWords - next_) / 2);
      const uint32_t *words = tempered_ + next_;
      for (int64_t i = 0; i < pairs; ++i) out[i] = is_below(words[2 * i], words[2 * i + 1]);
      out += pairs, n -= pairs, next_ += static_cast<uint32_t>(2 * pairs);
      if (n == 0) return;
      if (next_ == kWords) {
        refill();
        continue;
      }
      const uint32_t last = tempered_[next_]; // a pair over the end of a block
      refill();
      *out++ = is_below(last, tempered_[next_++]);
      --n;
    }
  }

private:
  at::mt19937_data_pod pod_;
  uint32_t next_;
  uint32_t tempered_[kWords];

  void refill() {
    auto *s = pod_.state_.data();
    for (uint32_t i = 0; i < kWords - kShift; ++i) s[i] = s[i + kShift] ^ twisted(s[i], s[i + 1]);
    for (uint32_t i = kWords - kShift; i < kWords - 1; ++i) s[i] = s[i + kShift - kWords] ^ twisted(s[i], s[i + 1]);
    s[kWords - 1] = s[kShift - 1] ^ twisted(s[kWords - 1], s[0]);
    next_ = 0;
    temper();
  }

  void temper() {
    for (uint32_t i = 0; i < kWords; ++i) {
      uint32_t y = pod_.state_[i];
      y ^= y >> 11;
      y ^= y << 7 & 0x9d2c5680u;
      y ^= y << 15 & 0xefc60000u;
      tempered_[i] = y ^ y >> 18;
    }
  }
};

void draw(at::CPUGeneratorImpl *generator, double probability, uint8_t *out, int64_t n) {
  std::lock_guard<std::mutex> lock(generator->mutex_);
  Words words(generator->engine());
  words.below(probability, out, n);
  generator->set_engine(words.engine());
}

// On some processors libtorch draws through MKL instead: whoever asks for its draws has to ask it.
bool draws_alike() {
  static const bool alike = [] {
    auto theirs = at::detail::createCPUGenerator(1), ours = at::detail::createCPUGenerator(1);
    auto bits = at::empty({2000}, at::kFloat).bernoulli_(0.3, theirs).to(at::kByte), mine = at::empty_like(bits);
    draw(at::check_generator<at::CPUGeneratorImpl>(ours), 0.3, mine.data_ptr<uint8_t>(), mine.numel());
    return at::equal(bits, mine) && at::equal(theirs.get_state(), ours.get_state());
  }();
  return alike;
}
} // namespace

extern "C" {
// A mask of bytes that lies in memory as `xs` does; null in `out` where libtorch itself has to draw.
char *lorabooth_dropout_mask(at::Tensor *xs, double keep, at::Tensor **out) {
  return guarded([&] {
    *out = nullptr;
    if (is_planned(*xs)) {
      *out = new at::Tensor(at::empty_like(*xs, xs->options().dtype(at::kByte)));
      return;
    }
    if (!xs->device().is_cpu() || !xs->is_non_overlapping_and_dense() || !draws_alike()) return;
    auto mask = at::empty_like(*xs, xs->options().dtype(at::kByte));
    auto generator = at::detail::getDefaultCPUGenerator();
    draw(at::check_generator<at::CPUGeneratorImpl>(generator), keep, mask.data_ptr<uint8_t>(), mask.numel());
    *out = new at::Tensor(mask);
  });
}

// `xs` times 1 / keep where the mask is 1, times 0 elsewhere, rounded as libtorch rounds them.
char *lorabooth_dropout_apply(at::Tensor *xs, at::Tensor *mask, double keep, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto ys = at::empty_like(*mask, xs->options());
    if (is_planned(ys)) {
      count_moved(2.0 * ys.nbytes() + mask->nbytes());
      *out = new at::Tensor(ys);
      return;
    }
    const auto in = xs->strides() == mask->strides() ? *xs : ys.copy_(*xs);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, xs->scalar_type(), "dropout", [&] {
      const auto factor = at::ones({}, xs->options()).div_(keep).item<scalar_t>();
      const scalar_t factors[2] = {scalar_t(0), factor};
      const auto *from = in.const_data_ptr<scalar_t>();
      const auto *kept = mask->const_data_ptr<uint8_t>();
      auto *to = ys.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, ys.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = from[i] * (kept[i] ? factors[1] : factors[0]);
      });
    });
    *out = new at::Tensor(ys);
  });
}
}
