// A stand-in for a CUDA device, so that what runs on a card can be tested where there is none: a libtorch_cuda.so whose device keeps its
// memory on the host and computes with the CPU's kernels, under CUDA's dispatch key. The unmodified program takes it for a card.
//
// tests/support/stand_in.rs builds and uses it. By hand, with TORCH a libtorch 2.11 with headers:
//
//   tests/fake_cuda/build.sh TORCH FOLDER
//   FAKE_CUDA_REPORT=steps.jsonl tests/fake_cuda/with.sh FOLDER lorabooth train dreambooth --device cuda …
//
//   FAKE_CUDA_REPORT      a file that gets a line of JSON with launches by operator, the host's waits, copies, allocations and bytes
//                         each time the program reads its peak of device memory (lorabooth: at the end of a step) and at the end
//   FAKE_CUDA_COMPUTE=0   nothing is computed: results have their shapes and take their memory, and all numbers that reach the host are
//                         0. For counts and bytes of real models, whose files may be sparse
//   FAKE_CUDA_CAPABILITY  7.5 (a T4)         FAKE_CUDA_MIB  the card's memory         FAKE_CUDA_FAIL_AT=N  the N-th allocation fails
//   FAKE_CUDA_NCCL=0, FAKE_CUDA_REGISTER=0   there is no NCCL, and memory of the host cannot be registered
//
// It is loaded before the program by LD_PRELOAD: a program that finds libtorch's CUDA part in its process uses it, with or without a driver.
// A mistake that on a card would show as wrong numbers now and then ends the process with a sentence and the code 86: memory that is used
// on two streams with no event between them, or freed while another stream uses it; a copy with non_blocking of memory that is not pinned, or
// that is written or freed before the copy has ended. Memory that was never written is no number (0xff in each byte).
//
// What it cannot show: the kernels' own numerics, their workspaces, what they wait for, and speed.
#include "nccl.h"
#include "nvrtc.h"
#include "operators.h"
#include "products.h"
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Copy.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

using namespace fake_cuda;
using c10::Device;
using c10::DeviceType;

namespace {
const Device kDevice(DeviceType::CUDA, 0);

// ---- the device, its streams and events
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream(int64_t id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device device) const override { TORCH_CHECK(device.index() <= 0, "CUDA error: invalid device ordinal"); }
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(Device) const override { return stream(current_stream); }
  c10::Stream getDefaultStream(Device) const override { return stream(0); }
  c10::Stream getNewStream(Device, int) const override { return stream(Memory::all().new_stream()); }
  c10::Stream exchangeStream(c10::Stream next) const override { return stream(std::exchange(current_stream, next.id())); }
  void *getStreamNativeHandle(c10::Stream stream) const override { return reinterpret_cast<void *>(stream.id()); }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &stream) const override { Memory::all().host_waits("synchronizeStream", stream.id()); }
  void synchronizeDevice(c10::DeviceIndex) const override { Memory::all().host_waits("synchronizeDevice", std::nullopt); }

  void record(void **event, const c10::Stream &stream, c10::DeviceIndex, c10::EventFlag) const override {
    const auto guard = Memory::all().locked();
    if (!*event) *event = new Event;
    *static_cast<Event *>(*event) = {Memory::all().order.streams[stream.id()], Memory::all().begun_on(stream.id())};
    counts().event("record");
  }
  void block(void *event, const c10::Stream &stream) const override {
    if (event) Memory::wait_for(static_cast<Event *>(event)->begun);
    const auto guard = Memory::all().locked();
    if (event) advance(Memory::all().order.streams[stream.id()], static_cast<Event *>(event)->clock);
    counts().event("wait");
  }
  void synchronizeEvent(void *event) const override {
    if (event) Memory::wait_for(static_cast<Event *>(event)->begun);
    if (event) Memory::all().host_saw(*static_cast<Event *>(event));
    counts().wait("synchronizeEvent");
  }
  // Done as far as the host knows for certain. What ends by itself is asked for until it has.
  bool queryEvent(void *of) const override {
    if (!of) return true;
    const auto &event = *static_cast<Event *>(of);
    if (!std::all_of(event.begun.begin(), event.begun.end(), [](const Done &done) { return done->load(); })) return false;
    if (!event.begun.empty()) Memory::all().host_saw(event);
    const auto guard = Memory::all().locked();
    for (const auto &[stream, tick] : event.clock)
      if (!includes(Memory::all().order.host, stream, tick)) return false;
    return true;
  }
  void destroyEvent(void *event, c10::DeviceIndex) const noexcept override { delete static_cast<Event *>(event); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return settings().major >= 8; }
  long versionCuDNN() const override { return 91900; }
  long versionRuntimeCuDNN() const override { return 91900; }
  long versionCUDART() const override { return 13000; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  void deviceSynchronize(c10::DeviceIndex) const override { Memory::all().host_waits("deviceSynchronize", std::nullopt); }
  const at::Generator &getDefaultGenerator(c10::DeviceIndex) const override { return generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(0); }
  c10::Allocator *getCUDADeviceAllocator() const override { return &Memory::all(); }
  c10::Allocator *getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
  bool isPinnedPtr(const void *place) const override { return Memory::all().is_pinned(place); }
  Device getDeviceFromPtr(void *) const override { return kDevice; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

// ---- tensors that are made, and views
Tensor empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> kind, std::optional<at::Layout>, std::optional<Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  return made(C10_AS_INTARRAYREF_SLOW(sizes), kind.value_or(at::kFloat), format);
}
Tensor empty_strided(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
                     std::optional<Device>, std::optional<bool>) {
  return made(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), kind.value_or(at::kFloat));
}
const Tensor &resize(const Tensor &xs, c10::SymIntArrayRef sizes, std::optional<at::MemoryFormat>) {
  const auto wanted = C10_AS_INTARRAYREF_SLOW(sizes);
  if (c10::multiply_integers(wanted) * xs.element_size() > xs.storage().nbytes())
    xs.unsafeGetTensorImpl()->set_storage_keep_dtype(made(wanted, xs.scalar_type()).storage());
  xs.unsafeGetTensorImpl()->set_sizes_contiguous(wanted);
  return xs;
}
Tensor as_strided(const Tensor &xs, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<c10::SymInt> offset) {
  const auto from = offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt;
  return at::native::as_strided_tensorimpl(xs, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), from);
}
Tensor view(const Tensor &xs, c10::SymIntArrayRef sizes) { return at::native::view(xs, C10_AS_INTARRAYREF_SLOW(sizes)); }
Tensor reshape_alias(const Tensor &xs, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides) {
  return at::native::_reshape_alias(xs, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

// Operators that have a kernel of their own for the CPU and, for the other devices, one that is made of several: for CUDA too they are one.
// The same holds for all that go through lists of tensors.
void register_whole_operators(torch::Library &library) {
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const auto &name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || !starts_with(name.name, "aten::") || op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) continue;
    const bool is_made_of_others = op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                                   op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
    const bool is_convolution = starts_with(name.name, "aten::convolution"); // of which cuDNN's is a part
    const bool is_list = starts_with(name.name, "aten::_foreach_") && name.overload_name.find("out") == std::string::npos;
    if (is_made_of_others && !is_convolution && (is_list || op->hasKernelForDispatchKey(c10::DispatchKey::CPU)))
      library.impl((name.name + (name.overload_name.empty() ? "" : "." + name.overload_name)).c_str(),
                   torch::CppFunction::makeFromBoxedFunction<&run>());
  }
}

// What the allocator's settings say, such as `per_process_memory_fraction:0.5`.
void take_settings(const std::string &text) {
  const std::string name = "per_process_memory_fraction:";
  if (const auto at = text.find(name); at != std::string::npos) Memory::all().fraction = atof(text.c_str() + at + name.size());
}

struct AtStart {
  AtStart() {
    unsetenv("LD_PRELOAD"); // programs that this one starts need no card
    c10::SetAllocator(DeviceType::CUDA, &Memory::all(), 10);
    c10::CachingAllocator::AcceleratorAllocatorConfig::registerDeviceConfigParserHook(take_settings, {"per_process_memory_fraction"});
  }
  ~AtStart() { Memory::all().report(); }
} at_start;
} // namespace

namespace at::native {
REGISTER_CUDA_DISPATCH(copy_stub, &fake_cuda::copy)
REGISTER_CUDA_DISPATCH(cudnn_convolution_backward_stub, &fake_cuda::cudnn_convolution_backward)
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &fake_cuda::attention_choice)
} // namespace at::native

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", ::empty);
  library.impl("empty_strided", ::empty_strided);
  library.impl("resize_", ::resize);
  library.impl("as_strided", ::as_strided);
  library.impl("view", ::view);
  library.impl("_reshape_alias", ::reshape_alias);
  library.impl("mm", fake_cuda::mm);
  library.impl("mm.out", fake_cuda::mm_out);
  library.impl("mm.dtype", fake_cuda::mm_wide);
  library.impl("bmm", fake_cuda::bmm);
  library.impl("addmm", fake_cuda::addmm);
  library.impl("addmm_", fake_cuda::addmm_);
  library.impl("baddbmm", fake_cuda::baddbmm);
  library.impl("_int_mm", fake_cuda::int_mm);
  library.impl("cudnn_convolution", fake_cuda::cudnn_convolution);
  library.impl("cudnn_convolution_transpose", fake_cuda::cudnn_convolution_transpose);
  library.impl("_scaled_dot_product_efficient_attention", fake_cuda::attention);
  library.impl("_scaled_dot_product_efficient_attention_backward", fake_cuda::attention_backward);
  library.impl("_fused_rms_norm", fake_cuda::rms_norm);
  library.impl("_fused_rms_norm_backward", fake_cuda::rms_norm_backward);
  register_whole_operators(library);
}

extern "C" {
// Memory of the host is pinned by CUDA's runtime.
int cudaHostRegister(void *start, size_t bytes, unsigned) {
  if (setting("FAKE_CUDA_REGISTER", "1") == "0") return 801;                                 // cudaErrorNotSupported
  return Memory::all().register_host(static_cast<char *>(start), bytes) ? 0 : 712; // cudaErrorHostMemoryAlreadyRegistered
}
int cudaHostUnregister(void *start) { return Memory::all().unregister_host(static_cast<char *>(start)) ? 0 : 713; }
const char *cudaGetErrorString(int code) { return code == 801 ? "operation not supported" : "invalid argument"; }
}

// The compute capability is asked of CUDA's runtime.
extern "C" int cudaDeviceGetAttribute(int *value, int attribute, int) {
  if (attribute != 75 && attribute != 76) return 1; // cudaErrorInvalidValue
  *value = attribute == 75 ? settings().major : settings().minor;
  return 0;
}
