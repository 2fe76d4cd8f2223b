// Host memory that was mapped by us, pinned for a device by the CUDA runtime that libtorch's CUDA part brings into the process.
#include "shim.h"
#include <c10/core/DeviceGuard.h>
#include <dlfcn.h>

namespace {
template <class F> F runtime(const char *name) {
  auto function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK(function, "the CUDA runtime has no ", name);
  return function;
}

// The device whose context it is pinned by: the present one may be another process' device.
c10::DeviceGuard on(int64_t index) {
  return c10::DeviceGuard(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)));
}
} // namespace

extern "C" {
char *lorabooth_host_register(int64_t index, void *start, size_t bytes) {
  return guarded([&] {
    const auto guard = on(index);
    const int code = runtime<int (*)(void *, size_t, unsigned)>("cudaHostRegister")(start, bytes, /*flags=*/0);
    TORCH_CHECK(code == 0, "cudaHostRegister: ", runtime<const char *(*)(int)>("cudaGetErrorString")(code));
  });
}

char *lorabooth_host_unregister(int64_t index, void *start) {
  return guarded([&] {
    const auto guard = on(index);
    runtime<int (*)(void *)>("cudaHostUnregister")(start);
  });
}
}
