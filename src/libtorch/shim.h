// What every shim shares: an error crosses to Rust as a malloc'ed message, null for success.
#pragma once
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <cstring>

inline char *message_of(const std::exception &e) {
  auto *c10_error = dynamic_cast<const c10::Error *>(&e);
  return strdup(c10_error ? c10_error->what_without_backtrace() : e.what());
}

template <class F> char *guarded(F &&f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception &e) {
    return message_of(e);
  }
}
