// Scaling of a finished gradient: the second half of the "in forward" schedule.
#pragma once

#include "layout.h"

namespace fusedloss {

// out = grad * grad_output * scale. grad_output is elementwise or constant. `out` may be `grad`;
// then memory stays untouched where the factor is exactly 1.
struct ScaleCall {
  Shape shape;
  TensorView grad;
  TensorView grad_output;
  TensorView out;
  const void* scale;  // one number of grad's accumulator type
};

}  // namespace fusedloss
