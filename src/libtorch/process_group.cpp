// c10d's rendezvous (TCPStore) and its process group over gloo.
#define USE_C10D_GLOO 1
#include "shim.h"
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {
struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> backend;
};

using Work = c10::intrusive_ptr<c10d::Work>;

std::vector<uint8_t> bytes(const char *text, int64_t length) { return {text, text + length}; }
} // namespace

// Comes together with the other ranks. `hosts`: this rank serves the store, on the socket `listener` where that is not -1.
extern "C" char *lorabooth_group_join(const char *master, int64_t port, bool hosts, int64_t listener, const char *prefix,
                                      const char *own_address, int64_t rank, int64_t world, int64_t timeout_ms, Group **out) {
  return guarded([&] {
    std::chrono::milliseconds timeout(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = hosts;
    options.numWorkers = static_cast<size_t>(world);
    options.waitWorkers = false;
    options.timeout = timeout;
    if (listener >= 0) options.masterListenFd = static_cast<int>(listener);
    auto group = std::make_unique<Group>();
    auto store = c10::make_intrusive<c10d::TCPStore>(master, options);
    group->store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    group->store->setTimeout(timeout);
    auto gloo = c10d::ProcessGroupGloo::Options::create(timeout);
    gloo->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(own_address));
    group->backend = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<c10d::PrefixStore>("gloo", group->store), static_cast<int>(rank), static_cast<int>(world), gloo);
    *out = group.release();
  });
}

extern "C" void lorabooth_group_leave(Group *group) { delete group; }

// Begins to add `tensor` over all ranks, in place; `lorabooth_work_wait` ends it.
extern "C" char *lorabooth_group_sum(Group *group, at::Tensor *tensor, Work **out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::SUM;
    *out = new Work(group->backend->allreduce(tensors, options));
  });
}

extern "C" char *lorabooth_work_wait(Work *work) {
  std::unique_ptr<Work> owned(work);
  return guarded([&] { (*owned)->wait(); });
}

extern "C" char *lorabooth_group_broadcast(Group *group, at::Tensor *tensor, int64_t root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    group->backend->broadcast(tensors, options)->wait();
  });
}

// `gathered` holds each rank's `tensor`, in the ranks' order.
extern "C" char *lorabooth_group_gather(Group *group, at::Tensor *tensor, at::Tensor **gathered, int64_t world) {
  return guarded([&] {
    std::vector<at::Tensor> input{*tensor};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int64_t rank = 0; rank < world; ++rank) outputs[0].push_back(*gathered[rank]);
    group->backend->allgather(outputs, input)->wait();
  });
}

extern "C" char *lorabooth_store_set(Group *group, const char *key, const char *value, int64_t length) {
  return guarded([&] { group->store->set(key, bytes(value, length)); });
}

// The value of `key`, malloc'ed, and its length; null and -1 where there is none.
extern "C" char *lorabooth_store_get(Group *group, const char *key, char **value, int64_t *length) {
  return guarded([&] {
    *value = nullptr;
    *length = -1;
    if (!group->store->check({key})) return;
    auto found = group->store->get(key);
    *value = static_cast<char *>(malloc(found.size() + 1));
    memcpy(*value, found.data(), found.size());
    *length = static_cast<int64_t>(found.size());
  });
}
