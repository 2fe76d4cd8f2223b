// The card's memory, which is the host's, handed out as CUDA's caching allocator does (c10/cuda/CUDACachingAllocator.cpp, with its default
// settings): sizes in steps of 512 bytes, from segments of 2 MiB (for at most 1 MiB), of 20 MiB (below 10 MiB) or of the size in whole
// 2 MiB; the smallest free block that fits, split where enough is left; free neighbours become one. And pinned memory
// (ATen/core/CachingHostAllocator.h).
#pragma once
#include "order.h"
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <atomic>
#include <cstring>
#include <memory>
#include <set>
#include <sys/mman.h>
#include <thread>

namespace fake_cuda {
// Whether what another thread does in a card's place is done.
using Done = std::shared_ptr<std::atomic<bool>>;

struct Event {
  Clock clock;
  std::vector<Done> begun; // on its stream, before it was recorded
};

constexpr size_t kStep = 512, kSmall = 1 << 20, kSmallSegment = 2 << 20, kLargeSegment = 20 << 20, kSegmentOfItsOwn = 10 << 20;

inline size_t rounded(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

struct Block {
  char *start;
  size_t size;
  int64_t stream;
  bool is_small, is_used;
  Block *before, *behind; // in the segment
  Accesses accesses;
};

struct Smaller {
  bool operator()(const Block *a, const Block *b) const {
    return std::tie(a->stream, a->size, a->start) < std::tie(b->stream, b->size, b->start);
  }
};

class Memory final : public c10::DeviceAllocator {
  std::recursive_mutex lock;
  std::set<Block *, Smaller> pools[2]; // free blocks: large, small
  std::map<const char *, Block *> used;
  long allocated = 0, most_allocated = 0, reserved = 0, most_reserved = 0, number = 0;
  long most_since_report = 0;
  bool has_streams = false;
  struct Pinned {
    size_t size, taken;
    std::vector<Access> copies; // that the host has not waited for
    std::vector<size_t> sums;
  };
  std::map<const char *, Pinned> pinned;
  long pinned_bytes = 0, pinned_taken = 0, registered_bytes = 0;
  std::map<int64_t, std::vector<Done>> begun; // by stream

  Block *cached(size_t size, bool is_small, int64_t stream) {
    Block wanted{nullptr, size, stream};
    auto &pool = pools[is_small];
    const auto found = pool.lower_bound(&wanted);
    if (found == pool.end() || (*found)->stream != stream) return nullptr;
    Block *block = *found;
    pool.erase(found);
    return block;
  }

  Block *segment(size_t size, bool is_small, int64_t stream) {
    const size_t bytes = is_small ? kSmallSegment : size < kSegmentOfItsOwn ? kLargeSegment : rounded(size, kSmallSegment);
    if (reserved + static_cast<long>(bytes) > limit()) release_cached();
    if (reserved + static_cast<long>(bytes) > limit()) return nullptr;
    void *start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) stop("the host has no memory left to stand in for the card's");
    reserved += bytes;
    most_reserved = std::max(most_reserved, reserved);
    return new Block{static_cast<char *>(start), bytes, stream, is_small, false, nullptr, nullptr};
  }

  // The driver's: whole segments alone.
  void release_cached() {
    for (auto &pool : pools)
      for (auto at = pool.begin(); at != pool.end();) {
        Block *block = *at;
        if (block->before || block->behind) {
          ++at;
          continue;
        }
        at = pool.erase(at);
        munmap(block->start, block->size);
        reserved -= block->size;
        delete block;
      }
  }

  void split(Block *block, size_t size) {
    const size_t rest = block->size - size;
    if (!(block->is_small ? rest >= kStep : rest > kSmall)) return;
    auto *remaining = new Block{block->start + size, rest, block->stream, block->is_small, false, block, block->behind};
    if (block->behind) block->behind->before = remaining;
    block->behind = remaining, block->size = size;
    pools[block->is_small].insert(remaining);
  }

  // Takes the free block behind `block`, which is in no pool, into it.
  static void absorb(Block *block) {
    Block *next = block->behind;
    block->size += next->size, block->behind = next->behind;
    if (next->behind) next->behind->before = block;
    delete next;
  }

  long limit() const { return std::min(settings().memory, static_cast<long>(fraction * settings().memory)); }

  [[noreturn]] void fail(size_t bytes) {
    char text[300];
    const double mib = 1 << 20;
    snprintf(text, sizeof text, "CUDA out of memory. Tried to allocate %.2f MiB. GPU 0 has a total capacity of %.2f MiB of which %.2f MiB is free. ",
             bytes / mib, settings().memory / mib, (limit() - reserved) / mib);
    throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, text);
  }

  Block *holding(const void *place) {
    auto above = used.upper_bound(static_cast<const char *>(place));
    if (above == used.begin()) return nullptr;
    Block *block = std::prev(above)->second;
    return place < block->start + block->size ? block : nullptr;
  }

  std::map<const char *, Pinned>::iterator pinned_at(const void *place) {
    auto above = pinned.upper_bound(static_cast<const char *>(place));
    if (above == pinned.begin()) return pinned.end();
    --above;
    return place < above->first + above->second.size ? above : pinned.end();
  }

  static size_t sum_of(const Access &part) {
    size_t sum = 0;
    for (const char *at = part.begin; settings().computes && at < part.end; ++at) sum = sum * 31 + static_cast<unsigned char>(*at);
    return sum;
  }

  // Copies that the host has waited for are done; until then nobody may have written what they read.
  void check_copies(Pinned &part) {
    for (size_t i = part.copies.size(); i-- > 0;) {
      if (!includes(order.host, part.copies[i].stream, part.copies[i].tick)) continue;
      if (sum_of(part.copies[i]) != part.sums[i]) stop("pinned memory was written before the copy from it had ended");
      part.copies.erase(part.copies.begin() + i), part.sums.erase(part.sums.begin() + i);
    }
  }

  void check_all_copies() {
    for (auto &[start, part] : pinned) check_copies(part);
  }

public:
  Order order;
  double fraction = 1;

  // The one memory of the one device.
  static Memory &all() {
    static auto *memory = new Memory;
    return *memory;
  }
  std::unique_lock<std::recursive_mutex> locked() { return std::unique_lock<std::recursive_mutex>(lock); }

  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::CUDA, 0);
    if (bytes == 0) return {nullptr, nullptr, &Memory::release, device};
    const auto guard = locked();
    counts().allocation();
    if (++number == atol(setting("FAKE_CUDA_FAIL_AT", "0").c_str())) fail(bytes); // which a process may set anew for itself
    const size_t size = rounded(bytes, kStep);
    const bool is_small = size <= kSmall;
    Block *block = cached(size, is_small, current_stream);
    if (!block) block = segment(size, is_small, current_stream);
    if (!block) fail(bytes);
    split(block, size);
    block->is_used = true;
    used[block->start] = block;
    allocated += block->size;
    most_allocated = std::max(most_allocated, allocated), most_since_report = std::max(most_since_report, allocated);
    // Whoever had it before on this stream may still use it.
    touch(block->start, block->start + block->size, true, "an allocation");
    // Read before it is written, it is no number.
    if (settings().computes) memset(block->start, 0xff, block->size);
    return {block->start, block->start, &Memory::release, device};
  }

  static void release(void *start) {
    if (!start) return;
    auto &memory = all();
    const auto guard = memory.locked();
    const auto found = memory.used.find(static_cast<char *>(start));
    if (found == memory.used.end()) stop("memory is freed twice");
    Block *block = found->second;
    memory.used.erase(found);
    memory.allocated -= block->size;
    block->accesses.free(memory.order, block->stream);
    block->is_used = false;
    auto &pool = memory.pools[block->is_small];
    if (block->behind && !block->behind->is_used) {
      pool.erase(block->behind);
      absorb(block);
    }
    if (block->before && !block->before->is_used) {
      block = block->before;
      pool.erase(block);
      absorb(block);
    }
    pool.insert(block);
  }

  // The present stream reads or writes a part of memory now.
  void touch(const void *begin, const void *end, bool writes, const std::string &what) {
    const auto guard = locked();
    const long tick = order.next(current_stream);
    Block *block = has_streams ? holding(begin) : nullptr;
    if (block) block->accesses.add(order, {static_cast<const char *>(begin), static_cast<const char *>(end), current_stream, tick, writes}, what);
  }

  // From the second stream on it is noted who uses what. All that is there was written by the default stream.
  int64_t new_stream() {
    const auto guard = locked();
    if (!has_streams) {
      has_streams = true;
      const long tick = order.next(0);
      for (auto &[start, block] : used) block->accesses.add(order, {start, start + block->size, 0, tick, true}, "");
    }
    return 1 + order.made++ % kStreams;
  }

  // Something begins on `stream` that ends by itself.
  Done begins(int64_t stream) {
    const auto guard = locked();
    auto done = std::make_shared<std::atomic<bool>>(false);
    auto &all = begun[stream];
    all.erase(std::remove_if(all.begin(), all.end(), [](const Done &one) { return one->load(); }), all.end());
    all.push_back(done);
    return done;
  }
  std::vector<Done> begun_on(int64_t stream) {
    const auto guard = locked();
    return begun[stream];
  }
  static void wait_for(const std::vector<Done> &begun) {
    for (const auto &done : begun)
      while (!*done) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  // The host has seen that `event` has come.
  void host_saw(const Event &event) {
    const auto guard = locked();
    advance(order.host, event.clock);
  }

  void host_waits(const std::string &reason, std::optional<int64_t> stream) {
    counts().wait(reason);
    std::map<int64_t, std::vector<Done>> all;
    {
      const auto guard = locked();
      all = begun;
    }
    for (const auto &[of, some] : all)
      if (!stream || of == *stream) wait_for(some);
    const auto guard = locked();
    stream ? order.host_waits_for(*stream) : order.host_waits_for_all();
    check_all_copies();
  }

  // The end of the block that holds `place`, for a kernel that is given no length.
  const char *end_of(const void *place) {
    const auto guard = locked();
    Block *block = holding(place);
    return block ? block->start + block->size : nullptr;
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Memory::release; }
  void copy_data(void *to, const void *from, size_t bytes) const override { memcpy(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    host_waits("emptyCache", std::nullopt);
    const auto guard = locked();
    release_cached();
  }
  void recordStream(const c10::DataPtr &, c10::Stream) override { stop("recordStream is not stood in for"); }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    const auto guard = locked();
    most_allocated = allocated, most_reserved = reserved;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    const auto guard = locked();
    return {settings().memory - reserved, settings().memory};
  }
  // A program reads its peak at the end of each step: that is when the counts are written.
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    const auto guard = locked();
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = allocated, stats.allocated_bytes[0].peak = most_allocated;
    stats.reserved_bytes[0].current = reserved, stats.reserved_bytes[0].peak = most_reserved;
    report();
    return stats;
  }
  void report() {
    const auto guard = locked();
    const auto field = [](const char *name, long value) { return std::string("\"") + name + "\": " + std::to_string(value); };
    counts().write(field("allocated", allocated) + ", " + field("peak_allocated", most_allocated) + ", " + field("reserved", reserved) + ", " +
                   field("peak_reserved", most_reserved) + ", " + field("peak_since_last", most_since_report) + ", " + field("pinned", pinned_bytes) + ", " + field("pinned_taken", pinned_taken) + ", " + field("registered", registered_bytes) +
                   ", " + field("allocations_so_far", number));
    most_since_report = allocated;
  }

  // ---- pinned memory
  void *pin(size_t bytes) {
    size_t taken = kStep;
    while (taken < bytes) taken *= 2;
    void *start = aligned_alloc(kStep, taken);
    if (!start) stop("the host has no memory left to pin");
    const auto guard = locked();
    pinned[static_cast<char *>(start)] = {bytes, taken};
    pinned_bytes += bytes, pinned_taken += taken;
    return start;
  }
  static void unpin(void *start) {
    if (!start) return;
    auto &memory = all();
    const auto guard = memory.locked();
    const auto found = memory.pinned.find(static_cast<char *>(start));
    memory.check_copies(found->second);
    if (!found->second.copies.empty()) stop("pinned memory is freed before the copy from it has ended");
    memory.pinned_bytes -= found->second.size, memory.pinned_taken -= found->second.taken;
    memory.pinned.erase(found);
    ::free(start);
  }
  // The program's own memory, of which no part may be pinned already.
  bool register_host(char *start, size_t bytes) {
    const auto guard = locked();
    const auto behind = pinned.lower_bound(start + bytes);
    if (behind != pinned.begin() && std::prev(behind)->first + std::prev(behind)->second.size > start) return false;
    pinned[start] = {bytes, 0};
    registered_bytes += bytes;
    return true;
  }
  bool unregister_host(char *start) {
    const auto guard = locked();
    const auto found = pinned.find(start);
    if (found == pinned.end() || found->second.taken > 0) return false;
    check_copies(found->second);
    if (!found->second.copies.empty()) stop("memory of the host is unregistered before the copy from it has ended");
    registered_bytes -= found->second.size;
    pinned.erase(found);
    return true;
  }
  bool is_pinned(const void *place) {
    const auto guard = locked();
    return pinned_at(place) != pinned.end();
  }
  // The present stream copies from or to this part of the host's memory, and the host goes on.
  void copy_beside(const char *begin, size_t bytes, const std::string &what) {
    const auto guard = locked();
    const auto found = pinned_at(begin);
    if (found == pinned.end()) stop(what + " with non_blocking, " + std::to_string(bytes) + " bytes, but the host's memory is not pinned");
    const Access copy{begin, begin + bytes, current_stream, order.streams[current_stream][current_stream], false};
    found->second.copies.push_back(copy), found->second.sums.push_back(sum_of(copy));
  }
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void *start = Memory::all().pin(bytes);
    return {start, start, &Memory::unpin, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Memory::unpin; }
  void copy_data(void *to, const void *from, size_t bytes) const override { memcpy(to, from, bytes); }
};

inline PinnedAllocator &pinned_allocator() {
  static auto *one = new PinnedAllocator; // for as long as the process lives
  return *one;
}
} // namespace fake_cuda
