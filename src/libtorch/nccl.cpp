// NCCL's sums between GPUs, by its C API, from the library that libtorch's CUDA packages bring along: no header of CUDA's is needed.
#include "process_group.h"
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <atomic>
#include <dlfcn.h>
#include <thread>

namespace {
// nccl.h: NCCL_UNIQUE_ID_BYTES, ncclFloat32, ncclSum.
constexpr int ID_BYTES = 128, FLOAT32 = 7, SUM = 0;
struct UniqueId {
  char bytes[ID_BYTES];
};

struct Library {
  int (*get_unique_id)(UniqueId *);
  int (*comm_init_rank)(void **, int, UniqueId, int);
  int (*all_reduce)(const void *, void *, size_t, int, int, void *, void *);
  int (*comm_abort)(void *);
  const char *(*error_string)(int);

  static const Library &loaded() {
    static const Library library;
    return library;
  }

  void check(int code) const { TORCH_CHECK(code == 0, "NCCL: ", error_string(code)); }

private:
  Library() {
    void *file = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(file, "no libnccl.so.2");
    find(file, "ncclGetUniqueId", get_unique_id);
    find(file, "ncclCommInitRank", comm_init_rank);
    find(file, "ncclAllReduce", all_reduce);
    find(file, "ncclCommAbort", comm_abort);
    find(file, "ncclGetErrorString", error_string);
  }

  template <class F> static void find(void *file, const char *name, F &function) {
    function = reinterpret_cast<F>(dlsym(file, name));
    TORCH_CHECK(function, "libnccl.so.2 has no ", name);
  }
};
} // namespace

struct Nccl {
  void *comm = nullptr;
  c10::impl::VirtualGuardImpl device_api;
  c10::Device device;
  c10::Stream stream;

  explicit Nccl(c10::Device device)
      : device_api(device.type()), device(device), stream(device_api.getNewStream(device)) {}
  // Does not wait for ranks that are gone.
  ~Nccl() {
    if (comm) Library::loaded().comm_abort(comm);
  }
};

void NcclFree::operator()(Nccl *nccl) const { delete nccl; }

namespace {
std::atomic<bool> another_failed{false};

struct NcclSum : Sum {
  Nccl &nccl;
  at::Tensor tensor;
  c10::Event computed, done;
  std::chrono::milliseconds timeout;

  NcclSum(Nccl &nccl, at::Tensor tensor, std::chrono::milliseconds timeout)
      : nccl(nccl), tensor(std::move(tensor)), computed(nccl.device.type()), done(nccl.device.type()), timeout(timeout) {}

  // The kernel of a rank that waits for one that is gone would never end: aborted, it does.
  void wait() override {
    auto until = std::chrono::steady_clock::now() + timeout;
    while (!done.query()) {
      if (another_failed || std::chrono::steady_clock::now() > until) {
        Library::loaded().comm_abort(nccl.comm);
        nccl.comm = nullptr;
        TORCH_CHECK(false, "NCCL: no answer of another rank");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    done.block(nccl.device_api.getStream(nccl.device));
  }
};
} // namespace

std::unique_ptr<Sum> begin_nccl_sum(Nccl &nccl, const at::Tensor &tensor, std::chrono::milliseconds timeout) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && nccl.comm, "NCCL: nothing that it can add");
  c10::DeviceGuard on_device(nccl.device);
  auto sum = std::make_unique<NcclSum>(nccl, tensor, timeout);
  sum->computed.record(nccl.device_api.getStream(nccl.device));
  sum->computed.block(nccl.stream);
  auto &library = Library::loaded();
  void *data = tensor.data_ptr();
  library.check(library.all_reduce(data, data, tensor.numel(), FLOAT32, SUM, nccl.comm, nccl.stream.native_handle()));
  sum->done.record(nccl.stream);
  return sum;
}

extern "C" {
void lorabooth_nccl_give_up() { another_failed = true; }

int64_t lorabooth_nccl_id_bytes() { return ID_BYTES; }

// A name for a new group, which its first rank makes; an error where there is no NCCL.
char *lorabooth_nccl_id(char *out) {
  return guarded([&] {
    UniqueId id;
    Library::loaded().check(Library::loaded().get_unique_id(&id));
    memcpy(out, id.bytes, ID_BYTES);
  });
}

// Sums on GPU `index` go through NCCL from now on; all ranks come here together.
char *lorabooth_group_use_nccl(Group *group, int64_t index, const char *name) {
  return guarded([&] {
    c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    c10::DeviceGuard on_device(device);
    std::unique_ptr<Nccl, NcclFree> nccl(new Nccl(device));
    UniqueId id;
    memcpy(id.bytes, name, ID_BYTES);
    auto &library = Library::loaded();
    library.check(library.comm_init_rank(&nccl->comm, static_cast<int>(group->world), id, static_cast<int>(group->rank)));
    group->nccl = std::move(nccl);
  });
}
}
