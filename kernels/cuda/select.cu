// Selection over marks on CUDA: which kernels a call takes, and their launches.
#include "select_slices.cuh"

namespace fusedloss::cuda {
namespace {

// Marks of a block: two rounds of a thread.
constexpr int64_t kMarksOfBlock = int64_t{kSelectThreads} * kVectorsOfSelect * 4 * 2;

template <class T>
void select_slices(const SelectCall& call, const SelectPlaces& places, cudaStream_t stream) {
  // A block counts in 32 bits.
  if (call.slice_size > UINT32_MAX)
    throw std::runtime_error("fusedloss: a slice of 2^32 losses or more is not supported");
  const int64_t blocks = std::min(call.num_slices, kMostSliceBlocks);
  if (blocks > 0)
    launch("select slices kernel", select_slices_kernel<T>, {blocks, kSliceThreads}, stream, call,
           places.slices);
  launch("select slices finish kernel", select_slices_finish_kernel<T>, {1, kSelectFinishThreads},
         stream, call, static_cast<const SliceTotal*>(places.slices));
}

}  // namespace

MarkCounts begin_select(const SelectCall& call, DType accumulator, cudaStream_t stream) {
  SelectPlaces places;
  lay_out(call, accumulator, call.workspace, places);
  if (!counts_in_walk(call, accumulator)) return {};
  check(cudaMemsetAsync(places.counts, 0, sizeof(SelectCounts), stream), "clearing counts");
  return {places.counts->first, &places.counts->always, places.walk};
}

void finish_select(const SelectCall& call, DType accumulator, int64_t blocks, cudaStream_t stream) {
  SelectPlaces places;
  lay_out(call, accumulator, call.workspace, places);
  if (!counts_in_walk(call, accumulator)) {
    if (accumulator == DType::kFloat64)
      select_slices<double>(call, places, stream);
    else
      select_slices<float>(call, places, stream);
    return;
  }
  const bool sums = call.values == nullptr && call.reduction != Reduction::kNone;
  const int64_t wanted = (call.slice_size + kMarksOfBlock - 1) / kMarksOfBlock;
  const int64_t narrowed = std::clamp<int64_t>(wanted, 1, kMaxSelectBlocks);
  launch("select narrow kernel", select_narrow_kernel<0>, {narrowed, kSelectThreads}, stream, call,
         places, sums);
  launch("select narrow kernel", select_narrow_kernel<1>, {narrowed, kSelectThreads}, stream, call,
         places, sums);
  if (sums)
    launch("select finish kernel", select_finish_kernel, {1, kSelectFinishThreads}, stream, call,
           places, blocks, narrowed);
  else
    launch("select settle kernel", select_settle_kernel, {narrowed, kSelectThreads}, stream, call,
           places);
}

}  // namespace fusedloss::cuda
