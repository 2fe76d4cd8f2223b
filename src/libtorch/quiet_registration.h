// Puts kernels of our own in the place of libtorch's.
#pragma once
#include <c10/util/Exception.h>
#include <torch/library.h>

// While it lives, nothing is said of kernels that are replaced: that is meant.
class QuietRegistration : c10::WarningHandler {
  void process(const c10::Warning &) override {}
  const c10::WarningUtils::WarningHandlerGuard guard{this};
};
