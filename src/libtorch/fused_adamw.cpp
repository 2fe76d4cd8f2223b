#include "shim.h"

static std::vector<at::Tensor> list_of(at::Tensor *const *tensors, int64_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (int64_t i = 0; i < n; ++i) out.push_back(*tensors[i]);
  return out;
}

// Which libtorch leaves to its callers where a list is changed in one go: what is made from a parameter knows by it that it is old.
static void bump_versions(const std::vector<at::Tensor> &changed) {
  for (const auto &tensor : changed) tensor.unsafeGetTensorImpl()->bump_version();
}

extern "C" {
char *lorabooth_fused_adamw(at::Tensor *const *params, at::Tensor *const *grads, at::Tensor *const *exp_avgs,
                            at::Tensor *const *exp_avg_sqs, at::Tensor *const *steps, int64_t n, double lr, double beta1,
                            double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto step_list = list_of(steps, n);
    at::_foreach_add_(step_list, 1); // the kernel divides by 1 - beta^step: 0 would give NaN
    auto p = list_of(params, n), g = list_of(grads, n), m = list_of(exp_avgs, n), v = list_of(exp_avg_sqs, n);
    at::_fused_adamw_(p, g, m, v, {}, step_list, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                      /*maximize=*/false, {}, {});
    bump_versions(p);
  });
}

char *lorabooth_total_norm(at::Tensor *const *tensors, int64_t n, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto list = list_of(tensors, n);
    *out = new at::Tensor(at::linalg_vector_norm(at::stack(at::_foreach_norm(list, 2)), 2));
  });
}

char *lorabooth_scale(at::Tensor *const *tensors, int64_t n, double factor) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto list = list_of(tensors, n);
    at::_foreach_mul_(list, factor);
  });
}

// Multiplies each of the float32 tensors by `factor`; out: 1 where one of them holds a number that is not finite, else 0.
char *lorabooth_check_and_scale(at::Tensor *const *tensors, int64_t n, double factor, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto list = list_of(tensors, n);
    const auto options = list.at(0).options().dtype(at::kFloat);
    auto found = at::zeros({1}, options);
    at::_amp_foreach_non_finite_check_and_unscale_(list, found, at::full({1}, factor, options));
    *out = new at::Tensor(found);
  });
}

char *lorabooth_decay_and_add(at::Tensor *const *params, double factor, at::Tensor *const *changes, int64_t n) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto list = list_of(params, n);
    at::_foreach_mul_(list, factor);
    at::_foreach_add_(list, list_of(changes, n));
    bump_versions(list);
  });
}

char *lorabooth_clear_grads(at::Tensor *const *tensors, int64_t n) {
  return guarded([&] {
    for (int64_t i = 0; i < n; ++i) tensors[i]->mutable_grad() = at::Tensor();
  });
}
}
