// Binary cross entropy of mined elements on CUDA: which walk a call takes, and the launches.
#include "mined_binary_cross_entropy.h"

#include "mined_elements.cuh"

namespace fusedloss {
namespace cuda {
namespace {

// Brings a call into the form that the kernels walk, in the order of the logits' memory.
MinedElements plan_mined(const PointwiseCall& call, const TensorView& marks,
                         const TensorView& slice) {
  MinedElements mined{};
  mined.call = call;
  mined.call.shape.class_dim = -1;
  mined.marks = marks;
  mined.slice = slice;
  TensorView* views[] = {&mined.call.logits, &mined.call.target,      &mined.call.weight,
                         &mined.call.grad,   &mined.call.grad_output, &mined.marks,
                         &mined.slice};
  simplify(mined.call.shape, views, 7);
  const Shape& shape = mined.call.shape;
  mined.numel = shape.numel();
  mined.one_slice = is_constant(shape, mined.slice);
  for (int d = 0; d < shape.ndim; ++d) mined.by_size[d] = Divider(shape.sizes[d]);
  return mined;
}

// Plans vectors of V elements; false where the call does not allow them.
bool plan_vectors(MinedElements& mined, int vector) {
  const PointwiseCall& call = mined.call;
  const Shape& shape = call.shape;
  const auto fits = [&](const TensorView& view) {
    return view.data == nullptr || (is_linear(shape, view) && is_aligned(view, 0, vector));
  };
  const bool rows_are_slices = mined.one_slice || (shape.ndim == 2 && mined.slice.strides[1] == 0);
  mined.vectors = mined.numel / vector;
  return rows_are_slices && fits(call.logits) && fits(call.target) && fits(call.weight) &&
         fits(call.grad) && fits(mined.marks) &&
         (is_constant(shape, call.grad_output) || fits(call.grad_output));
}

Grid mined_grid(const MinedElements& mined) {
  const int64_t blocks = (mined.numel + kElementsOfMinedBlock - 1) / kElementsOfMinedBlock;
  return {std::clamp<int64_t>(blocks, 1, kMaxWalkBlocks), kMinedThreads};
}

// As many elements as a 16-byte vector has marks.
template <class T>
constexpr int kMinedVector = kVectorBytes / static_cast<int>(sizeof(T));

template <class X, class Loss>
void mine_elements(const PointwiseCall& call, const MiningCall& mining, const Loss& loss,
                   cudaStream_t stream) {
  constexpr int V = kMinedVector<Accumulator<X>>;
  const MarkCounts counts = begin_select(mining.select, call.accumulator(), stream);
  int64_t blocks = 0;
  if (call.shape.numel() > 0) {
    MinedElements mined = plan_mined(call, mining.marks, {});
    mined.counts = counts;
    const Grid grid = mined_grid(mined);
    blocks = grid.blocks;
    const bool vectors = plan_vectors(mined, V);
    launch("mined elements kernel",
           vectors ? mined_elements_kernel<V, X, Loss> : mined_strided_kernel<X, Loss>, grid,
           stream, mined, loss);
  }
  finish_select(mining.select, call.accumulator(), blocks, stream);
}

template <class X, class Loss>
void mined_elements_gradient(const PointwiseCall& call, const MinedGradientCall& given,
                             const Loss& loss, cudaStream_t stream) {
  constexpr int V = kMinedVector<Accumulator<X>>;
  MinedElements mined = plan_mined(call, given.marks, given.slice);
  mined.selection = given.selection;
  const bool vectors = plan_vectors(mined, V);
  launch("mined gradient kernel",
         vectors ? mined_gradient_kernel<V, X, Loss> : mined_strided_gradient_kernel<X, Loss>,
         mined_grid(mined), stream, mined, loss);
}

// Calls run(zero of the logits' type, functor).
template <class Run>
void with_functor(const PointwiseCall& call, const MinedElementOptions& options, const Run& run) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using T = Accumulator<decltype(zero)>;
    if (options.from_logits)
      run(zero, logit_cross_entropy<T>());
    else
      run(zero, ProbabilityCrossEntropy<T>{});
  });
}

}  // namespace
}  // namespace cuda

void launch_mined_binary_cross_entropy_fwd(const PointwiseCall& call,
                                           const MinedElementOptions& options,
                                           const MiningCall& mining, cudaStream_t stream) {
  cuda::with_functor(call, options, [&](auto zero, const auto& loss) {
    cuda::mine_elements<decltype(zero)>(call, mining, loss, stream);
  });
}

void launch_mined_binary_cross_entropy_bwd(const PointwiseCall& call,
                                           const MinedElementOptions& options,
                                           const MinedGradientCall& mined, cudaStream_t stream) {
  if (call.shape.numel() == 0) return;
  cuda::with_functor(call, options, [&](auto zero, const auto& loss) {
    cuda::mined_elements_gradient<decltype(zero)>(call, mined, loss, stream);
  });
}

}  // namespace fusedloss
