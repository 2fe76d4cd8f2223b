#include "cuda_kernels.h"
#include "planned.h"
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <set>

namespace {
// What each source begins with. T is what the model computes in.
const char *const kPrelude = R"(
template <typename T> __device__ float wide(T);
template <typename T> __device__ T narrow(float);
struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };
template <> __device__ float wide(float x) { return x; }
template <> __device__ float narrow(float x) { return x; }
template <> __device__ float wide(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
template <> __device__ bf16 narrow(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <> __device__ float wide(fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
template <> __device__ fp16 narrow(float x) {
  fp16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
__device__ float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }
#define IN_EACH_KIND(KERNELS) KERNELS(float, float) KERNELS(fp16, fp16) KERNELS(bf16, bf16)
)";

// What is used of NVRTC and of CUDA's driver, by their documented signatures; 0 is success.
struct Api {
  int (*create)(void **program, const char *source, const char *name, int, const char *const *, const char *const *);
  int (*compile)(void *program, int options, const char *const *);
  int (*size)(void *program, size_t *);
  int (*text)(void *program, char *);
  int (*destroy)(void **program);
  int (*load)(void **module, const void *image);
  int (*function)(void **function, void *module, const char *name);
  int (*launch)(void *function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, void *stream, void **arguments,
                void **);

  Api() : is_whole(found()) {}
  bool is_whole;

private:
  bool found() {
    void *nvrtc = dlopen("libcaffe2_nvrtc.so", RTLD_NOW | RTLD_LOCAL), *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvrtc || !driver) return false;
    const auto take = [](auto &to, void *library, const char *name) {
      to = reinterpret_cast<std::decay_t<decltype(to)>>(dlsym(library, name));
      return to != nullptr;
    };
    return take(create, nvrtc, "nvrtcCreateProgram") && take(compile, nvrtc, "nvrtcCompileProgram") &&
           take(size, nvrtc, "nvrtcGetPTXSize") && take(text, nvrtc, "nvrtcGetPTX") && take(destroy, nvrtc, "nvrtcDestroyProgram") &&
           take(load, driver, "cuModuleLoadData") && take(function, driver, "cuModuleGetFunction") &&
           take(launch, driver, "cuLaunchKernel");
  }
};

const Api &api() {
  static const Api one;
  return one;
}
} // namespace

// For the oldest architecture that CUDA 13 knows; the driver compiles it for the card at hand.
void CudaKernels::compile() {
  void *program = nullptr;
  const char *const options[] = {"--gpu-architecture=compute_75", "--std=c++17"};
  const std::string text = std::string(kPrelude) + source;
  if (!api().is_whole || api().create(&program, text.c_str(), "lorabooth.cu", 0, nullptr, nullptr)) return;
  size_t length = 0;
  is_compiled = !api().compile(program, 2, options) && !api().size(program, &length);
  if (is_compiled) {
    ptx.resize(length);
    is_compiled = !api().text(program, ptx.data());
  }
  api().destroy(&program);
}

bool CudaKernels::take(const at::Tensor &xs) {
  const auto kind = xs.scalar_type();
  if (kind != at::kHalf && kind != at::kBFloat16 && kind != at::kFloat) return false;
  if (!xs.is_cuda()) return is_planned_on_cuda(xs);
  std::call_once(compiled, [&] { compile(); });
  return is_compiled;
}

void *CudaKernels::found(const std::string &name, int device) {
  const std::lock_guard<std::mutex> guard(lock);
  auto &function = functions[{device, name}];
  if (!function) {
    auto &module = modules[device];
    TORCH_CHECK(module || !api().load(&module, ptx.c_str()), "CUDA's driver refuses lorabooth's kernels");
    TORCH_CHECK(!api().function(&function, module, name.c_str()), "a kernel of lorabooth's is missing: ", name);
  }
  return function;
}

void CudaKernels::run(const std::string &name, at::ScalarType kind, c10::Device device, std::array<unsigned, 2> blocks,
                      std::initializer_list<void *> arguments) {
  if (device.is_meta()) return;
  // The runtime makes a device's context the thread's at its first kernel; the driver's calls want it there.
  static thread_local std::set<int> ready;
  if (ready.insert(device.index()).second) at::zeros({1}, at::TensorOptions(device));
  void *const function = found(name + (kind == at::kHalf ? "_fp16" : kind == at::kBFloat16 ? "_bf16" : "_float"), device.index());
  const c10::impl::VirtualGuardImpl device_api(device.type());
  void *stream = device_api.getStreamNativeHandle(device_api.getStream(device));
  std::vector<void *> list(arguments);
  const int failed = api().launch(function, blocks[0], blocks[1], 1, 256, 1, 1, 0, stream, list.data(), nullptr);
  TORCH_CHECK(!failed, "CUDA's driver did not start the kernel ", name, " (error ", failed, ")");
}
