// Tensors without numbers: shapes and dtypes on libtorch's Meta device, whose memory and work are counted while a plan is made.
#pragma once
#include "shim.h"

// Whether `xs` has no numbers.
inline bool is_planned(const at::Tensor &xs) { return xs.is_meta(); }

// Whether the plan that this thread makes is of a run on a CUDA device.
bool plans_for_cuda();

inline bool is_planned_on_cuda(const at::Tensor &xs) { return is_planned(xs) && plans_for_cuda(); }
inline bool is_planned_on_cpu(const at::Tensor &xs) { return is_planned(xs) && !plans_for_cuda(); }

// Products by what their speed depends on, as `Product` in planned.rs.
enum ProductKind : int64_t { kConvolution = 0, kMatmul = 1, kAttention = 2 };

// Counts a product `times` over, and so many bytes of a frozen weight that it reads.
void count_product(ProductKind kind, std::initializer_list<int64_t> sizes, double times, double bytes);

// Counts bytes that one operation reads and writes.
void count_moved(double bytes);

// Has libtorch know what operators give of tensors without numbers (planned_operators.cpp).
void register_planned_operators();

// Takes memory for its time, where a plan is made.
void count_scratch(const at::Tensor &like, int64_t numbers);
