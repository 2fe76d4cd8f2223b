// Copies to a device for which neither side waits: through pinned memory, which is kept until the copy from it has ended.
#include "shim.h"
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <deque>
#include <mutex>

namespace {
struct Staged {
  at::Tensor memory;
  c10::Event copied;
};
} // namespace

extern "C" char *lorabooth_upload(at::Tensor *xs, int64_t index, at::Tensor **out) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    // Not taken down with the process, when the device may be gone.
    static auto &lock = *new std::mutex;
    static auto &staged = *new std::deque<Staged>;
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    const c10::impl::VirtualGuardImpl device_api(device.type());
    auto memory = at::empty(xs->sizes(), at::TensorOptions(xs->scalar_type()).pinned_memory(true));
    memory.copy_(*xs);
    *out = new at::Tensor(memory.to(device, /*non_blocking=*/true));
    Staged copy{memory, c10::Event(device.type())};
    copy.copied.record(device_api.getStream(device));
    const std::lock_guard<std::mutex> guard(lock);
    while (!staged.empty() && staged.front().copied.query()) staged.pop_front();
    staged.push_back(std::move(copy));
  });
}
