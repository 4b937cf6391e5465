// How the row-softmax engine sees a call on the CPU: rows and classes apart, the walk it takes, the
// size of its blocks; and copies of blocks that do not lie right.
#pragma once

#include "../core/row_softmax.h"
#include "row_epilogue.h"
#include "stage.h"
#include "stream.h"

namespace fusedloss::cpu {

// A view of the logits' shape: how it moves along rows, and along the classes.
struct ClassView {
  TensorView rows;
  int64_t class_stride = 0;
};

// A call in the form that the walks take: rows and classes apart.
struct RowPlan {
  RowSoftmaxCall call;
  Shape rows;
  ClassView logits, target, grad;
  int64_t num_rows, block_rows, task_rows;
  double logit_scale;
  bool along_rows;
  bool streams;        // rows of the gradient go past the cache
  bool skips_ignored;  // along classes, the logits of rows without a class are not read
};

constexpr int64_t kBlockNumbers = 12 * 1024;  // exponentials of a block: 48 KiB of floats
// Along classes no vector needs many rows, and 12 KiB are still in the nearest cache when the
// gradient is made: 3 to 5 % of the time of 8,192 x 1,000.
constexpr int64_t kClassBlockNumbers = 3 * 1024;
constexpr int64_t kTaskNumbers = 128 * 1024;
constexpr int64_t kFewClasses = 32;     // fewer than this do not fill vectors along the classes
constexpr int64_t kManyClasses = 4096;  // more than this do not fit the cache for a vector of rows

// Removes the class dimension from a view.
inline ClassView split_classes(const TensorView& view, const Shape& shape) {
  ClassView out{view, 0};
  if (shape.class_dim < 0) return out;
  out.class_stride = view.strides[shape.class_dim];
  for (int d = shape.class_dim; d + 1 < shape.ndim; ++d) out.rows.strides[d] = view.strides[d + 1];
  return out;
}

// `extra`: a view of the caller's that takes the same form, without its class dimension.
inline RowPlan plan_rows(RowSoftmaxCall call, double logit_scale, TensorView* extra = nullptr) {
  TensorView* views[] = {&call.logits, &call.target, &call.grad, &call.grad_output,
                         &call.loss,   &call.saved,  extra};
  simplify(call.shape, views, extra == nullptr ? 6 : 7);
  RowPlan plan{};
  plan.logit_scale = logit_scale;
  const Shape& shape = call.shape;
  plan.rows = shape;
  plan.rows.class_dim = -1;
  if (shape.class_dim >= 0) {
    for (int d = shape.class_dim; d + 1 < shape.ndim; ++d) plan.rows.sizes[d] = shape.sizes[d + 1];
    plan.rows.ndim -= 1;
    if (plan.rows.ndim == 0) plan.rows = {1, -1, {1}};
  }
  plan.logits = split_classes(call.logits, shape);
  plan.target = split_classes(call.target, shape);
  plan.grad = split_classes(call.grad, shape);
  call.grad_output = split_classes(call.grad_output, shape).rows;
  call.loss = split_classes(call.loss, shape).rows;
  call.saved = split_classes(call.saved, shape).rows;
  if (extra != nullptr) *extra = split_classes(*extra, shape).rows;
  plan.num_rows = plan.rows.numel();
  const int64_t classes = call.num_classes;
  const int last = plan.rows.ndim - 1;
  const bool together = plan.logits.rows.strides[last] == 1 && plan.rows.sizes[last] >= kShortRun;
  plan.along_rows = classes < kFewClasses || (together && classes <= kManyClasses);
  // Of half types the extra copy costs what it saves; pixels move in stretches too short for it.
  const int64_t grad_bytes = shape.numel() * size_of(call.grad.dtype);
  plan.streams = call.grad.data != nullptr && !plan.along_rows && plan.grad.class_stride == 1 &&
                 size_of(call.grad.dtype) >= 4 && grad_bytes >= kStreamedBytes;
  const int64_t fitting = (plan.along_rows ? kBlockNumbers : kClassBlockNumbers) / classes;
  plan.block_rows = fitting < 1                         ? 1
                    : fitting < RowArrays<float>::kRows ? fitting
                                                        : RowArrays<float>::kRows;
  if (plan.along_rows && plan.block_rows > 16) plan.block_rows -= plan.block_rows % 16;
  if (plan.along_rows && plan.block_rows < 16) plan.block_rows = 16;
  const int64_t blocks = kTaskNumbers / (plan.block_rows * classes);
  plan.task_rows = plan.block_rows * (blocks < 1 ? 1 : blocks);
  plan.call = call;
  return plan;
}

// Copies between a tensor and a block buffer in which class c of row i lies at c * class_step +
// i * row_step, for tensors whose elements do not lie so.
template <class T>
inline void copy_block_in(const RowPlan& plan, const ClassView& view, int64_t begin, int64_t count,
                          T* buffer, int64_t class_step, int64_t row_step) {
  const int64_t classes = plan.call.num_classes;
  const int64_t row_stride = view.rows.strides[plan.rows.ndim - 1];
  with_typed_data(view.rows, [&](const auto* data) {
    for_each_run(plan.rows, begin, count, [&](const Run& run) {
      const auto* first = data + offset_of(plan.rows, view.rows, run.index);
      T* out = buffer + run.offset_in_block * row_step;
      if (row_step == 1) {
        for (int64_t c = 0; c < classes; ++c)
          convert_in(first + c * view.class_stride, row_stride, run.length, out + c * class_step);
      } else {
        for (int64_t i = 0; i < run.length; ++i)
          convert_in(first + i * row_stride, view.class_stride, classes, out + i * row_step);
      }
    });
  });
}

template <class T>
inline void copy_block_out(const RowPlan& plan, const ClassView& view, int64_t begin, int64_t count,
                           const T* buffer, int64_t class_step, int64_t row_step) {
  const int64_t classes = plan.call.num_classes;
  const int64_t row_stride = view.rows.strides[plan.rows.ndim - 1];
  with_typed_data(view.rows, [&](auto* data) {
    for_each_run(plan.rows, begin, count, [&](const Run& run) {
      auto* first = data + offset_of(plan.rows, view.rows, run.index);
      const T* source = buffer + run.offset_in_block * row_step;
      if (row_step == 1) {
        for (int64_t c = 0; c < classes; ++c)
          convert_out(source + c * class_step, run.length, first + c * view.class_stride,
                      row_stride);
      } else {
        for (int64_t i = 0; i < run.length; ++i)
          convert_out(source + i * row_step, classes, first + i * row_stride, view.class_stride);
      }
    });
  });
}

// Where rows [begin, begin + count) lie, if they are one run.
inline bool is_one_run(const Shape& rows, int64_t begin, int64_t count) {
  const int64_t length = rows.sizes[rows.ndim - 1];
  return begin % length + count <= length;
}

inline int64_t offset_of_row(const Shape& rows, const TensorView& view, int64_t row) {
  int64_t offset = 0;
  for (int d = rows.ndim - 1; d >= 0; --d) {
    offset += row % rows.sizes[d] * view.strides[d];
    row /= rows.sizes[d];
  }
  return offset;
}

}  // namespace fusedloss::cpu
