// Streams and events: what the device has certainly done before what. Everything runs at once here, so an order that is missing shows in
// no number; it is kept with vector clocks instead (Mattern, "Virtual Time and Global States of Distributed Systems", 1988).
#pragma once
#include "report.h"

namespace fake_cuda {
using Clock = std::map<int64_t, long>; // stream to the number of its operations

inline void advance(Clock &clock, const Clock &other) {
  for (const auto &[stream, tick] : other) clock[stream] = std::max(clock[stream], tick);
}

inline bool includes(const Clock &clock, int64_t stream, long tick) {
  const auto found = clock.find(stream);
  return tick == 0 || (found != clock.end() && found->second >= tick);
}

inline thread_local int64_t current_stream = 0;
constexpr int64_t kStreams = 32; // that a program is given in turn (c10/cuda/CUDAStream.cpp)

// Not guarded by a lock of its own: by memory's, whose checks use it.
struct Order {
  std::map<int64_t, Clock> streams;
  Clock host; // what the host knows to be done
  int64_t made = 0;

  // The stream does one thing more; what the host has waited for comes before it.
  long next(int64_t stream) {
    advance(streams[stream], host);
    return ++streams[stream][stream];
  }
  bool is_before(int64_t earlier, long tick, int64_t later) {
    return earlier == later || includes(host, earlier, tick) || includes(streams[later], earlier, tick);
  }
  void host_waits_for(int64_t stream) { advance(host, streams[stream]); }
  void host_waits_for_all() {
    for (const auto &[stream, clock] : streams) advance(host, clock);
  }
};

// One part of memory that one stream has read or written.
struct Access {
  const char *begin, *end;
  int64_t stream;
  long tick;
  bool writes;
};

class Accesses {
  std::vector<Access> all;

public:
  void add(Order &order, const Access &now, const std::string &what) {
    for (const Access &before : all) {
      const bool apart = before.end <= now.begin || now.end <= before.begin;
      if (apart || !(before.writes || now.writes) || order.is_before(before.stream, before.tick, now.stream)) continue;
      stop(what + " on stream " + std::to_string(now.stream) + (now.writes ? " writes" : " reads") + " memory that stream " +
           std::to_string(before.stream) + " still " + (before.writes ? "writes" : "reads") + ": there is no event between them");
    }
    // All that overlaps is ordered: it is forgotten where whoever comes after this one comes after it too.
    const auto is_covered = [&](const Access &before) {
      const bool inside = now.begin <= before.begin && before.end <= now.end;
      return inside && (now.writes || (!before.writes && before.stream == now.stream));
    };
    all.erase(std::remove_if(all.begin(), all.end(), is_covered), all.end());
    all.push_back(now);
  }

  // Memory that goes back to the stream it was allocated on, whose next allocation may take it at once.
  void free(Order &order, int64_t stream) {
    for (const Access &before : all)
      if (!order.is_before(before.stream, before.tick, stream))
        stop("memory is freed that stream " + std::to_string(before.stream) + " still uses");
    all.clear();
  }
};
} // namespace fake_cuda
