// C++ tests of the pointwise engine on CUDA: each of its walks, and the scaling of a gradient.
#include "../../kernels/cpu/pointwise_calls.h"
#include "../../kernels/cuda/pointwise.h"
#include "../../kernels/loss/sigmoid_focal.h"
#include "../../kernels/loss/smooth_l1.h"
#include "cuda_tests.h"

using namespace fusedloss;

namespace {

enum class Targets { kLabels, kDense, kWide };  // of the logits' type, or of float32

template <class X>
struct Elements {
  Inputs<X> in;
  Numbers<X> dense;
  Numbers<float> wide, alpha, weight, upstream;

  // Classes innermost, as class indices have them.
  explicit Elements(Layout how)
      : in(how, 3.0f),
        dense(how.size(), how.shift),
        wide(how.size()),
        alpha(how.classes),
        weight(how.size()),
        upstream(how.size()) {
    std::mt19937 random(7);
    const auto unit = [&] { return static_cast<float>(random() % 101) / 100; };
    for (X& t : dense) t = from<X>(unit());
    for (float& x : alpha) x = unit();
    for (Numbers<float>* numbers : {&wide, &weight, &upstream})
      for (float& x : *numbers) x = unit();
  }

  PointwiseCall call(Targets targets, bool with_operands, Reduction reduction) {
    const Layout& how = in.layout;
    const bool indexed = targets == Targets::kLabels;
    if (!indexed) in.replace_nan();
    PointwiseCall made{};
    made.shape = how.shape(indexed ? 1 : -1);
    made.logits = how.view(in.logits);
    made.target = indexed                     ? how.by_row(in.labels)
                  : targets == Targets::kWide ? how.view(wide)
                                              : how.view(dense);
    if (with_operands) {
      made.side = {alpha.data(), DType::kFloat32, {0, 1, 0}};
      made.weight = how.view(weight);
    }
    made.side_value = 0.25;
    made.ignore_index = kIgnored;
    made.num_classes = indexed ? how.classes : 1;
    made.indexed = indexed;
    made.reduction = reduction;
    return made;
  }

  template <class Options, class Executor>
  Outcome run(PointwiseCall call, const Options& options, bool in_forward,
              const Executor& executor) {
    const Layout& how = in.layout;
    const bool none = call.reduction == Reduction::kNone;
    Numbers<X> grad(how.size(), how.shift);
    Numbers<float> loss(none ? how.size() : 1), scale(1);
    for (float& x : loss) x = 0;  // the gaps
    Numbers<unsigned char> workspace(some(pointwise_workspace_bytes(call, kStream)));
    call.loss = none ? how.view(loss) : loss.one();
    call.scale = scale.data();
    call.workspace = workspace.data();
    call.prescale = in_forward;
    if (in_forward) call.grad = how.view(grad);
    launch_pointwise_fwd(call, options, executor);
    const TensorView given = none ? how.view(upstream) : upstream.one();
    if (in_forward) {
      finish_gradient(how, grad, given, scale.data(), executor);
    } else {
      call.grad = how.view(grad);
      call.grad_output = given;
      launch_pointwise_bwd(call, options, executor);
    }
    Outcome out;
    out.take(how, loss, grad);
    return out;
  }
};

template <class X>
void test_focal(const Layout& how) {
  Elements<X> elements(how);
  for (const Targets targets : {Targets::kLabels, Targets::kDense, Targets::kWide})
    for (const bool operands : {false, true})
      for (const Reduction reduction : {Reduction::kMean, Reduction::kNone})
        for (const FocalOptions& options : {FocalOptions{2.0, 0.0}, FocalOptions{1.5, 0.1}})
          for (const bool in_forward : {false, true}) {
            const PointwiseCall call = elements.call(targets, operands, reduction);
            expect_same<X>(elements.run(call, options, in_forward, kStream),
                           elements.run(call, options, in_forward, plain_loop()),
                           "cuda: sigmoid focal");
          }
}

// As the binding calls it: without labels, without a side.
template <class X>
void test_smooth_l1(const Layout& how) {
  Elements<X> elements(how);
  for (const Targets targets : {Targets::kDense, Targets::kWide})
    for (const bool weighted : {false, true})
      for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone})
        for (const double beta : {0.0, 0.7})
          for (const bool in_forward : {false, true}) {
            PointwiseCall call = elements.call(targets, weighted, reduction);
            call.side = {};
            call.counts_all = true;
            expect_same<X>(elements.run(call, SmoothL1Options{beta}, in_forward, kStream),
                           elements.run(call, SmoothL1Options{beta}, in_forward, plain_loop()),
                           "cuda: smooth L1");
          }
}

// On a GPU a bad label makes its row NaN, and no other.
void test_bad_labels() {
  Elements<float> elements({20, 7, 1, true});
  elements.in.labels[3] = 70;
  elements.in.labels[11] = -7;
  const PointwiseCall call = elements.call(Targets::kLabels, false, Reduction::kNone);
  const Outcome out = elements.run(call, FocalOptions{2.0, 0.0}, false, kStream);
  for (int64_t k = 0; k < 20 * 7; ++k) {
    const bool bad = k / 7 == 3 || k / 7 == 11;
    expect(std::isnan(out.loss[k]) == bad, "cuda: sigmoid focal of bad labels");
  }
}

}  // namespace

void test_cuda_elements() {
  // One element; an odd number of classes; fewer than a vector; several blocks with a tail; other
  // than contiguous; each of them past an aligned address.
  for_each_shifted(
      {{1, 1, 1}, {37, 19, 1}, {50, 3, 1}, {151, 20, 1}, {9, 5, 7}, {9, 20, 1, true, 3}}, {0, 1, 3},
      [](const Layout& how) {
        test_focal<float>(how);
        test_focal<BFloat16>(how);
        test_smooth_l1<float>(how);
        test_smooth_l1<BFloat16>(how);
      });
  test_bad_labels();
}
