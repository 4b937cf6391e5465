// What may be joined to the regions of a call: a second loss from the same logits in the same two
// passes.
#pragma once

#include "cross_entropy.h"
#include "nothing.h"
#include "overlap.h"
#include "sigmoid_focal.h"
#include "softmax_focal.h"

namespace fusedloss {

enum class Joined : int32_t { kNothing, kCrossEntropy, kFocal };

// Over rows: NoRowLoss, CrossEntropy (z_loss 0) or SoftmaxFocal.
struct SoftmaxRegionOptions {
  Joined joined;
  CrossEntropyOptions cross_entropy;
  SoftmaxFocalOptions focal;
};

// Over elements: nothing, or SigmoidFocal, of which binary cross entropy is the case of gamma 0
// without alpha (side < 0). With Activation::kNone nothing is joined.
struct ElementRegionOptions {
  Activation activation;
  Joined joined;
  FocalOptions focal;
};

}  // namespace fusedloss
