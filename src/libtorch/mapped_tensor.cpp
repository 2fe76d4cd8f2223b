#include "shim.h"
#include <ATen/ops/from_blob.h>

extern "C" char *lorabooth_from_memory(const uint8_t *data, const int64_t *shape, int64_t dims, int32_t kind, void *owner,
                                       void (*release)(void *), at::Tensor **out) {
  bool handed_over = false;
  char *message = guarded([&] {
    auto builder = at::for_blob(const_cast<uint8_t *>(data), at::IntArrayRef(shape, dims));
    auto tensor = builder.deleter([owner, release](void *) { release(owner); })
                      .options(at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)))
                      .make_tensor();
    handed_over = true;
    *out = new at::Tensor(tensor);
  });
  if (!handed_over) release(owner);
  return message;
}
