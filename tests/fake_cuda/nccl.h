// The calls of NCCL (nccl.h) that a data parallel program makes, between processes of one machine that each have a stand-in: numbers go through
// a file that all of them map. As NCCL's, a sum is begun and the host goes on; it ends when all ranks have begun it, and never where one is
// gone, until it is aborted. FAKE_CUDA_NCCL=0: there is none.
#pragma once
#include "memory.h"
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <fcntl.h>
#include <functional>
#include <thread>

namespace fake_cuda {
struct UniqueId {
  char bytes[128];
};

class Communicator {
  static constexpr size_t kMostNumbers = size_t(1) << 26; // of a rank in one sum; pages come as they are written

  // At the beginning of the file, zeros at first: how many ranks have joined, have put their numbers there, and have taken the sum.
  struct Counters {
    std::atomic<long> joined, put, taken;
  };

  int rank, ranks;
  char *file;
  long sums = 0;
  std::atomic<bool> is_aborted{false};
  std::mutex lock;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  std::thread thread; // what the card does by itself

  Counters &counters() { return *reinterpret_cast<Counters *>(file); }
  float *numbers_of(int of) { return reinterpret_cast<float *>(file + 4096) + of * kMostNumbers; }
  size_t file_size() const { return 4096 + ranks * kMostNumbers * sizeof(float); }

  bool wait_for(const std::atomic<long> &counter, long wanted) {
    while (counter < wanted && !is_aborted) std::this_thread::sleep_for(std::chrono::microseconds(50));
    return counter >= wanted;
  }

  void sum(const float *from, float *to, size_t count) {
    const long all = ++sums * ranks;
    memcpy(numbers_of(rank), from, count * sizeof(float));
    ++counters().put;
    if (!wait_for(counters().put, all)) return;
    // In the ranks' order, so that all have the same bits.
    for (size_t i = 0; i < count; ++i) {
      float total = 0;
      for (int of = 0; of < ranks; ++of) total += numbers_of(of)[i];
      to[i] = total;
    }
    ++counters().taken;
    wait_for(counters().taken, all);
  }

  void run() {
    std::unique_lock<std::mutex> guard(lock);
    for (;;) {
      changed.wait(guard, [&] { return is_aborted || !work.empty(); });
      if (is_aborted) return;
      const auto next = std::move(work.front());
      work.pop_front();
      guard.unlock();
      next();
      guard.lock();
    }
  }

public:
  Communicator(const char *path, int rank, int ranks) : rank(rank), ranks(ranks) {
    const int descriptor = open(path, O_CREAT | O_RDWR, 0600);
    if (descriptor < 0 || ftruncate(descriptor, file_size()) != 0) stop(std::string("cannot make ") + path);
    void *start = mmap(nullptr, file_size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0);
    if (start == MAP_FAILED) stop(std::string("cannot map ") + path);
    close(descriptor);
    file = static_cast<char *>(start);
    ++counters().joined;
    wait_for(counters().joined, ranks);
    unlink(path);
    thread = std::thread([this] { run(); });
  }
  ~Communicator() {
    {
      const std::lock_guard<std::mutex> guard(lock);
      is_aborted = true;
    }
    changed.notify_all();
    thread.join();
    munmap(file, file_size());
  }

  void begin_sum(const float *from, float *to, size_t count, int64_t stream) {
    if (count > kMostNumbers) stop("NCCL is stood in for with fewer numbers at a time");
    const auto before = std::exchange(current_stream, stream);
    Memory::all().touch(from, from + count, false, "ncclAllReduce");
    Memory::all().touch(to, to + count, true, "ncclAllReduce");
    current_stream = before;
    counts().launch("ncclAllReduce");
    auto done = Memory::all().begins(stream);
    const std::lock_guard<std::mutex> guard(lock);
    work.push_back([=] { sum(from, to, count), *done = true; });
    changed.notify_all();
  }
};
} // namespace fake_cuda

extern "C" {
int ncclGetUniqueId(fake_cuda::UniqueId *id) {
  static std::atomic<int> made{0};
  if (fake_cuda::setting("FAKE_CUDA_NCCL", "1") == "0") return 2; // ncclSystemError
  snprintf(id->bytes, sizeof id->bytes, "/dev/shm/fake-nccl-%d-%d", getpid(), ++made);
  return 0;
}
int ncclCommInitRank(void **out, int ranks, fake_cuda::UniqueId id, int rank) {
  *out = new fake_cuda::Communicator(id.bytes, rank, ranks);
  return 0;
}
int ncclAllReduce(const void *from, void *to, size_t count, int kind, int operation, void *communicator, void *stream) {
  if (kind != 7 || operation != 0) fake_cuda::stop("of NCCL only sums of float32 are stood in for");
  static_cast<fake_cuda::Communicator *>(communicator)
      ->begin_sum(static_cast<const float *>(from), static_cast<float *>(to), count, reinterpret_cast<int64_t>(stream));
  return 0;
}
int ncclCommAbort(void *communicator) {
  delete static_cast<fake_cuda::Communicator *>(communicator);
  return 0;
}
const char *ncclGetErrorString(int) { return "the stand-in has no NCCL"; }
}
