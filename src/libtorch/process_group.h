// c10d's store and group, as the shims that use them share them.
#pragma once
#define USE_C10D_GLOO 1
#include "shim.h"
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <memory>

// A tensor that is being added over all ranks, in place.
struct Sum {
  virtual ~Sum() = default;
  virtual void wait() = 0;
};

struct Nccl;
struct NcclFree {
  void operator()(Nccl *nccl) const;
};

struct Group {
  c10::intrusive_ptr<c10d::TCPStore> store;
  c10::intrusive_ptr<c10d::Backend> gloo;
  // Where the ranks compute on GPUs and have libnccl.
  std::unique_ptr<Nccl, NcclFree> nccl;
  int64_t rank, world;
  std::chrono::milliseconds timeout;

  // Gloo adds on the host, where a tensor of a GPU is copied to without NCCL.
  std::unique_ptr<Sum> begin_sum(const at::Tensor &tensor);
};

std::unique_ptr<Sum> begin_nccl_sum(Nccl &nccl, const at::Tensor &tensor, std::chrono::milliseconds timeout);
