// The memory and the work of tensors without numbers. libtorch's Meta device gives shapes and dtypes, and its autograd keeps and frees what it
// does for numbers; here is an allocator for that device that gives nothing and counts, and a record of the operations.
// As libtorch itself is compiled: its record of an operation has other members without.
#ifndef NDEBUG
#define NDEBUG
#endif
#include "planned.h"
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <map>
#include <memory>
#include <set>
#include <torch/library.h>
#include <unordered_map>

namespace {
// Blocks from this size on leave no gaps in the host's heap (host_allocator.cpp).
constexpr int64_t kSmall = 1 << 17;
// CUDA's allocator gives multiples of this.
constexpr int64_t kCudaBlock = 512;

using ProductKey = std::array<int64_t, 8>;

struct Meter {
  bool on_cuda;
  bool paused = false;
  int64_t live = 0, peak = 0, small = 0;
  std::map<ProductKey, double> products;
  double bytes = 0, operations = 0;

  void take(int64_t bytes) {
    live += bytes;
    peak = std::max(peak, live);
    if (bytes < kSmall) small += bytes;
  }
  void give(int64_t bytes) {
    live -= bytes;
    if (bytes < kSmall) small -= bytes;
  }
};

// That of the plan which this thread makes. What autograd computes of planned tensors it computes on the thread that asks for it.
thread_local std::shared_ptr<Meter> meter;

struct Block {
  std::shared_ptr<Meter> meter;
  int64_t bytes;
};

void free_block(void *context) {
  auto *block = static_cast<Block *>(context);
  block->meter->give(block->bytes);
  delete block;
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    const c10::Device device(c10::kMeta);
    if (!meter || meter->paused || n == 0) return {nullptr, nullptr, &c10::detail::deleteNothing, device};
    int64_t bytes = static_cast<int64_t>(n);
    if (meter->on_cuda) bytes = (bytes + kCudaBlock - 1) / kCudaBlock * kCudaBlock;
    meter->take(bytes);
    return {nullptr, new Block{meter, bytes}, &free_block, device};
  }
  void copy_data(void *, const void *, std::size_t) const override {}
};

// tch has no name for the Meta device, and says Mps of its tensors. libtorch for Linux has nothing for that device, so what is asked for
// there is made here.
struct NoDevice final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS> {
  // None for which autograd would start a thread.
  c10::DeviceIndex deviceCount() const noexcept override { return 0; }
};

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_meta(size, at::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_meta(size, stride, at::dtype_or_default(dtype));
}

// Whether an operator reads and writes memory by itself: no view, nothing that is made of other operators, and no product, which are
// counted where they are made.
bool moves_bytes(const c10::OperatorHandle &op) {
  static const std::set<std::string> products = {"aten::mm",   "aten::addmm",  "aten::addmm_",      "aten::bmm",
                                                 "aten::baddbmm", "aten::_int_mm", "aten::convolution", "aten::convolution_backward",
                                                 "aten::_scaled_dot_product_flash_attention_for_cpu",
                                                 "aten::_scaled_dot_product_flash_attention_for_cpu_backward"};
  const auto &name = op.operator_name().name;
  if (name == "aten::copy_") return true;
  if (products.count(name) || op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) return false;
  for (const auto &result : op.schema().returns())
    if (result.alias_info() && !result.alias_info()->isWrite()) return false;
  return op.hasKernelForDispatchKey(c10::DispatchKey::Meta) && name.compare(0, 11, "aten::empty") != 0;
}

double bytes_of(c10::ArrayRef<const c10::IValue> values) {
  double bytes = 0;
  for (const auto &value : values) {
    if (value.isTensor() && value.toTensor().defined()) bytes += static_cast<double>(value.toTensor().nbytes());
    if (value.isTensorList())
      for (const at::Tensor &xs : value.toTensorVector()) bytes += static_cast<double>(xs.nbytes());
  }
  return bytes;
}

// What an operation reads, while it runs.
struct Reads : at::ObserverContext {
  double bytes;
};

std::unique_ptr<at::ObserverContext> begin_operation(const at::RecordFunction &function) {
  static thread_local std::unordered_map<const char *, bool> known;
  auto found = known.find(function.name());
  if (found == known.end()) {
    const auto name = function.operator_name();
    const auto op = name ? c10::Dispatcher::singleton().findOp(*name) : std::nullopt;
    found = known.emplace(function.name(), op && moves_bytes(*op)).first;
  }
  if (!meter || !found->second) return nullptr;
  auto reads = std::make_unique<Reads>();
  reads->bytes = bytes_of(function.inputs());
  return reads;
}

void end_operation(const at::RecordFunction &function, at::ObserverContext *reads) {
  if (!reads) return;
  const auto &outputs = function.outputs();
  count_moved(static_cast<Reads *>(reads)->bytes + bytes_of({outputs.data(), outputs.size()}));
}

// A plan that this thread makes, and the one that it made before.
struct Planning {
  std::shared_ptr<Meter> own, before;
  at::CallbackHandle callback;
};
} // namespace

bool plans_for_cuda() { return meter && meter->on_cuda; }

void count_product(ProductKind kind, std::initializer_list<int64_t> sizes, double times, double bytes) {
  if (!meter) return;
  ProductKey key{kind};
  std::copy(sizes.begin(), sizes.end(), key.begin() + 1);
  meter->products[key] += times;
  meter->bytes += bytes;
}

void count_moved(double bytes) {
  if (!meter) return;
  meter->bytes += bytes;
  meter->operations += 1;
}

void count_scratch(const at::Tensor &like, int64_t numbers) {
  if (meter) at::detail::empty_meta({numbers}, like.scalar_type());
}

TORCH_LIBRARY_IMPL(aten, MPS, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
}

C10_REGISTER_GUARD_IMPL(MPS, NoDevice);

extern "C" {
// Has this thread count planned tensors, until `lorabooth_planning_end`.
void *lorabooth_planning_begin(bool on_cuda) {
  static CountingAllocator allocator;
  static const bool installed = (c10::SetAllocator(c10::kMeta, &allocator, /*priority=*/100), true);
  (void)installed;
  register_planned_operators();
  auto own = std::make_shared<Meter>();
  own->on_cuda = on_cuda;
  auto *planning = new Planning{own, meter, 0};
  meter = own;
  // The plan within counts for itself.
  planning->callback = at::addThreadLocalCallback(at::RecordFunctionCallback(&begin_operation, &end_operation)
                                                      .needsInputs(true)
                                                      .needsOutputs(true)
                                                      .scopes({at::RecordScope::FUNCTION}));
  return planning;
}

void lorabooth_planning_end(void *raw) {
  auto *planning = static_cast<Planning *>(raw);
  at::removeCallback(planning->callback);
  meter = planning->before;
  delete planning;
}

// Bytes that live, the most that did, and those that live in small blocks.
void lorabooth_planning_memory(void *raw, int64_t *live, int64_t *peak, int64_t *small) {
  const auto &own = *static_cast<Planning *>(raw)->own;
  *live = own.live, *peak = own.peak, *small = own.small;
}

void lorabooth_planning_reset_peak(void *raw) {
  auto &own = *static_cast<Planning *>(raw)->own;
  own.peak = own.live;
}

// From now on what is made is counted or not; returns how it was.
bool lorabooth_planning_pause(bool paused) {
  if (!meter) return false;
  std::swap(meter->paused, paused);
  return paused;
}

// Bytes that were moved, operations that did it, and kinds of products.
int64_t lorabooth_planning_work(void *raw, double *bytes, double *operations) {
  const auto &own = *static_cast<Planning *>(raw)->own;
  *bytes = own.bytes, *operations = own.operations;
  return static_cast<int64_t>(own.products.size());
}

// Of each kind of product eight numbers, and how often it was made.
void lorabooth_planning_products(void *raw, int64_t *keys, double *times) {
  for (const auto &[key, count] : static_cast<Planning *>(raw)->own->products) {
    keys = std::copy(key.begin(), key.end(), keys);
    *times++ = count;
  }
}

// Starts the work from nothing.
void lorabooth_planning_reset_work(void *raw) {
  auto &own = *static_cast<Planning *>(raw)->own;
  own.products.clear();
  own.bytes = own.operations = 0;
}

// Has a planned leaf's gradient there, as it is after a step.
char *lorabooth_planned_gradient(at::Tensor *leaf) {
  return guarded([&] { leaf->mutable_grad() = at::empty_like(*leaf); });
}
}
