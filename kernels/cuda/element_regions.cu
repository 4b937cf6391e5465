// Regions over single elements on CUDA: the instantiations for activations and what may be joined.
#include "element_regions.h"

#include "region_elements_launch.cuh"

namespace fusedloss {
namespace {

// Calls `run` with what makes the functor.
template <class Run>
auto with_elements(const ElementRegionOptions& options, const Run& run) {
  if (options.activation == Activation::kNone)
    return run([](auto zero) { return cuda::PlainElements<decltype(zero)>{}; });
  if (options.joined == Joined::kNothing)
    return run([](auto zero) { return cuda::SigmoidElements<decltype(zero)>{}; });
  return run([&](auto zero) {
    using Power = SwitchedPower<decltype(zero)>;
    using Loss = SigmoidFocal<decltype(zero), Power>;
    return cuda::JoinedElements<Loss>{Loss(options.focal, Power(options.focal.gamma))};
  });
}

}  // namespace

LabelReport launch_element_regions_fwd(const PointwiseCall& call, const RegionCall& region,
                                       const ElementRegionOptions& options, cudaStream_t stream) {
  return with_elements(options, [&](const auto& make_loss) {
    return cuda::region_elements_forward(call, region, make_loss, stream);
  });
}

void launch_element_regions_bwd(const PointwiseCall& call, const RegionCall& region,
                                const ElementRegionOptions& options, cudaStream_t stream) {
  with_elements(options, [&](const auto& make_loss) {
    cuda::region_elements_backward(call, region, make_loss, stream);
  });
}

}  // namespace fusedloss
