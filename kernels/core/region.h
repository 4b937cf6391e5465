// The region engine's contract: sums over regions, and what a loss makes of them.
//
// A region is one class of one sample, or of the whole batch. One pass over the logits sums, over
// the elements of each region that are not ignored,
//
//   overlap I = sum p t,   mass P = sum p or p^2,   truth T = sum t or t^2
//
// with p the softmax or sigmoid of the logits, or the input itself. A tiny finish turns the sums
// into losses (../loss/overlap.h) and, for each region, dL/dI and dL/dP. A second pass writes the
// gradient. With h = dL/dI t + dL/dP (1 or 2 p) of an element's region:
//
//   softmax  dL/dx_j = p_j (h_j - sum_k p_k h_k)      sigmoid  p (1 - p) h      input itself  h
//
// A second loss may be joined, computed in the same two passes from the same logits: a functor of
// the row-softmax engine (softmax), or of the pointwise engine (sigmoid). So there are two walks:
// over rows (RowSoftmaxCall + RegionCall) and over elements (PointwiseCall + RegionCall).
#pragma once

#include "layout.h"
#include "loss_call.h"

namespace fusedloss {

struct RegionSums {
  double overlap, mass, truth;
};

// dL/dI and dL/dP of a region, everything but the incoming gradient applied.
template <class T>
struct RegionSlope {
  T overlap, mass;
};

enum class GeneralizedWeighting : int32_t { kNone, kUniform, kSimple, kSquare };

struct OverlapOptions {
  double gain, by_overlap, by_mass, by_truth;  // see ../loss/overlap.h; not of generalized dice
  double smooth_numerator, smooth_denominator;
  double gamma;
  bool log;
  GeneralizedWeighting weighting;  // kNone: every region has a ratio of its own
};

enum class Activation : int32_t { kNone, kSigmoid };

// What regions add to a call of the row-softmax or pointwise engine.
struct RegionCall {
  // Strides alone: an element's region is their sum over its place in the iteration space, i.e.
  // group * num_classes + class. Simplified together with the other views of the call.
  TensorView index;
  int64_t num_groups;   // samples; 1 where the batch is pooled
  int64_t num_classes;  // regions of a group
  bool squared;
  bool skip_absent;     // a region with T = 0 has loss 0, no gradient, and is left out of the mean
  int64_t first_class;  // 1 where class 0 is left out of the loss and the mean, else 0
  OverlapOptions overlap;
  const void* class_weight;  // num_classes accumulator-typed factors of regions' losses, or nullptr
  double factor;             // of the regions' reduced loss, beside that of what is joined
  double joined_factor;      // of the joined loss: applied to its value and to RowScale / scale
  bool joined;
  // The CPU's: the call's logits are what forward left in the gradient's memory (its call's grad),
  // e^(x - max) of every class but the label's, whose place holds 0; and a row's first saved number
  // is the label's logit less the maximum. Where few_classes_hold_all() that number stands in the
  // label's place, marked by its sign bit (a row that is left out has zeros), nothing is saved by
  // row, and labels are not read again. Backward may write over what it reads.
  bool begun;
  Reduction reduction;
  void* loss;    // Reduction::kNone: a number for each region from first_class on (for each group
                 // where generalized); else one number, with the joined loss in it
  void* slopes;  // RegionSlope<T>[num_groups * num_classes], written in forward, read in backward
  const void* upstream;  // backward: the incoming gradient, one number or as the losses of kNone
  int64_t upstream_group_stride, upstream_class_stride;  // in elements; 0 and 0 for one number

  FUSEDLOSS_HD int64_t num_regions() const { return num_groups * num_classes; }
  FUSEDLOSS_HD bool generalized() const { return overlap.weighting != GeneralizedWeighting::kNone; }
};

}  // namespace fusedloss
