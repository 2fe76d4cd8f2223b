#include "shim.h"
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <mutex>

static at::Generator generator_of(int64_t cuda_index) {
  return cuda_index < 0
             ? at::detail::getDefaultCPUGenerator()
             : at::globalContext().defaultGenerator(at::Device(at::kCUDA, cuda_index));
}

extern "C" {
void *lorabooth_generator_new(int64_t seed) {
  return new at::Generator(at::detail::createCPUGenerator(static_cast<uint64_t>(seed)));
}

void lorabooth_generator_free(void *generator) { delete static_cast<at::Generator *>(generator); }

char *lorabooth_generator_fill(void *generator, at::Tensor *tensor, int32_t kind, double low, double high) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto &g = *static_cast<at::Generator *>(generator);
    switch (kind) {
    case 0: tensor->normal_(0, 1, g); break;
    case 1: tensor->uniform_(low, high, g); break;
    default: tensor->random_(static_cast<int64_t>(low), static_cast<int64_t>(high), g);
    }
  });
}

char *lorabooth_generator_randperm(void *generator, int64_t n, at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(at::randperm(n, *static_cast<at::Generator *>(generator), at::kLong));
  });
}

char *lorabooth_generator_state(void *generator, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(static_cast<at::Generator *>(generator)->get_state()); });
}

char *lorabooth_rng_state(int64_t cuda_index, at::Tensor **out) {
  return guarded([&] {
    auto generator = generator_of(cuda_index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

char *lorabooth_set_rng_state(int64_t cuda_index, at::Tensor *state) {
  return guarded([&] {
    auto generator = generator_of(cuda_index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}
}
