// An allocator for libtorch's tensors on the host that keeps freed large blocks for the next tensors: a fresh block costs a page
// fault and a cleared page for each 4 KiB, a seventh of a training step. A kept block serves a smaller tensor with a part of
// itself, and neighbours become one again when both are kept: the heap of libc grows over batches of changing lengths, by two
// fifths in forty steps of a small LLaMA. Blocks are only kept as long as all large blocks together stay within
// the most that was ever in use at once, so the peak is that of an allocator that keeps nothing.
#include "shim.h"
#include <c10/core/CPUAllocator.h>
#include <map>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <unordered_map>

namespace {
constexpr size_t kLarge = size_t(1) << 17;
constexpr size_t kPage = size_t(1) << 14;
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
  std::map<char *, size_t> kept_;                // by address, to find neighbours
  std::set<std::pair<size_t, char *>> by_size_;  // the same blocks
  size_t used_bytes_ = 0, kept_bytes_ = 0, most_used_ = 0;

  void *large(size_t bytes) {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> guard(mutex_);
    const auto found = by_size_.lower_bound({size, nullptr});
    if (found != by_size_.end()) {
      const auto [kept_size, start] = *found;
      forget(start, kept_size);
      const bool whole = kept_size <= size + size / 8;
      if (!whole)
        keep(start + size, kept_size - size);
      take(start, whole ? kept_size : size);
      return start;
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

  void keep(char *start, size_t size) {
    by_size_.emplace(size, start);
    kept_.emplace(start, size);
    kept_bytes_ += size;
  }

  void forget(char *start, size_t size) {
    by_size_.erase({size, start});
    kept_.erase(start);
    kept_bytes_ -= size;
  }

  /// Keeps a block that is free now, as one with the kept ones before and behind it.
  void keep_joined(char *start, size_t size) {
    auto next = kept_.lower_bound(start);
    if (next != kept_.begin()) {
      const auto [before, length] = *std::prev(next);
      if (before + length == start) {
        forget(before, length);
        start = before, size += length;
      }
    }
    if (next != kept_.end() && next->first == start + size) {
      const auto [behind, length] = *next;
      forget(behind, length);
      size += length;
    }
    keep(start, size);
  }

  /// Unmaps kept blocks until `most` bytes of them are left: the smallest that is enough, or else the largest. A block that is larger
  /// than need be costs the more to make again.
  void shrink(size_t most) {
    while (kept_bytes_ > most) {
      auto found = by_size_.lower_bound({kept_bytes_ - most, nullptr});
      if (found == by_size_.end())
        found = std::prev(found);
      const auto [size, start] = *found;
      munmap(start, size);
      forget(start, size);
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
          self.keep_joined(static_cast<char *>(data), size);
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
