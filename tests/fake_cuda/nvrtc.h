// NVRTC and the driver's launches: CUDA C++ is compiled for the host by the C++ compiler at hand, and the threads of a block run as
// coroutines that give way at each barrier. In place of PTX there is the path of a shared library.
#pragma once
#include "memory.h"
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <regex>
#include <sstream>
#include <csetjmp>
#include <ucontext.h>

namespace fake_cuda {
// What the compiler puts in front of the source. A conversion in assembly is one between float and the struct of 16 bits.
inline const char *const kBeforeKernels = R"(
#include <cmath>
#include <cstring>
#include <algorithm>
using std::min; using std::max;
#define __device__
#define __shared__ static
#define asm(...) convert(x, y)
struct Place { unsigned x, y, z; };
extern "C" { extern Place fake_cuda_block, fake_cuda_blocks, fake_cuda_thread, fake_cuda_block_size; void fake_cuda_barrier(); float fake_cuda_wide(unsigned short);
  unsigned short fake_cuda_narrow(float); void fake_cuda_touch(const void *, bool); }
#define blockIdx fake_cuda_block
#define threadIdx fake_cuda_thread
#define blockDim fake_cuda_block_size
#define gridDim fake_cuda_blocks
#define __syncthreads fake_cuda_barrier
template <typename To, typename From> To same_bits(From from) { To to; memcpy(&to, &from, sizeof to); return to; }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline unsigned atomicOr(unsigned *at, unsigned bits) { const unsigned was = *at; *at |= bits; return was; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
template <typename H> void convert(H x, float &y) { y = fake_cuda_wide(x.bits); }
template <typename H> void convert(float x, H &y) { y.bits = fake_cuda_narrow(x); }
template <typename T> void touch(T *&place) { if (place) fake_cuda_touch(place, !std::is_const_v<T>); }
template <typename T> void touch(T &) {}
template <typename... A, size_t... I> void call(void (*kernel)(A...), void **a, bool runs, std::index_sequence<I...>) {
  if (runs) kernel(*static_cast<A *>(a[I])...); else (touch(*static_cast<A *>(a[I])), ...);
}
template <typename... A> void call(void (*kernel)(A...), void **a, bool runs) { call(kernel, a, runs, std::index_sequence_for<A...>()); }
)";

struct Program {
  std::string source, library, log;
};

inline std::string read(const std::string &path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Beside the stand-in itself, under a name by which the next program finds it.
inline bool compile(Program &program) {
  Dl_info own;
  if (!dladdr(reinterpret_cast<void *>(&compile), &own)) return false;
  const std::string text = kBeforeKernels + program.source, path(own.dli_fname);
  program.library = path.substr(0, path.rfind('/')) + "/kernels-" + std::to_string(std::hash<std::string>()(text)) + ".so";
  if (access(program.library.c_str(), R_OK) == 0) return true;
  const std::string stem = program.library + "." + std::to_string(getpid()), source = stem + ".cpp", expanded = stem + ".expanded.cpp", said = stem + ".said";
  const auto compiler = [&](const std::string &arguments) {
    return system((setting("CXX", "g++") + " -std=c++17 -w " + arguments + " 2>> " + said).c_str()) == 0;
  };
  std::ofstream(source) << text;
  bool done = compiler("-E -P " + source + " -o " + expanded);
  std::string kernels = read(expanded), launchers;
  const std::regex kernel(R"(__global__\s+void\s+(\w+)\()");
  for (std::sregex_iterator at(kernels.begin(), kernels.end(), kernel), end; at != end; ++at)
    launchers += "extern \"C\" void launch_" + (*at)[1].str() + "(void **a, bool runs) { call(" + (*at)[1].str() + ", a, runs); }\n";
  std::ofstream(expanded) << kernels << launchers;
  done = done && compiler("-O1 -ffp-contract=off -fPIC -shared -D__global__= " + expanded + " -o " + stem + ".so");
  program.log = read(said);
  for (const std::string &file : {source, expanded, said}) remove(file.c_str());
  return done && rename((stem + ".so").c_str(), program.library.c_str()) == 0;
}

// ---- the threads of one block
// A coroutine that runs a thread of one block after another. Its context is made once; from then on a jump is quicker than a switch, which asks
// the system for the signals' mask.
struct Thread {
  ucontext_t context;
  jmp_buf place;
  std::vector<char> stack = std::vector<char>(32 << 10);
  bool is_made = false, done;
};

struct Running {
  std::mutex lock;
  ucontext_t beginning;
  jmp_buf scheduler;
  std::vector<Thread> threads;
  Thread *now = nullptr;
  std::function<void()> body;
};

inline Running &running() {
  static auto *one = new Running; // for as long as the process lives
  return *one;
}

// Gives way to the scheduler, until it is this thread's turn again.
inline void give_way() {
  if (!_setjmp(running().now->place)) _longjmp(running().scheduler, 1);
}

inline void run_threads() {
  for (;;) {
    running().body();
    running().now->done = true;
    give_way();
  }
}

// Lets a thread of the block go on to its next barrier, or to its end.
inline void go_on(Thread &thread) {
  auto &run = running();
  run.now = &thread;
  if (_setjmp(run.scheduler)) return;
  if (thread.is_made) _longjmp(thread.place, 1);
  thread.is_made = true;
  getcontext(&thread.context);
  thread.context.uc_stack = {thread.stack.data(), 0, thread.stack.size()};
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, run_threads, 0);
  swapcontext(&run.beginning, &thread.context);
}
} // namespace fake_cuda

extern "C" {
struct Place {
  unsigned x, y, z;
};
Place fake_cuda_block, fake_cuda_blocks, fake_cuda_thread, fake_cuda_block_size;
void fake_cuda_barrier() { fake_cuda::give_way(); }
float fake_cuda_wide(unsigned short bits) { return c10::Half(bits, c10::Half::from_bits()); }
unsigned short fake_cuda_narrow(float x) { return c10::Half(x).x; }
void fake_cuda_touch(const void *place, bool writes) {
  auto &memory = fake_cuda::Memory::all();
  const char *end = memory.end_of(place);
  if (!end) fake_cuda::stop("a kernel is given memory that is not the device's");
  memory.touch(place, end, writes, "a kernel");
}

// ---- NVRTC
int nvrtcCreateProgram(void **program, const char *source, const char *, int, const char *const *, const char *const *) {
  *program = new fake_cuda::Program{source};
  return 0;
}
int nvrtcCompileProgram(void *program, int, const char *const *) {
  auto &own = *static_cast<fake_cuda::Program *>(program);
  if (fake_cuda::compile(own)) return 0;
  fake_cuda::stop("the kernels cannot be compiled for the host:\n" + own.log);
}
int nvrtcGetPTXSize(void *program, size_t *size) {
  *size = static_cast<fake_cuda::Program *>(program)->library.size() + 1;
  return 0;
}
int nvrtcGetPTX(void *program, char *text) {
  strcpy(text, static_cast<fake_cuda::Program *>(program)->library.c_str());
  return 0;
}
int nvrtcDestroyProgram(void **program) {
  delete static_cast<fake_cuda::Program *>(*program);
  return 0;
}

// ---- the driver
int cuModuleLoadData(void **module, const void *image) {
  *module = dlopen(static_cast<const char *>(image), RTLD_NOW | RTLD_LOCAL);
  if (!*module) fake_cuda::stop(dlerror());
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = dlsym(module, (std::string("launch_") + name).c_str());
  return *function ? 0 : 500; // CUDA_ERROR_NOT_FOUND
}
int cuLaunchKernel(void *function, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z, unsigned x, unsigned y, unsigned z, unsigned, void *stream,
                   void **arguments, void **) {
  using namespace fake_cuda;
  if (y != 1 || z != 1 || blocks_z != 1) stop("blocks of more than one dimension are not stood in for");
  if (reinterpret_cast<int64_t>(stream) != current_stream) stop("a kernel goes to a stream that is not the present one");
  Dl_info info;
  counts().launch(dladdr(function, &info) && info.dli_sname ? std::string("kernel ") + (info.dli_sname + strlen("launch_")) : "kernel");
  const auto launch = reinterpret_cast<void (*)(void **, bool)>(function);
  launch(arguments, false);
  if (!settings().computes) return 0;
  auto &run = running();
  const std::lock_guard<std::mutex> guard(run.lock);
  if (run.threads.empty()) run.threads.resize(x);
  if (run.threads.size() != x) stop("blocks of two sizes are not stood in for");
  run.body = [&] { launch(arguments, true); };
  fake_cuda_block_size = {x, 1, 1}, fake_cuda_blocks = {blocks_x, blocks_y, 1};
  for (fake_cuda_block = {0, 0, 0}; fake_cuda_block.y < blocks_y; ++fake_cuda_block.y)
    for (fake_cuda_block.x = 0; fake_cuda_block.x < blocks_x; ++fake_cuda_block.x) {
      for (Thread &thread : run.threads) thread.done = false;
      for (bool any = true; any;) {
        any = false;
        for (unsigned i = 0; i < x; ++i) {
          if (run.threads[i].done) continue;
          fake_cuda_thread = {i, 0, 0};
          go_on(run.threads[i]);
          any |= !run.threads[i].done;
        }
      }
    }
  return 0;
}
}
