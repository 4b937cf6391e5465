// Scaling of a finished gradient on the CPU: entry point for the binding.
#pragma once

#include "../core/scale.h"
#include "threads.h"

namespace fusedloss {

void launch_scale_gradient(const ScaleCall& call, const cpu::Threads& threads);

}  // namespace fusedloss
