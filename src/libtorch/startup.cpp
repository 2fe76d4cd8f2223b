#include <ATen/Context.h>

extern "C" void lorabooth_set_float32_kernels(bool fast) {
  at::globalContext().setFloat32MatmulPrecision(fast ? "medium" : "highest");
}
