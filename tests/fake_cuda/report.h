// What the stand-in is told by its environment, what it counts, and how it stops a program that a card would let go wrong.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <unistd.h>
#include <vector>

namespace fake_cuda {
inline std::string setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}

struct Settings {
  std::string report = setting("FAKE_CUDA_REPORT", "");
  bool computes = setting("FAKE_CUDA_COMPUTE", "1") != "0";
  long memory = atol(setting("FAKE_CUDA_MIB", "1048576").c_str()) << 20;
  int major = 7, minor = 5;

  Settings() { sscanf(setting("FAKE_CUDA_CAPABILITY", "7.5").c_str(), "%d.%d", &major, &minor); }
};

inline Settings &settings() {
  static auto *all = new Settings; // for as long as the process lives
  return *all;
}

// A mistake that on a card shows as wrong numbers, sometimes. No error that the program could take for another.
[[noreturn]] inline void stop(const std::string &mistake) {
  fprintf(stderr, "fake CUDA: %s\n", mistake.c_str());
  _exit(86);
}

class Counts {
  std::mutex lock;
  std::map<std::string, long> launches, waits, events;
  long allocations = 0, bytes_to_device = 0, bytes_to_host = 0;

  static std::string object(const std::map<std::string, long> &counts) {
    std::string text;
    for (const auto &[name, count] : counts) text += (text.empty() ? "\"" : ", \"") + name + "\": " + std::to_string(count);
    return "{" + text + "}";
  }

public:
  void launch(const std::string &name, long times = 1) {
    const std::lock_guard<std::mutex> guard(lock);
    launches[name] += times;
  }
  void wait(const std::string &reason) {
    const std::lock_guard<std::mutex> guard(lock);
    ++waits[reason];
  }
  void event(const std::string &name) {
    const std::lock_guard<std::mutex> guard(lock);
    ++events[name];
  }
  void copy(bool to_device, long bytes) {
    const std::lock_guard<std::mutex> guard(lock);
    (to_device ? bytes_to_device : bytes_to_host) += bytes;
  }
  void allocation() {
    const std::lock_guard<std::mutex> guard(lock);
    ++allocations;
  }

  // A line of JSON, and all counts from 0 again.
  void write(const std::string &memory) {
    const std::lock_guard<std::mutex> guard(lock);
    if (!settings().report.empty()) {
      if (FILE *file = fopen(settings().report.c_str(), "a")) {
        fprintf(file, "{\"launches\": %s, \"waits\": %s, \"events\": %s, \"allocations\": %ld, \"to_device\": %ld, \"to_host\": %ld, %s}\n",
                object(launches).c_str(), object(waits).c_str(), object(events).c_str(), allocations, bytes_to_device, bytes_to_host,
                memory.c_str());
        fclose(file);
      }
    }
    launches.clear(), waits.clear(), events.clear();
    allocations = bytes_to_device = bytes_to_host = 0;
  }
};

inline Counts &counts() {
  static auto *all = new Counts; // for as long as the process lives
  return *all;
}
} // namespace fake_cuda
