// C++ tests of the row-softmax engine on CUDA: tiles, blocks and pixels, for each kind of terms.
#include "../../kernels/cpu/cross_entropy.h"
#include "../../kernels/cpu/margin_softmax.h"
#include "../../kernels/cpu/softmax_focal.h"
#include "../../kernels/cuda/cross_entropy.h"
#include "../../kernels/cuda/margin_softmax.h"
#include "../../kernels/cuda/softmax_focal.h"
#include "cuda_tests.h"

using namespace fusedloss;

namespace {

struct CrossEntropyLaunches {
  CrossEntropyOptions options;
  static constexpr bool kNeedsSmooth = false, kChangesTarget = false;

  template <class Executor>
  void forward(const RowSoftmaxCall& call, const Executor& executor) const {
    launch_cross_entropy_fwd(call, options, executor);
  }
  template <class Executor>
  void backward(const RowSoftmaxCall& call, const Executor& executor) const {
    launch_cross_entropy_bwd(call, options, executor);
  }
};

struct FocalLaunches {
  SoftmaxFocalOptions options;
  static constexpr bool kNeedsSmooth = true, kChangesTarget = false;

  template <class Executor>
  void forward(const RowSoftmaxCall& call, const Executor& executor) const {
    launch_softmax_focal_fwd(call, options, executor);
  }
  template <class Executor>
  void backward(const RowSoftmaxCall& call, const Executor& executor) const {
    launch_softmax_focal_bwd(call, options, executor);
  }
};

struct MarginLaunches {
  MarginOptions options;
  static constexpr bool kNeedsSmooth = false, kChangesTarget = true;

  template <class Executor>
  void forward(const RowSoftmaxCall& call, const Executor& executor) const {
    launch_margin_softmax_fwd(call, options, executor);
  }
  template <class Executor>
  void backward(const RowSoftmaxCall& call, const Executor& executor) const {
    launch_margin_softmax_bwd(call, options, executor);
  }
};

template <class X>
struct Rows {
  Inputs<X> in;
  Numbers<X> probabilities;
  Numbers<float> weights, upstream, margins;

  Rows(const Layout& how, float spread)
      : in(how, spread),
        probabilities(how.size(), how.shift),
        weights(how.classes),
        upstream(how.rows()),
        margins(how.classes) {
    std::mt19937 random(5);
    for (X& p : probabilities)
      p = from<X>(static_cast<float>(random() % 100) / static_cast<float>(100 * how.classes));
    for (Numbers<float>* numbers : {&weights, &upstream, &margins})
      for (float& x : *numbers) x = 0.25f + static_cast<float>(random() % 100) / 200;
  }

  RowSoftmaxCall call(Terms terms, bool weighted, Reduction reduction) {
    const Layout& how = in.layout;
    RowSoftmaxCall made{};
    made.shape = how.shape(1);
    made.logits = how.view(in.logits);
    made.target = how.by_row(in.labels);
    if (terms == Terms::kProbabilities) {
      in.replace_nan();
      made.target = how.view(probabilities);
      made.target_share = 0.9;
      made.uniform_share = 0.1 / static_cast<double>(how.classes);
    }
    made.terms = terms;
    made.class_weight = weighted ? weights.data() : nullptr;
    made.weight_value = 1;
    made.weighted_mean = weighted && terms != Terms::kProbabilities;
    made.ignore_index = kIgnored;
    made.num_classes = how.classes;
    made.reduction = reduction;
    return made;
  }

  template <class Launches, class Executor>
  Outcome run(RowSoftmaxCall call, const Launches& launches, bool in_forward,
              const Executor& executor) {
    const Layout& how = in.layout;
    const bool none = call.reduction == Reduction::kNone;
    Numbers<X> grad(how.size(), how.shift);
    const int numbers = saved_numbers(call.terms, Launches::kNeedsSmooth, Launches::kChangesTarget);
    Numbers<float> loss(none ? how.rows() : 1), scale(2), saved(numbers * how.rows());
    Numbers<unsigned char> workspace(some(row_softmax_workspace_bytes(call, kStream)));
    call.loss = none ? how.by_row(loss) : loss.one();
    call.scale = scale.data();
    call.workspace = workspace.data();
    const TensorView given = none ? how.by_row(upstream) : upstream.one();
    if (in_forward) {
      call.grad = how.view(grad);
      call.prescale = true;
      launches.forward(call, executor);
      finish_gradient(how, grad, given, scale.data(), executor);
    } else {
      call.saved = how.by_row(saved);
      call.saved_stride = how.rows();
      launches.forward(call, executor);
      call.grad = how.view(grad);
      call.grad_output = given;
      launches.backward(call, executor);
    }
    Outcome out;
    out.take(how, loss, grad);
    return out;
  }

  template <class Launches>
  void compare(const RowSoftmaxCall& call, const Launches& launches, const char* what) {
    for (const bool in_forward : {false, true})
      expect_same<X>(run(call, launches, in_forward, kStream),
                     run(call, launches, in_forward, plain_loop()), what);
  }
};

template <class X>
void test_layout(const Layout& how) {
  Rows<X> rows(how, 3.0f);
  for (const Reduction reduction : {Reduction::kMean, Reduction::kNone}) {
    const CrossEntropyLaunches plain{{0.0, false, 1e-3}}, smooth{{0.1, true, 0.0}};
    rows.compare(rows.call(Terms::kNone, false, reduction), plain, "cuda: cross entropy");
    rows.compare(rows.call(Terms::kUniform, false, reduction), smooth, "cuda: uniform terms");
    rows.compare(rows.call(Terms::kWeights, true, reduction), smooth, "cuda: weighted terms");
    const FocalLaunches focal{{2.0, 0.1}}, real{{1.5, 0.0}};
    rows.compare(rows.call(Terms::kUniform, true, reduction), focal, "cuda: softmax focal");
    rows.compare(rows.call(Terms::kNone, false, reduction), real, "cuda: softmax focal");
    rows.compare(rows.call(Terms::kProbabilities, true, reduction), smooth, "cuda: probabilities");
  }
  Rows<X> cosines(how, 0.4f);
  MarginOptions arc{16.0, {1, nullptr}, {0.5, nullptr}, {0, nullptr}, false, true, false, 0.0};
  cosines.compare(cosines.call(Terms::kNone, false, Reduction::kMean), MarginLaunches{arc},
                  "cuda: margin");
  arc.m2.by_class = cosines.margins.data();
  arc.m1.value = 1.25;
  RowSoftmaxCall filtered = cosines.call(Terms::kNone, false, Reduction::kNone);
  filtered.has_ceiling = true;
  filtered.ceiling = 0.8;
  cosines.compare(filtered, MarginLaunches{arc}, "cuda: margins by class");
}

void test_bad_labels() {
  for (const Layout& how : {Layout{30, 5, 1}, Layout{30, 1500, 1}, Layout{1, 5, 30}}) {
    Rows<float> rows(how, 3.0f);
    rows.in.labels[3] = how.classes;
    rows.in.labels[11] = -7;
    const Outcome out = rows.run(rows.call(Terms::kNone, false, Reduction::kNone),
                                 CrossEntropyLaunches{}, false, kStream);
    for (int64_t r = 0; r < 30; ++r)
      expect(std::isnan(out.loss[r]) == (r == 3 || r == 11), "cuda: rows of bad labels");
  }
}

}  // namespace

void test_cuda_rows() {
  // Tiles: one number, odd rows, several rows of a tile, all lanes of a warp to a row. Blocks: rows
  // kept in shared memory and too long for it; rows apart from each other. Pixels: with and without
  // pairs, classes shared out, classes innermost but apart.
  for_each_shifted({{1, 1, 1},
                    {37, 19, 1},
                    {70, 3, 1},
                    {9, 700, 1},
                    {3, 1501, 1},
                    {2, 12301, 1},
                    {3, 1200, 1, true, 5},
                    {2, 5, 33},
                    {2, 19, 300},
                    {1, 150, 10},
                    {40, 6, 1, true, 3},
                    {3, 4, 9, true}},
                   {0, 1}, [](const Layout& how) {
                     test_layout<float>(how);
                     test_layout<BFloat16>(how);
                   });
  test_bad_labels();
}
