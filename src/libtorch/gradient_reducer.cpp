// The gradients' mean over all ranks, in buckets that leave as soon as a backward has filled them (arXiv 2006.15704, section 3.2; c10d's own
// Reducer needs Python's modules). A bucket's content never depends on the order in which gradients come: so a resumed run adds as
// the one before it did, and ends with the same bits.
#include "process_group.h"
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <mutex>

namespace {
struct Bucket {
  size_t first, end;
  at::Tensor flat;
  size_t waits_for = 0;
  std::unique_ptr<Sum> sum;
};

struct Reducer {
  Group *group;
  std::vector<at::Tensor> params;
  std::vector<Bucket> buckets;
  std::vector<size_t> bucket_of, arrived, expected;
  int64_t tail;
  size_t left = 0; // buckets that have not left: the last one leaves first, the first one with the tail at the step's end
  bool armed = false, knows_arrivals = false; // once a whole step has shown them
  std::string failure;
  std::mutex mutex;

  void on_gradient(size_t i) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!armed) return;
    ++arrived[i];
    // The first step shows how often each one comes: more than once where recomputed segments share it.
    if (!knows_arrivals) return;
    auto bucket = bucket_of[i];
    if (bucket >= left && failure.empty()) failure = "a gradient came after its bucket had left";
    if (arrived[i] != expected[i]) return;
    --buckets[bucket].waits_for;
    while (left > 1 && buckets[left - 1].waits_for == 0) leave();
  }

  void leave() {
    auto &bucket = buckets[--left];
    std::vector<at::Tensor> grads;
    for (size_t i = bucket.first; i < bucket.end; ++i) {
      auto &grad = params[i].grad();
      grads.push_back(grad.defined() ? grad.reshape({-1}) : at::zeros({params[i].numel()}, params[i].options().requires_grad(false)));
    }
    if (!grads.empty()) {
      auto all = at::cat(grads);
      bucket.flat.narrow(0, 0, all.numel()).copy_(all);
    }
    bucket.sum = group->begin_sum(bucket.flat);
  }
};

struct Hook : torch::autograd::PostAccumulateGradHook {
  std::weak_ptr<Reducer> reducer;
  size_t i;
  void operator()(const torch::autograd::Variable &) override {
    at::NoGradGuard no_grad;
    if (auto alive = reducer.lock()) alive->on_gradient(i);
  }
};
} // namespace

extern "C" {
// `ends` are the numbers of parameters after which a bucket ends. `tail` numbers more travel with the first bucket.
char *lorabooth_reducer(Group *group, at::Tensor *const *params, int64_t n, const int64_t *ends, int64_t n_buckets, int64_t tail,
                        std::shared_ptr<Reducer> **out) {
  return guarded([&] {
    auto reducer = std::make_shared<Reducer>();
    reducer->group = group;
    reducer->tail = tail;
    for (int64_t i = 0; i < n; ++i) reducer->params.push_back(*params[i]);
    reducer->arrived.resize(n);
    reducer->expected.resize(n);
    size_t first = 0;
    for (int64_t b = 0; b < n_buckets; ++b) {
      Bucket bucket;
      bucket.first = first;
      bucket.end = first = static_cast<size_t>(ends[b]);
      int64_t numbers = b == 0 ? tail : 0;
      for (size_t i = bucket.first; i < bucket.end; ++i) {
        numbers += reducer->params[i].numel();
        reducer->bucket_of.push_back(b);
      }
      bucket.flat = at::zeros({numbers}, params[0]->options().requires_grad(false));
      reducer->buckets.push_back(std::move(bucket));
    }
    for (int64_t i = 0; i < n; ++i) {
      auto hook = std::make_unique<Hook>();
      hook->reducer = reducer;
      hook->i = i;
      torch::autograd::impl::set_post_acc_grad_hooks(reducer->params[i], std::move(hook));
    }
    *out = new std::shared_ptr<Reducer>(reducer);
  });
}

void lorabooth_reducer_free(std::shared_ptr<Reducer> *reducer) {
  for (auto &param : (*reducer)->params) torch::autograd::impl::set_post_acc_grad_hooks(param, nullptr);
  delete reducer;
}

// The next backward is the step's last: gradients leave as it fills buckets.
void lorabooth_reducer_arm(std::shared_ptr<Reducer> *handle) {
  auto &reducer = **handle;
  std::lock_guard<std::mutex> lock(reducer.mutex);
  std::fill(reducer.arrived.begin(), reducer.arrived.end(), 0);
  for (auto &bucket : reducer.buckets) bucket.waits_for = bucket.end - bucket.first;
  reducer.left = reducer.buckets.size();
  reducer.armed = true;
}

// What has not left leaves, `tail` with it; then each gradient is the mean over the ranks, and so is `tail`. `whole`: the backward went through.
char *lorabooth_reducer_finish(std::shared_ptr<Reducer> *handle, at::Tensor *tail, bool whole) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto &reducer = **handle;
    {
      std::lock_guard<std::mutex> lock(reducer.mutex);
      reducer.armed = false;
      TORCH_CHECK(reducer.failure.empty(), reducer.failure);
      auto &flat = reducer.buckets[0].flat;
      auto tail_of_flat = flat.narrow(0, flat.numel() - reducer.tail, reducer.tail);
      tail_of_flat.copy_(*tail);
      while (reducer.left > 0) reducer.leave();
    }
    for (size_t b = reducer.buckets.size(); b-- > 0;) {
      auto &bucket = reducer.buckets[b];
      bucket.sum->wait();
      bucket.sum.reset();
      bucket.flat.div_(static_cast<double>(reducer.group->world));
      int64_t place = 0;
      for (size_t i = bucket.first; i < bucket.end; ++i) {
        auto &param = reducer.params[i];
        param.mutable_grad() = bucket.flat.narrow(0, place, param.numel()).view(param.sizes());
        place += param.numel();
      }
    }
    auto &flat = reducer.buckets[0].flat;
    tail->copy_(flat.narrow(0, flat.numel() - reducer.tail, reducer.tail));
    if (whole && !reducer.knows_arrivals) reducer.expected = reducer.arrived;
    reducer.knows_arrivals |= whole;
  });
}

// Parameters whose last backward left them without a gradient: by number, in `out`, which holds as many as there are.
void lorabooth_reducer_absent(std::shared_ptr<Reducer> *handle, bool *out) {
  auto &reducer = **handle;
  for (size_t i = 0; i < reducer.params.size(); ++i) out[i] = !reducer.params[i].grad().defined();
}
}
