// c10d's rendezvous (TCPStore) and its process group over gloo.
#include "process_group.h"
#include <c10/util/Logging.h>

namespace {
std::vector<uint8_t> bytes(const char *text, int64_t length) { return {text, text + length}; }

struct GlooSum : Sum {
  c10::intrusive_ptr<c10d::Work> work;
  at::Tensor tensor, on_host;

  void wait() override {
    work->wait();
    if (!on_host.is_same(tensor)) tensor.copy_(on_host);
  }
};
} // namespace

std::unique_ptr<Sum> Group::begin_sum(const at::Tensor &tensor) {
  if (nccl && tensor.is_cuda()) return begin_nccl_sum(*nccl, tensor, timeout);
  auto sum = std::make_unique<GlooSum>();
  sum->tensor = tensor;
  sum->on_host = tensor.to(at::kCPU);
  std::vector<at::Tensor> tensors{sum->on_host};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::SUM;
  sum->work = gloo->allreduce(tensors, options);
  return sum;
}

using Store = c10::intrusive_ptr<c10d::TCPStore>;

extern "C" {
// A connection to the store of `host`, which this process serves with `serves`; port 0 is a free one. `port` is the one it has.
char *lorabooth_store_open(const char *host, int64_t *port, bool serves, int64_t timeout_ms, Store **out) {
  return guarded([&] {
    // What fails is an error here: c10d's log says it again, with a backtrace.
    FLAGS_caffe2_log_level = 3;
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(*port);
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *port = store->getPort();
    *out = new Store(store);
  });
}

void lorabooth_store_close(Store *store) { delete store; }

char *lorabooth_store_set(Store *store, const char *key, const char *value, int64_t length) {
  return guarded([&] { (*store)->set(key, bytes(value, length)); });
}

// The value of `key`, malloc'ed, and its length; null and -1 where there is none.
char *lorabooth_store_get(Store *store, const char *key, char **value, int64_t *length) {
  return guarded([&] {
    *value = nullptr;
    *length = -1;
    if (!(*store)->check({key})) return;
    auto found = (*store)->get(key);
    *value = static_cast<char *>(malloc(found.size() + 1));
    memcpy(*value, found.data(), found.size());
    *length = static_cast<int64_t>(found.size());
  });
}

// Comes together with the other ranks.
char *lorabooth_group_join(Store *store, const char *prefix, const char *own_address, int64_t rank, int64_t world,
                           int64_t timeout_ms, Group **out) {
  return guarded([&] {
    std::chrono::milliseconds timeout(timeout_ms);
    auto group = std::make_unique<Group>();
    group->store = *store;
    group->rank = rank;
    group->world = world;
    group->timeout = timeout;
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(own_address));
    group->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>(prefix, *store),
                                                              static_cast<int>(rank), static_cast<int>(world), options);
    *out = group.release();
  });
}

void lorabooth_group_leave(Group *group) { delete group; }

char *lorabooth_group_sum(Group *group, at::Tensor *tensor) {
  return guarded([&] { group->begin_sum(*tensor)->wait(); });
}

char *lorabooth_group_broadcast(Group *group, at::Tensor *tensor, int64_t root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    group->gloo->broadcast(tensors, options)->wait();
  });
}

// `gathered` holds each rank's `tensor`, in the ranks' order.
char *lorabooth_group_gather(Group *group, at::Tensor *tensor, at::Tensor **gathered) {
  return guarded([&] {
    std::vector<at::Tensor> input{*tensor};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int64_t rank = 0; rank < group->world; ++rank) outputs[0].push_back(*gathered[rank]);
    group->gloo->allgather(outputs, input)->wait();
  });
}
}
