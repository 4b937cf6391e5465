// Region losses over a softmax on the CPU: entry points for the binding.
#pragma once

#include "../loss/joined.h"
#include "threads.h"

namespace fusedloss {

inline int64_t softmax_regions_workspace_bytes(const RowSoftmaxCall&, const RegionCall&,
                                               const cpu::Threads&) {
  return 0;
}

// Whether all of a row's classes are kept in registers (region_few.h).
inline bool has_few_classes(const RowSoftmaxCall& call, const RegionCall& regions) {
  return !regions.squared && call.num_classes >= 2 && call.num_classes <= 4 &&
         call.accumulator() == DType::kFloat32 && call.terms == Terms::kNone;
}

// Whether all that backward needs is in a begun gradient: see RegionCall::begun.
inline bool few_classes_hold_all(const RowSoftmaxCall& call, const RegionCall& regions,
                                 const SoftmaxRegionOptions& options) {
  return has_few_classes(call, regions) && call.logits.dtype == DType::kFloat32 &&
         options.joined != Joined::kFocal;
}

LabelReport launch_softmax_regions_fwd(const RowSoftmaxCall& call, const RegionCall& regions,
                                       const SoftmaxRegionOptions& options,
                                       const cpu::Threads& threads);
void launch_softmax_regions_bwd(const RowSoftmaxCall& call, const RegionCall& regions,
                                const SoftmaxRegionOptions& options, const cpu::Threads& threads);

}  // namespace fusedloss
