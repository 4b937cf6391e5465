// How tensors of one iteration space lie in memory: a POD view, and the host-side step that turns
// torch's sizes and strides into the simplest equivalent walk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "number.h"

namespace fusedloss {

constexpr int kMaxDims = 12;

// A tensor as the kernels see it: strides in elements, one for each dimension of the iteration
// space (0 where it is broadcast). data == nullptr means "absent".
struct TensorView {
  void* data;
  DType dtype;
  int64_t strides[kMaxDims];
};

// The iteration space. Dimension ndim-1 is walked innermost. `class_dim` is the dimension that
// numbers the classes, or -1 (also when there is one class only).
struct Shape {
  int ndim;
  int class_dim;
  int64_t sizes[kMaxDims];

  FUSEDLOSS_HD int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= sizes[d];
    return n;
  }
};

inline bool is_linear(const Shape& shape, const TensorView& view) {
  int64_t expected = 1;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    if (shape.sizes[d] != 1 && view.strides[d] != expected) return false;
    expected *= shape.sizes[d];
  }
  return true;
}

inline bool is_constant(const Shape& shape, const TensorView& view) {
  for (int d = 0; d < shape.ndim; ++d)
    if (shape.sizes[d] != 1 && view.strides[d] != 0) return false;
  return true;
}

// Reorders the dimensions so that `views[0]` is walked in memory order, and merges neighbours that
// every view walks as one. The class dimension is never merged with another. Order within the
// iteration space carries no meaning for a pointwise loss, so any dense layout (channels-last,
// permuted) becomes the contiguous one.
inline void simplify(Shape& shape, TensorView* const* views, int num_views) {
  const auto swap_dims = [&](int i, int j) {
    std::swap(shape.sizes[i], shape.sizes[j]);
    for (int v = 0; v < num_views; ++v) std::swap(views[v]->strides[i], views[v]->strides[j]);
    if (shape.class_dim == i)
      shape.class_dim = j;
    else if (shape.class_dim == j)
      shape.class_dim = i;
  };
  // Insertion sort by the first view's stride, large to small; stable, and broadcast or
  // single-element dimensions stay where they are.
  for (int i = 1; i < shape.ndim; ++i) {
    for (int j = i; j > 0; --j) {
      const int64_t outer = views[0]->strides[j - 1], inner = views[0]->strides[j];
      const bool movable =
          shape.sizes[j] != 1 && shape.sizes[j - 1] != 1 && outer != 0 && inner != 0;
      if (!movable || outer >= inner) break;
      swap_dims(j - 1, j);
    }
  }
  int kept = 0;
  int class_dim = -1;
  for (int d = 0; d < shape.ndim; ++d) {
    if (shape.sizes[d] == 1) continue;
    const bool is_class = d == shape.class_dim;
    bool mergeable = kept > 0 && !is_class && class_dim != kept - 1;
    for (int v = 0; v < num_views && mergeable; ++v)
      mergeable = views[v]->strides[kept - 1] == views[v]->strides[d] * shape.sizes[d];
    if (mergeable) {
      shape.sizes[kept - 1] *= shape.sizes[d];
      for (int v = 0; v < num_views; ++v) views[v]->strides[kept - 1] = views[v]->strides[d];
      continue;
    }
    shape.sizes[kept] = shape.sizes[d];
    for (int v = 0; v < num_views; ++v) views[v]->strides[kept] = views[v]->strides[d];
    if (is_class) class_dim = kept;
    ++kept;
  }
  if (kept == 0) {
    shape.sizes[0] = 1;
    for (int v = 0; v < num_views; ++v) views[v]->strides[0] = 0;
    kept = 1;
  }
  shape.ndim = kept;
  shape.class_dim = class_dim;
}

}  // namespace fusedloss
