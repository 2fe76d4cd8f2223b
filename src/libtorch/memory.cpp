#include "shim.h"
#include <ATen/DeviceAccelerator.h>
#include <c10/core/AllocatorConfig.h>

using c10::CachingDeviceAllocator::DeviceStats;

extern "C" {
char *lorabooth_device_peak(int64_t index, int64_t *allocated, int64_t *reserved) {
  return guarded([&] {
    const auto stats = at::accelerator::getDeviceStats(index);
    *allocated = stats.allocated_bytes[0].peak; // 0: the aggregate over pools
    *reserved = stats.reserved_bytes[0].peak;
  });
}

char *lorabooth_device_reset_peak(int64_t index) {
  return guarded([&] { at::accelerator::resetPeakStats(index); });
}

char *lorabooth_device_memory(int64_t index, int64_t *free, int64_t *total) {
  return guarded([&] {
    const auto info = at::accelerator::getMemoryInfo(index);
    *free = info.first;
    *total = info.second;
  });
}

char *lorabooth_empty_cache() {
  return guarded([&] { at::accelerator::emptyCache(); });
}

char *lorabooth_pinned(int64_t bytes, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true))); });
}

char *lorabooth_synchronize(int64_t index) {
  return guarded([&] { at::accelerator::synchronizeDevice(index); });
}

char *lorabooth_allocator_settings(const char *settings) {
  return guarded([&] { c10::CachingAllocator::setAllocatorSettings(settings); });
}
}
