// Every operator of libtorch on the stand-in: what it is given is checked, counted and handed to the CPU's kernel.
#pragma once
#include "tensors.h"
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/TensorIterator.h>

namespace fake_cuda {
inline bool starts_with(const std::string &text, const char *start) { return text.rfind(start, 0) == 0; }

// The state of the device's generator; the CPU's own must not notice what the device draws.
inline at::Generator &generator() {
  static auto *one = new at::Generator(at::detail::createCPUGenerator(0));
  return *one;
}

class DrawsFromTheDevice {
  at::Generator cpu = at::detail::getDefaultCPUGenerator();
  Tensor state = cpu.get_state();

public:
  DrawsFromTheDevice() { cpu.set_state(generator().get_state()); }
  ~DrawsFromTheDevice() {
    generator().set_state(cpu.get_state());
    cpu.set_state(state);
  }
};

// ---- lists: launches of multi_tensor_apply (ATen/native/cuda/MultiTensorApply.cuh)
// A kernel takes so many tensors by how many lists it goes through, and 320 chunks of 65,536 numbers.
inline long list_launches(const std::vector<Tensor> &first, size_t lists) {
  constexpr long kTensors[] = {110, 64, 48, 36, 30}, kBlocks = 320, kChunk = 65536;
  const long most = kTensors[std::min<size_t>(lists, 5) - 1];
  long launches = 0, tensors = 0, blocks = 0;
  for (const Tensor &xs : first) {
    if (xs.numel() == 0) continue;
    for (long left = (xs.numel() + kChunk - 1) / kChunk, is_new = 1; left > 0; is_new = 0) {
      if (tensors + is_new > most || blocks == kBlocks) {
        ++launches;
        tensors = blocks = 0;
        is_new = 1;
      }
      tensors += is_new;
      const long taken = std::min(left, kBlocks - blocks);
      blocks += taken, left -= taken;
    }
  }
  return launches + (tensors > 0);
}

// Lists whose tensors lie differently go through it one by one.
inline bool lie_alike(const std::vector<std::vector<Tensor>> &lists) {
  for (const auto &list : lists)
    for (size_t i = 0; i < list.size(); ++i)
      if (!list[i].is_non_overlapping_and_dense() || list.size() != lists[0].size() || list[i].sizes() != lists[0][i].sizes() ||
          list[i].strides() != lists[0][i].strides() || list[i].device() != lists[0][i].device())
        return false;
  return true;
}

// ---- what CUDA has and the CPU's kernels do not take
// CUDA's softmax makes float32 of 16 bits on the way.
inline void widen_softmax(const std::string &name, const c10::FunctionSchema &schema, torch::jit::IValue *arguments) {
  const bool softmax = starts_with(name, "aten::_softmax") || starts_with(name, "aten::_log_softmax");
  if (!softmax || schema.arguments().size() < 3 || schema.arguments()[2].name() != "half_to_float" || !arguments[2].toBool()) return;
  arguments[0] = arguments[0].toTensor().to(at::kFloat), arguments[2] = false;
}

// Shapes that libtorch's C++ does not know for the device "meta".
inline bool shape_alone(const std::string &name, torch::jit::Stack *stack, size_t start) {
  const auto argument = [&](size_t i) -> torch::jit::IValue & { return (*stack)[start + i]; };
  const auto leave = [&](std::initializer_list<torch::jit::IValue> results) {
    stack->resize(start);
    for (const auto &result : results) stack->push_back(result);
    return true;
  };
  const auto empty = [](at::IntArrayRef sizes, const Tensor &like) { return at::empty(sizes, like.options()); };
  if (name == "aten::_local_scalar_dense") {
    const auto kind = argument(0).toTensor().scalar_type();
    return leave({at::isFloatingType(kind) ? at::Scalar(0.0) : kind == at::kBool ? at::Scalar(false) : at::Scalar(0)});
  }
  if (name == "aten::equal") return leave({true});
  if (name == "aten::index_select") {
    const auto xs = argument(0).toTensor();
    auto sizes = xs.sizes().vec();
    sizes[at::maybe_wrap_dim(argument(1).toInt(), xs.dim())] = argument(2).toTensor().numel();
    return leave({empty(sizes, xs)});
  }
  if (name == "aten::embedding_dense_backward") {
    const auto grad = argument(0).toTensor();
    return leave({empty({argument(2).toInt(), grad.size(-1)}, grad)});
  }
  if (name == "aten::bucketize.Tensor") {
    const auto xs = argument(0).toTensor();
    return leave({at::empty(xs.sizes(), xs.options().dtype(argument(2).toBool() ? at::kInt : at::kLong))});
  }
  if (name == "aten::native_group_norm" || name == "aten::native_layer_norm") {
    const auto xs = argument(0).toTensor();
    std::vector<int64_t> rows;
    if (name == "aten::native_group_norm") rows = {argument(3).toInt(), argument(6).toInt()};
    else rows = xs.sizes().slice(0, xs.dim() - argument(1).toIntVector().size()).vec(), rows.resize(xs.dim(), 1);
    const auto of_rows = [&] { return at::empty(rows, xs.options().dtype(at::kFloat)); };
    return leave({at::empty(xs.sizes(), xs.options()), of_rows(), of_rows()});
  }
  if (name == "aten::native_group_norm_backward" || name == "aten::native_layer_norm_backward") {
    const auto xs = argument(1).toTensor();
    const auto weight = argument(name == "aten::native_group_norm_backward" ? 4 : 5).toOptional<Tensor>().value_or(Tensor());
    const auto wanted = stack->back().toBoolList();
    const auto of_weight = [&](size_t i) { return wanted[i] ? at::empty_like(weight) : Tensor(); };
    return leave({wanted[0] ? at::empty_like(xs) : Tensor(), of_weight(1), of_weight(2)});
  }
  // Element by element: the dtype is that of one argument.
  static const std::map<std::string, size_t> kind_of{{"aten::relu", 0}, {"aten::where.self", 1}, {"aten::mse_loss_backward", 1}, {"aten::abs.out", 0},
                                                     {"aten::native_dropout_backward", 0}, {"aten::where.self_out", 1}, {"aten::logical_and.out", 0}, {"aten::logical_or.out", 0}, {"aten::logical_not.out", 0}};
  if (const auto found = kind_of.find(name); found != kind_of.end()) {
    std::vector<int64_t> sizes;
    const bool is_out = name.substr(name.size() - 3) == "out";
    for (size_t i = 0; start + i + is_out < stack->size(); ++i)
      if (argument(i).isTensor()) sizes = at::infer_size(sizes, argument(i).toTensor().sizes());
    if (is_out) return leave({stack->back().toTensor().resize_(sizes)});
    return leave({empty(sizes, argument(found->second).toTensor())});
  }
  if (name == "aten::native_dropout") {
    const auto xs = argument(0).toTensor();
    return leave({empty(xs.sizes(), xs), at::empty(xs.sizes(), xs.options().dtype(at::kBool))});
  }
  return false;
}

// ---- all others
class Call {
  const c10::OperatorHandle &op;
  const c10::FunctionSchema &schema;
  torch::jit::Stack *stack;
  const std::string name;
  const size_t start;
  const std::vector<torch::jit::IValue> given;

  static std::string name_of(const c10::FunctionSchema &schema) {
    return schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  }

  bool is_written(size_t argument) const {
    const auto *alias = schema.arguments()[argument].alias_info();
    return alias && alias->isWrite();
  }

  template <typename F> void each_tensor(F visit) const {
    for (size_t i = 0; i < given.size(); ++i) {
      if (given[i].isTensor()) visit(given[i].toTensor(), i);
      else if (given[i].isTensorList())
        for (const Tensor &xs : given[i].toTensorVector()) visit(xs, i);
      else if (given[i].isOptionalTensorList())
        for (const OptionalTensor &xs : given[i].toOptionalTensorVector())
          if (xs) visit(*xs, i);
    }
  }

  // A number of the CPU's may take part, and so may indices: those are copied.
  void check_devices() const {
    bool any_here = false;
    each_tensor([&](const Tensor &xs, size_t) { any_here |= is_here(xs); });
    const bool takes_indices = starts_with(name, "aten::index.") || name.find("index_put") != std::string::npos;
    each_tensor([&](const Tensor &xs, size_t) {
      if (!any_here || !xs.defined() || is_here(xs) || xs.dim() == 0 || takes_indices) return;
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name,
                  ", a tensor of the CPU of size ", xs.sizes(), ")");
    });
  }

  void count() const {
    std::vector<std::vector<Tensor>> lists;
    int64_t most = -1;
    each_tensor([&](const Tensor &xs, size_t) { most = std::max(most, xs.defined() ? xs.numel() : -1); });
    if (name == "aten::_local_scalar_dense") return Memory::all().host_waits("item", current_stream);
    const bool tells_a_size = name == "aten::nonzero" || name == "aten::masked_select" || name.find("unique") != std::string::npos;
    if (tells_a_size || name == "aten::equal") Memory::all().host_waits(name.substr(6), current_stream);
    if (most == 0) return;
    for (const auto &value : given)
      if (value.isTensorList() && !value.toTensorVector().empty()) lists.push_back(value.toTensorVector());
    const bool is_list_operator = starts_with(name, "aten::_foreach") || starts_with(name, "aten::_amp_foreach") || starts_with(name, "aten::_fused_adam");
    if (!is_list_operator || lists.empty()) return counts().launch(name.substr(6));
    // Steps go with the other lists.
    const size_t depth = starts_with(name, "aten::_fused") ? 4 : lists.size();
    const bool alike = starts_with(name, "aten::_fused") || lie_alike(lists);
    counts().launch(name.substr(6) + (alike ? "" : " (one by one)"), alike ? list_launches(lists[0], depth) : lists[0].size());
  }

  void give_to_host() {
    for (size_t i = 0; i < given.size(); ++i) {
      auto &value = (*stack)[start + i];
      if (value.isTensor()) value = host(value.toTensor());
      else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor &xs : value.toTensorVector()) list.push_back(host(xs));
        value = list;
      } else if (value.isOptionalTensorList()) {
        c10::List<OptionalTensor> list;
        for (const OptionalTensor &xs : value.toOptionalTensorVector()) list.push_back(xs ? OptionalTensor(host(*xs)) : std::nullopt);
        value = list;
      } else if (value.isDevice()) value = c10::Device(settings().computes ? c10::DeviceType::CPU : c10::DeviceType::Meta);
    }
  }

  // Nothing new comes of it: all that it returns are its arguments.
  bool only_writes() const {
    for (const auto &result : schema.returns())
      if (!result.alias_info() || !result.alias_info()->isWrite()) return false;
    for (size_t i = 0; i < given.size(); ++i)
      if (is_written(i) && schema.arguments()[i].is_out()) return false; // which may get a size
    return true;
  }

  void compute() {
    widen_softmax(name, schema, stack->data() + start);
    if (!settings().computes) {
      if (only_writes()) {
        stack->resize(start);
        for (size_t i = 0; i < schema.returns().size(); ++i) stack->push_back(Tensor());
        return;
      }
      if (shape_alone(name, stack, start)) return;
      // Meta takes no mixture but with numbers.
      for (size_t i = 0; i < given.size(); ++i) {
        auto &value = (*stack)[start + i];
        if (value.isTensor() && value.toTensor().defined() && !value.toTensor().is_meta() && value.toTensor().dim() > 0) value = value.toTensor().to(at::kMeta);
      }
    }
    at::AutoDispatchBelowADInplaceOrView below;
    std::optional<DrawsFromTheDevice> draws;
    if (settings().computes && op.hasTag(at::Tag::nondeterministic_seeded)) draws.emplace();
    op.callBoxed(*stack);
  }

  // An argument that was written, with the size that it may have got.
  Tensor written(const Tensor &argument, const Tensor &result) const {
    if (!result.defined() || result.sizes() == argument.sizes()) return argument;
    const Tensor grown = here(result, name);
    argument.unsafeGetTensorImpl()->set_storage_keep_dtype(grown.storage());
    argument.unsafeGetTensorImpl()->set_sizes_and_strides(grown.sizes(), grown.strides());
    return argument;
  }

  void take_back() {
    const size_t first = stack->size() - schema.returns().size();
    for (size_t i = 0; i < schema.returns().size(); ++i) {
      auto &value = (*stack)[first + i];
      const auto *alias = schema.returns()[i].alias_info();
      if (alias && alias->isWrite()) {
        for (size_t a = 0; a < given.size(); ++a) {
          const auto *own = schema.arguments()[a].alias_info();
          if (!own || !(*own == *alias)) continue;
          value = given[a].isTensor() ? torch::jit::IValue(written(given[a].toTensor(), value.toTensor())) : given[a];
          break;
        }
      } else if (value.isTensor()) value = here(value.toTensor(), name);
      else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor &xs : value.toTensorVector()) list.push_back(here(xs, name));
        value = list;
      }
    }
  }

public:
  Call(const c10::OperatorHandle &op, torch::jit::Stack *stack)
      : op(op), schema(op.schema()), stack(stack), name(name_of(schema)), start(stack->size() - schema.arguments().size()),
        given(stack->begin() + static_cast<long>(start), stack->end()) {}

  void run() {
    check_devices();
    count();
    each_tensor([&](const Tensor &xs, size_t i) { touch(xs, is_written(i), name); });
    give_to_host();
    compute();
    take_back();
  }
};

inline void run(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) { Call(op, stack).run(); }

// ---- copies, which libtorch brings to one place
inline void copy(at::TensorIterator &iterator, bool non_blocking) {
  const Tensor to = iterator.tensor(0), from = iterator.tensor(1);
  const long bytes = static_cast<long>(to.nbytes());
  if (is_here(to) && is_here(from)) {
    counts().launch(to.scalar_type() == from.scalar_type() ? "copy" : "copy (cast)");
    touch(from, false, "copy"), touch(to, true, "copy");
  } else {
    const bool to_device = is_here(to);
    const std::string what = to_device ? "a copy to the device" : "a copy to the host";
    counts().launch(to_device ? "copy to device" : "copy to host");
    counts().copy(to_device, bytes);
    touch(from, false, what), touch(to, true, what);
    const Tensor &on_host = to_device ? from : to;
    if (non_blocking) Memory::all().copy_beside(static_cast<const char *>(on_host.const_data_ptr()), on_host.nbytes(), what);
    else Memory::all().host_waits(to_device ? "copy to device" : "copy to host", current_stream);
    if (!settings().computes && !to_device) to.zero_();
  }
  if (settings().computes) host(to).copy_(host(from));
}
} // namespace fake_cuda
