// What the calls of all engines share.
#pragma once

#include <cstdint>

namespace fusedloss {

// What one walk over the logits computes.
enum class Pass { kLoss, kLossAndGrad, kGrad };

enum class Reduction : int32_t { kNone, kSum, kMean };

// What a pass found. A bad label is one that names no class; the first in memory order is kept.
struct LabelReport {
  bool bad_label = false;
  int64_t label = 0;
};

}  // namespace fusedloss
