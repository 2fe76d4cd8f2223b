// An allocator for libtorch's tensors on the host that keeps freed large blocks for the next tensor of about that size: a fresh
// block costs a page fault and a cleared page for each 4 KiB, a seventh of a training step. Blocks are only kept as long as all
// large blocks together stay within the most that was ever in use at once, so the peak is that of an allocator that keeps nothing.
#include "shim.h"
#include <c10/core/CPUAllocator.h>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unordered_map>

namespace {
constexpr size_t kLarge = size_t(1) << 20;
constexpr size_t kPage = size_t(1) << 16;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kAlignment = 64;

class HostAllocator final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t bytes) override {
    void *data = nullptr;
    if (bytes >= kLarge)
      data = large(bytes);
    else if (bytes > 0 && posix_memalign(&data, kAlignment, bytes) != 0)
      data = nullptr;
    TORCH_CHECK(data || bytes == 0, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes, " bytes");
    return {data, data, &HostAllocator::free, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &HostAllocator::free; }
  void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  /// Gives every kept block back to the system, and counts the most in use anew.
  void release() {
    std::lock_guard<std::mutex> guard(mutex_);
    shrink(0);
    most_used_ = used_bytes_;
  }

  static HostAllocator &get() {
    static auto *allocator = new HostAllocator; // tensors may outlive static destruction
    return *allocator;
  }

private:
  std::mutex mutex_;
  std::unordered_map<void *, size_t> used_;
  std::multimap<size_t, void *> kept_;
  size_t used_bytes_ = 0, kept_bytes_ = 0, most_used_ = 0;

  void *large(size_t bytes) {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> guard(mutex_);
    auto found = kept_.lower_bound(size);
    if (found != kept_.end() && found->first <= size + size / 8) {
      const auto [kept_size, data] = *found;
      kept_.erase(found);
      kept_bytes_ -= kept_size;
      take(data, kept_size);
      return data;
    }
    shrink(std::max(most_used_, used_bytes_ + size) - used_bytes_ - size);
    void *data = map(size);
    if (!data) {
      shrink(0);
      data = map(size);
    }
    if (data)
      take(data, size);
    return data;
  }

  void take(void *data, size_t size) {
    used_.emplace(data, size);
    used_bytes_ += size;
    most_used_ = std::max(most_used_, used_bytes_);
  }

  /// Unmaps kept blocks, the largest first, until `most` bytes of them are left.
  void shrink(size_t most) {
    while (kept_bytes_ > most) {
      const auto last = std::prev(kept_.end());
      munmap(last->second, last->first);
      kept_bytes_ -= last->first;
      kept_.erase(last);
    }
  }

  static void *map(size_t size) {
    // Huge pages need an address that is a multiple of theirs: more is mapped, and what stands out is given back.
    const size_t spare = size >= kHugePage ? kHugePage : 0;
    void *whole = mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED)
      return nullptr;
    char *start = static_cast<char *>(whole);
    if (spare) {
      const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
      if (before)
        munmap(start, before);
      if (spare - before)
        munmap(start + before + size, spare - before);
      start += before;
      madvise(start, size, MADV_HUGEPAGE);
    }
    return start;
  }

  static void free(void *data) {
    auto &self = get();
    {
      std::lock_guard<std::mutex> guard(self.mutex_);
      const auto found = self.used_.find(data);
      if (found != self.used_.end()) {
        const size_t size = found->second;
        self.used_.erase(found);
        self.used_bytes_ -= size;
        try {
          self.kept_.emplace(size, data);
          self.kept_bytes_ += size;
        } catch (const std::bad_alloc &) { // a deleter must not throw
          munmap(data, size);
        }
        return;
      }
    }
    ::free(data);
  }
};
} // namespace

extern "C" {
void lorabooth_use_host_allocator() { c10::SetCPUAllocator(&HostAllocator::get(), /*priority=*/1); }
void lorabooth_release_host_blocks() { HostAllocator::get().release(); }
}
