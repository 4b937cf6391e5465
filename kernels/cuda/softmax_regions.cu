// Regions over a softmax on CUDA: the instantiations for what may be joined.
#include "softmax_regions.h"

#include "region_rows_launch.cuh"

namespace fusedloss {
namespace {

// Calls `run` with what makes the joined functor.
template <class Run>
auto with_joined(const RowSoftmaxCall& call, const SoftmaxRegionOptions& options, const Run& run) {
  switch (options.joined) {
    case Joined::kCrossEntropy:
      return run(
          [&](auto zero) { return CrossEntropy<decltype(zero)>(options.cross_entropy, call); });
    case Joined::kFocal:
      return run([&](auto zero) {
        using Power = SwitchedPower<decltype(zero)>;
        return SoftmaxFocal<decltype(zero), Power>(options.focal, call, Power(options.focal.gamma));
      });
    default:
      return run([](auto zero) { return NoRowLoss<decltype(zero)>{}; });
  }
}

}  // namespace

LabelReport launch_softmax_regions_fwd(const RowSoftmaxCall& call, const RegionCall& region,
                                       const SoftmaxRegionOptions& options, cudaStream_t stream) {
  return with_joined(call, options, [&](const auto& make_loss) {
    return cuda::region_rows_forward(call, region, make_loss, stream);
  });
}

void launch_softmax_regions_bwd(const RowSoftmaxCall& call, const RegionCall& region,
                                const SoftmaxRegionOptions& options, cudaStream_t stream) {
  with_joined(call, options, [&](const auto& make_loss) {
    cuda::region_rows_backward(call, region, make_loss, stream);
  });
}

}  // namespace fusedloss
