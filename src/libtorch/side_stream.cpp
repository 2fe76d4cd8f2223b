// Copies to a device on a stream of their own. Streams and events go through the interface that every device registers with c10, so no
// CUDA header is needed.
#include "shim.h"
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace {
struct SideStream {
  c10::impl::VirtualGuardImpl device_api;
  c10::Device device;
  c10::Stream stream;
  c10::Event computed, copied;

  explicit SideStream(c10::Device device)
      : device_api(device.type()), device(device), stream(device_api.getNewStream(device)), computed(device.type()),
        copied(device.type()) {}
  ~SideStream() {
    try {
      device_api.synchronizeStream(stream);
    } catch (...) { // the device may be gone at the end of the process
    }
  }
};
} // namespace

extern "C" {
char *lorabooth_side_stream(int64_t index, void **out) {
  return guarded([&] {
    *out = new SideStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)));
  });
}

void lorabooth_side_stream_free(void *side) { delete static_cast<SideStream *>(side); }

// What the device was given so far may still read the targets: the copies wait for it.
char *lorabooth_side_stream_copy(void *handle, at::Tensor *const *to, at::Tensor *const *from, int64_t n) {
  return guarded([&] {
    auto &side = *static_cast<SideStream *>(handle);
    side.computed.record(side.device_api.getStream(side.device));
    side.computed.block(side.stream);
    c10::StreamGuard on_side(side.stream);
    for (int64_t i = 0; i < n; ++i) to[i]->copy_(*from[i], /*non_blocking=*/true);
    side.copied.record(side.stream);
  });
}

char *lorabooth_side_stream_await(void *handle) {
  return guarded([&] {
    auto &side = *static_cast<SideStream *>(handle);
    side.copied.block(side.device_api.getStream(side.device));
  });
}
}
