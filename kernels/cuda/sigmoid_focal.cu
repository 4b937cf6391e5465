// Sigmoid focal loss on CUDA.
#include "../loss/sigmoid_focal.h"

#include "pointwise_launch.cuh"

namespace fusedloss {
namespace {

// The forms that training uses. gamma = 2 is everyone's, and three instructions less than any.
template <class T>
struct FocalForms {
  const FocalOptions& options;

  SigmoidFocal<T, SwitchedPower<T>> general() const {
    return {options, SwitchedPower<T>(options.gamma)};
  }

  template <class Run>
  bool labels(const Run& run) const {
    if (options.label_smoothing != 0.0) return false;
    if (options.gamma == 2.0)
      run(SigmoidFocalOfLabels<T, IntegerPower<2>>{});
    else
      run(SigmoidFocalOfLabels<T, SwitchedPower<T>>{SwitchedPower<T>(options.gamma)});
    return true;
  }

  template <class Run>
  bool dense(const Run& run) const {
    if (options.gamma != 2.0) return false;
    run(SigmoidFocal<T, IntegerPower<2>>(options, {}));
    return true;
  }
};

}  // namespace

template <class T>
static FocalForms<T> forms_of(const FocalOptions& options) {
  return {options};
}

template LabelReport launch_pointwise_fwd(const PointwiseCall&, const FocalOptions&, cudaStream_t);
template void launch_pointwise_bwd(const PointwiseCall&, const FocalOptions&, cudaStream_t);

}  // namespace fusedloss
