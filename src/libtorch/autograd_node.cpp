// A generic autograd node whose backward is a function pointer into Rust.
#include "shim.h"
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <cstdlib>

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

typedef char *(*RustBackward)(void *, at::Tensor *const *, int64_t, at::Tensor *const *, int64_t, at::Tensor **, int64_t);
typedef void (*RustDrop)(void *);

namespace {
struct RustNode : torch::autograd::Node {
  void *data;
  RustBackward backward;
  RustDrop release;
  std::vector<SavedVariable> saved;
  size_t n_inputs;
  bool released = false;

  RustNode(void *data, RustBackward backward, RustDrop release, size_t n_inputs)
      : data(data), backward(backward), release(release), n_inputs(n_inputs) {}
  ~RustNode() override { release(data); }

  std::string name() const override { return "RustNode"; }

  void release_variables() override {
    released = true;
    saved.clear();
  }

  variable_list apply(variable_list &&grads) override {
    TORCH_CHECK(!released, "backward through the same graph a second time");
    variable_list unpacked;
    for (auto &s : saved) unpacked.push_back(s.unpack(shared_from_this()));
    std::vector<at::Tensor *> g, s, results(n_inputs, nullptr);
    for (auto &t : grads) g.push_back(t.defined() ? &t : nullptr);
    for (auto &t : unpacked) s.push_back(&t);
    char *message = backward(data, g.data(), g.size(), s.data(), s.size(), results.data(), n_inputs);
    variable_list out(n_inputs);
    for (size_t i = 0; i < n_inputs; ++i)
      if (results[i]) {
        out[i] = *results[i];
        delete results[i];
      }
    if (message) {
      std::string text(message);
      free(message);
      TORCH_CHECK(false, text);
    }
    return out;
  }
};
} // namespace

extern "C" char *lorabooth_attach(at::Tensor *const *inputs, int64_t n_inputs, at::Tensor *const *saved, int64_t n_saved,
                                  at::Tensor *const *outputs, int64_t n_outputs, void *data, RustBackward backward,
                                  RustDrop release) {
  return guarded([&] {
    auto node = std::shared_ptr<RustNode>(new RustNode(data, backward, release, n_inputs), torch::autograd::deleteNode);
    variable_list in;
    for (int64_t i = 0; i < n_inputs; ++i) in.push_back(*inputs[i]);
    if (!at::GradMode::is_enabled() || !torch::autograd::any_variable_requires_grad(in)) return;
    node->set_next_edges(torch::autograd::collect_next_edges(in));
    for (int64_t i = 0; i < n_saved; ++i) node->saved.emplace_back(*saved[i], /*is_output=*/false);
    for (int64_t i = 0; i < n_outputs; ++i) torch::autograd::set_history(*outputs[i], node);
  });
}

extern "C" char *lorabooth_backward(at::Tensor *const *outputs, at::Tensor *const *grads, int64_t n) {
  return guarded([&] {
    variable_list roots, seeds;
    for (int64_t i = 0; i < n; ++i) {
      roots.push_back(*outputs[i]);
      seeds.push_back(*grads[i]);
    }
    torch::autograd::backward(roots, seeds);
  });
}
