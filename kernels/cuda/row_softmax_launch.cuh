// The row-softmax engine on CUDA, host side: which kernel a call takes, how it is cut up, and its
// launches.
#pragma once

#include "row_softmax_block.cuh"
#include "row_softmax_finish.cuh"
#include "row_softmax_pixels.cuh"
#include "row_softmax_tile.cuh"

namespace fusedloss::cuda {

// Rows up to this size go by tiles: 8 rows, one for each warp of a block, are then at most 32 KB,
// of which four blocks fit into the shared memory of every multiprocessor from sm_80 on. Longer
// rows have a block each.
constexpr int64_t kLongestTileRow = 4096;
// Unless rows lie apart (a slice of wider ones): a row shorter than this has too little for a block
// and is left to a thread, whose loads share sectors through the cache.
constexpr int64_t kShortestBlockRow = 1024;

// Tiles. A lane has up to 128 bytes of its row: enough to pay for the exchange between lanes; and
// 256 lanes then have at most 32 KB under way.
struct TilePolicy {
  int64_t row_bytes;  // up to
  int lanes;
};
constexpr TilePolicy kTilePolicies[] = {{128, 1},  {256, 2},   {512, 4},
                                        {1024, 8}, {2048, 16}, {kLongestTileRow, 32}};
constexpr int64_t kTileBytes = 16384;
// Beside the counts of a loss that mines, tiles are kept smaller, for the same occupancy.
template <class Loss>
constexpr int64_t kMostTileBytes = kMines<Loss> ? 24576 : 32768;

// Blocks. Each thread has about four 16-byte vectors: enough to keep memory busy at half occupancy,
// little enough that a row does not wait for one slow thread. A pass that walks once has several
// blocks on a multiprocessor, of which some load while others add up: with 256 threads it takes a
// tenth less time than with 512 (H200). Where the gradient follows in a second walk, 1024 threads
// keep the rows under way in the cache.
struct BlockPolicy {
  int64_t row_bytes;  // up to
  int threads;
};
constexpr BlockPolicy kBlockPolicies[] = {
    {8192, 128}, {16384, 256}, {32768, 512}, {INT64_MAX, 1024}};
constexpr int kMostThreadsOfOneWalk = 256;
constexpr int64_t kKeptBytes = 48 * 1024 - kVectorBytes - 1024;  // beside the static shared memory

// Pixels. Below so many threads most of a GPU's multiprocessors would idle, and classes are shared
// out as long as each warp keeps this many.
constexpr int64_t kEnoughThreads = 65536;
constexpr int kClassesOfSlice = 32;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Takes the class dimension out of the call's shape and views; its strides go to the plan.
inline RowPlan take_classes_out(RowSoftmaxCall& call) {
  TensorView* views[] = {&call.logits, &call.target, &call.grad_output,
                         &call.loss,   &call.saved,  &call.grad};
  simplify(call.shape, views, 6);
  RowPlan plan{};
  const int class_dim = call.shape.class_dim;
  if (class_dim >= 0) {
    plan.logits_step = call.logits.strides[class_dim];
    plan.target_step = call.target.strides[class_dim];
    plan.grad_step = call.grad.strides[class_dim];
    for (int d = class_dim; d + 1 < call.shape.ndim; ++d) {
      call.shape.sizes[d] = call.shape.sizes[d + 1];
      for (TensorView* view : views) view->strides[d] = view->strides[d + 1];
    }
    --call.shape.ndim;
    call.shape.class_dim = -1;
    simplify(call.shape, views, 6);  // the class dimension may have parted two that are one
  }
  plan.rows = call.shape.numel();
  for (int d = 0; d < call.shape.ndim; ++d) plan.by_size[d] = Divider(call.shape.sizes[d]);
  return plan;
}

// Whether rows of `classes` neighbours follow each other without a gap.
inline bool is_dense(const RowSoftmaxCall& call, const TensorView& view, int64_t step) {
  int64_t expected = call.num_classes;
  for (int d = call.shape.ndim - 1; d >= 0; --d) {
    if (call.shape.sizes[d] != 1 && view.strides[d] != expected) return false;
    expected *= call.shape.sizes[d];
  }
  return call.num_classes == 1 || step == 1;
}

// `most_bytes`: of a tile of rows that do not need more alone.
inline TilePlan plan_tile(const RowSoftmaxCall& call, int64_t size, int64_t most_bytes) {
  const int64_t row_bytes = call.num_classes * size;
  TilePlan tile{static_cast<int>(call.num_classes), 0, kWarp, 0, 1};
  for (const TilePolicy& policy : kTilePolicies) {
    if (row_bytes > policy.row_bytes) continue;
    tile.lanes = policy.lanes;
    break;
  }
  while (tile.lanes < kWarp && kRowThreads / tile.lanes * row_bytes > most_bytes) tile.lanes *= 2;
  const int groups = kRowThreads / tile.lanes;
  const int64_t rounds = kTileBytes / (row_bytes * groups);
  // No more rows than threads: each row's ends have a thread of their own.
  tile.rows = groups * static_cast<int>(std::clamp<int64_t>(rounds, 1, tile.lanes));
  // Lanes of different groups that are a row or several apart share a bank where the row is a
  // multiple of a power of two of the 4-byte banks (of 8-byte pairs of banks for double).
  const int64_t per_bank = size < 4 ? 4 / size : 1;
  const int banks = size == 8 ? kWarp / 2 : kWarp;
  if (call.num_classes % per_bank != 0) return tile;
  const int64_t row = call.num_classes / per_bank;
  const int64_t common = std::min<int64_t>(row & -row, banks);
  if (common * per_bank <= tile.lanes) return tile;
  tile.rotation_groups = static_cast<int>(banks / common);
  tile.rotation = static_cast<int>(std::max<int64_t>(tile.lanes, per_bank));
  return tile;
}

// Whether every vector of V rows of `view` is aligned and does not cross the innermost dimension.
inline bool allows_vectors(const RowSoftmaxCall& call, const TensorView& view, int64_t step,
                           int vector) {
  const int inner = call.shape.ndim - 1;
  bool fits = view.strides[inner] == 1 && step % vector == 0 &&
              call.shape.sizes[inner] % vector == 0 && is_aligned(view, 0, vector);
  for (int d = 0; d < inner; ++d) fits &= view.strides[d] % vector == 0;
  return fits;
}

template <Pass kPass, TermsKind kTerms, int V, class X, class Loss>
int64_t launch_pixels(const RowSoftmaxCall& call, const RowPlan& plan, const Loss& loss,
                      cudaStream_t stream) {
  PixelPlan pixel{static_cast<int>(call.num_classes), 1};
  while (pixel.slices < kRowThreads / kWarp && plan.rows / V * pixel.slices < kEnoughThreads &&
         call.num_classes / (2 * pixel.slices) >= kClassesOfSlice)
    pixel.slices *= 2;
  const int64_t of_block = int64_t{kRowThreads} / pixel.slices * V;
  const int64_t blocks = std::min(ceil_div(plan.rows, of_block), kMaxRowBlocks);
  using Slots = PixelStats<V, typename Loss::value_type>;
  const bool slots = kCollects<kPass, Loss> && pixel.slices > 1;
  const int shared = slots ? kRowThreads * static_cast<int>(sizeof(Slots)) : 0;
  launch("row pixels kernel", row_pixels_kernel<kPass, kTerms, V, X, Loss>,
         {blocks, kRowThreads, shared}, stream, call, plan, pixel, loss);
  return blocks;
}

// Launches the walk; returns its number of blocks.
template <Pass kPass, TermsKind kTerms, class X, class Loss>
int64_t walk_rows_of(const RowSoftmaxCall& call, const RowPlan& plan, const Loss& loss,
                     cudaStream_t stream) {
  constexpr bool kWithGrad = kPass != Pass::kLoss;
  constexpr int64_t kSize = sizeof(X);
  const int64_t row_bytes = call.num_classes * kSize;
  const auto everywhere = [&](auto holds) {
    return holds(call.logits, plan.logits_step) && (!kWithGrad || holds(call.grad, plan.grad_step));
  };

  const bool dense =
      everywhere([&](const TensorView& view, int64_t step) { return is_dense(call, view, step); });
  constexpr int64_t kMostBytes = kMostTileBytes<Loss>;
  if (dense && row_bytes <= std::min(kLongestTileRow, kMostBytes / (kRowThreads / kWarp))) {
    const TilePlan tile = plan_tile(call, kSize, kMostBytes);
    const int64_t blocks = std::min(ceil_div(plan.rows, tile.rows), kMaxRowBlocks);
    const int shared = tile.rows * static_cast<int>(row_bytes) + kVectorBytes;
    launch("row tile kernel", row_tile_kernel<kPass, kTerms, X, Loss>,
           {blocks, kRowThreads, shared}, stream, call, plan, tile, loss);
    return blocks;
  }
  const bool neighbours = everywhere([](const TensorView&, int64_t step) { return step == 1; });
  if (neighbours && row_bytes >= kShortestBlockRow) {
    BlockPlan block{static_cast<int>(call.num_classes), row_bytes <= kKeptBytes};
    const BlockPolicy* policy = kBlockPolicies;
    while (row_bytes > policy->row_bytes) ++policy;
    const int64_t blocks = std::min(plan.rows, kMaxRowBlocks);
    constexpr bool kTwice = kWithGrad && kCollects<kPass, Loss>;
    const bool keeps = kTwice && block.keep;
    const int shared = keeps ? static_cast<int>(row_bytes) + kVectorBytes : 0;
    const int most = kTwice ? kRowBlockThreads<X> : kMostThreadsOfOneWalk;
    launch("row block kernel", row_block_kernel<kPass, kTerms, X, Loss>,
           {blocks, std::min(policy->threads, most), shared}, stream, call, plan, block, loss);
    return blocks;
  }
  // A loss with a margin has no registers for two pixels, and cosines of pixels are rare; nor have
  // weights of terms beside a gradient.
  constexpr bool kCrowded =
      Loss::kChangesTarget || (kPass == Pass::kLossAndGrad && kTerms == TermsKind::kAny);
  constexpr int V = kCrowded ? 1 : kPixelVector<X>;
  const bool vectors = everywhere(
      [&](const TensorView& view, int64_t step) { return allows_vectors(call, view, step, V); });
  return vectors ? launch_pixels<kPass, kTerms, V, X>(call, plan, loss, stream)
                 : launch_pixels<kPass, kTerms, 1, X>(call, plan, loss, stream);
}

// The walk for these terms. Double, which is there for tests, and weights ask at run time.
template <Pass kPass, class X, class Loss>
int64_t walk_rows(const RowSoftmaxCall& call, const RowPlan& plan, const Loss& loss,
                  cudaStream_t stream) {
  if constexpr (sizeof(X) < sizeof(double)) {
    if (call.terms == Terms::kNone)
      return walk_rows_of<kPass, TermsKind::kNone, X>(call, plan, loss, stream);
    if (call.terms == Terms::kUniform || !Loss::kHasWeightedTerms)
      return walk_rows_of<kPass, TermsKind::kUniform, X>(call, plan, loss, stream);
  }
  if constexpr (Loss::kHasWeightedTerms || sizeof(X) == sizeof(double))
    return walk_rows_of<kPass, TermsKind::kAny, X>(call, plan, loss, stream);
}

template <class X, class Loss>
void forward_rows(RowSoftmaxCall call, const Loss& loss, cudaStream_t stream) {
  using T = typename Loss::value_type;
  const bool empty = call.shape.numel() == 0;
  int64_t blocks = 0, rows = 0;
  if (!empty) {
    const RowPlan plan = take_classes_out(call);
    rows = plan.rows;
    blocks = call.grad.data != nullptr ? walk_rows<Pass::kLossAndGrad, X>(call, plan, loss, stream)
                                       : walk_rows<Pass::kLoss, X>(call, plan, loss, stream);
  }
  if (empty || call.reduction != Reduction::kNone)
    launch("row finish kernel", row_finish_kernel<T>, {1, kFinishThreads}, stream, call, rows,
           blocks);
}

// `make_loss(T)` gives the functor for accumulators of T's type.
template <class MakeLoss>
LabelReport row_softmax_forward(const RowSoftmaxCall& call, const MakeLoss& make_loss,
                                cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    forward_rows<X>(call, make_loss(Accumulator<X>{}), stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

template <class MakeLoss>
void row_softmax_backward(RowSoftmaxCall call, const MakeLoss& make_loss, cudaStream_t stream) {
  if (call.shape.numel() == 0) return;
  const RowPlan plan = take_classes_out(call);
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    walk_rows<Pass::kGrad, X>(call, plan, make_loss(Accumulator<X>{}), stream);
  });
}

}  // namespace fusedloss::cuda
