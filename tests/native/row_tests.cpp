// C++ tests of the row-softmax engine on the CPU: both of its walks against plain double loops, and
// its target-logit hook with a functor of its own.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../../kernels/cpu/cross_entropy.h"
#include "../../kernels/cpu/row_softmax.h"
#include "../../kernels/cpu/softmax_focal.h"
#include "cpp_tests.h"

using namespace fusedloss;

namespace {

// Logits [outer, classes, inner] with a gap after every class row of `inner` numbers.
template <class X>
struct Rows {
  int64_t outer, classes, inner, gap;
  std::vector<X> logits, grad, again;
  std::vector<int64_t> labels;
  std::vector<float> weights, saved;
  float loss = 0, scale[2] = {0, 0};

  Rows(int64_t o, int64_t c, int64_t i, int64_t g)
      : outer(o),
        classes(c),
        inner(i),
        gap(g),
        logits(o * c * (i + g)),
        grad(logits.size()),
        again(logits.size()),
        labels(o * i),
        weights(c),
        saved(3 * o * i) {
    std::mt19937 random(static_cast<unsigned>(o * 1000 + c * 10 + i));
    for (X& x : logits) x = from<X>(std::normal_distribution<float>(0, 3)(random));
    for (int64_t& l : labels) l = static_cast<int64_t>(random() % c);
    for (float& w : weights) w = 0.5f + static_cast<float>(random() % 100) / 100;
  }

  int64_t at(int64_t o, int64_t c, int64_t i) const {
    return (o * classes + c) * (inner + gap) + i;
  }
  double x(int64_t o, int64_t c, int64_t i) const { return to<float>(logits[at(o, c, i)]); }

  TensorView view(std::vector<X>& data) {
    const int64_t row = inner + gap;
    return {data.data(), logits_type(), {classes * row, row, 1}};
  }
  static DType logits_type() { return cpu::kDTypeOf<X>; }

  RowSoftmaxCall call(bool weighted) {
    RowSoftmaxCall made{};
    made.shape = {3, 1, {outer, classes, inner}};
    made.logits = view(logits);
    made.target = {labels.data(), DType::kInt64, {inner, 0, 1}};
    made.loss = {&loss, DType::kFloat32, {}};
    made.scale = scale;
    made.class_weight = weighted ? weights.data() : nullptr;
    made.weight_value = 1.0;
    made.weighted_mean = weighted;
    made.ignore_index = -100;
    made.num_classes = classes;
    made.prescale = true;
    made.reduction = Reduction::kMean;
    return made;
  }
  RowSoftmaxCall with_grad(RowSoftmaxCall made) {
    made.grad = view(grad);
    return made;
  }
  RowSoftmaxCall with_saved(RowSoftmaxCall made) {
    made.saved = {saved.data(), DType::kFloat32, {inner, 0, 1}};
    made.saved_stride = outer * inner;
    return made;
  }
  RowSoftmaxCall backward(RowSoftmaxCall made, const float* upstream) {
    made = with_saved(made);
    made.grad = view(again);
    made.grad_output = {const_cast<float*>(upstream), DType::kFloat32, {}};
    return made;
  }
};

// What the engine must return, from plain loops: loss and gradient of one row.
struct Expected {
  double loss;
  std::vector<double> grad;
};

template <class X>
Expected expected_row(const Rows<X>& rows, int64_t o, int64_t i, double smoothing, double gamma) {
  const int64_t classes = rows.classes, t = rows.labels[o * rows.inner + i];
  double max = -1e300, total = 0, sum = 0, weights = 0;
  for (int64_t c = 0; c < classes; ++c) max = std::max(max, rows.x(o, c, i));
  for (int64_t c = 0; c < classes; ++c) total += std::exp(rows.x(o, c, i) - max);
  const double lse = max + std::log(total), share = smoothing / static_cast<double>(classes);
  const bool focal = gamma > 0;
  const auto weight = [&](int64_t c) { return focal ? 1.0 : double{rows.weights[c]}; };
  for (int64_t c = 0; c < classes; ++c) {
    sum += weight(c) * (lse - rows.x(o, c, i));
    weights += weight(c);
  }
  const double p = std::exp(rows.x(o, t, i) - lse), q = 1 - p;
  const double ce = (1 - smoothing) * weight(t) * (lse - rows.x(o, t, i)) + share * sum;
  const double f = std::pow(q, gamma);
  const double d = focal ? gamma * std::pow(q, gamma - 1) * p * ce : 0.0;
  Expected out{f * ce, std::vector<double>(classes)};
  for (int64_t c = 0; c < classes; ++c) {
    const double pc = std::exp(rows.x(o, c, i) - lse), own = c == t;
    out.grad[c] =
        f * ((1 - smoothing) * weight(t) * (pc - own) + share * (weights * pc - weight(c))) +
        d * (pc - own);
  }
  return out;
}

template <class X, class Forward, class Backward>
void check(Rows<X>& rows, const RowSoftmaxCall& call, double smoothing, double gamma,
           const Forward& forward, const Backward& backward) {
  double total = 0, divisor = 0, largest = 0;
  std::vector<Expected> wanted;
  for (int64_t o = 0; o < rows.outer; ++o)
    for (int64_t i = 0; i < rows.inner; ++i) {
      wanted.push_back(expected_row(rows, o, i, smoothing, gamma));
      total += wanted.back().loss;
      divisor += call.weighted_mean ? rows.weights[rows.labels[o * rows.inner + i]] : 1.0;
      for (const double g : wanted.back().grad) largest = std::max(largest, std::fabs(g));
    }
  forward(rows.with_grad(call));
  expect(std::fabs(rows.loss - total / divisor) <= 1e-5 * std::fabs(total / divisor) + 1e-7,
         "row softmax: mean");
  expect(rows.scale[0] == 1.0f, "row softmax: the gradient needs no further scale");
  const float upstream = 1.0f;
  forward(rows.with_saved(call));
  backward(rows.backward(call, &upstream));
  const double tolerance = (sizeof(X) == 2 ? 1e-2 : 1e-5) * largest / divisor;
  for (int64_t o = 0; o < rows.outer; ++o)
    for (int64_t i = 0; i < rows.inner; ++i)
      for (int64_t c = 0; c < rows.classes; ++c) {
        const double exact = wanted[o * rows.inner + i].grad[c] / divisor;
        const int64_t at = rows.at(o, c, i);
        expect(std::fabs(to<float>(rows.grad[at]) - exact) <= tolerance, "row softmax: gradient");
        expect(std::fabs(to<float>(rows.again[at]) - exact) <= tolerance,
               "row softmax: recomputed gradient");
      }
}

template <class X>
void test_values() {
  // One class; rows shorter and longer than a vector; a row in several chunks; few and many classes
  // along pixels; runs of pixels shorter than a vector, that end inside a block, in several tasks;
  // rows long enough for their gradient to be streamed, the second of them not aligned.
  const int64_t shapes[][3] = {{1, 1, 1},    {5, 3, 1},       {37, 19, 1},  {9, 100, 1},
                               {2, 5000, 1}, {2, 1050001, 1}, {3, 2, 3},    {2, 40, 9},
                               {2, 40, 33},  {2, 19, 700},    {3, 300, 50}, {2, 3, 30000}};
  for (const auto& [outer, classes, inner] : shapes)
    for (const int64_t gap : {0, 3}) {
      Rows<X> rows(outer, classes, inner, gap);
      RowSoftmaxCall call = rows.call(true);
      call.terms = Terms::kWeights;
      const CrossEntropyOptions smooth{0.1, false, 0.0};
      check(
          rows, call, 0.1, 0.0,
          [&](const RowSoftmaxCall& c) { launch_cross_entropy_fwd(c, smooth, reversed_tasks()); },
          [&](const RowSoftmaxCall& c) { launch_cross_entropy_bwd(c, smooth, plain_loop()); });
      for (const double gamma : {2.0, 1.5}) {
        const SoftmaxFocalOptions focal{gamma, 0.1};
        call = rows.call(false);
        call.terms = Terms::kUniform;
        check(
            rows, call, 0.1, gamma,
            [&](const RowSoftmaxCall& c) { launch_softmax_focal_fwd(c, focal, plain_loop()); },
            [&](const RowSoftmaxCall& c) { launch_softmax_focal_bwd(c, focal, reversed_tasks()); });
      }
    }
}

void test_order_of_tasks() {
  const int64_t shapes[][3] = {{4001, 80, 1}, {2, 7, 90000}};
  for (const auto& [outer, classes, inner] : shapes) {
    Rows<float> a(outer, classes, inner, 0), b(outer, classes, inner, 0);
    launch_cross_entropy_fwd(a.with_grad(a.call(true)), {}, plain_loop());
    launch_cross_entropy_fwd(b.with_grad(b.call(true)), {}, reversed_tasks());
    expect(a.loss == b.loss && a.grad == b.grad, "row softmax: order of tasks changes nothing");
  }
}

void test_labels() {
  for (const auto& [classes, inner] : {std::pair<int64_t, int64_t>{50, 1}, {4, 40}}) {
    Rows<float> rows(3, classes, inner, 0);
    rows.labels[1] = classes;
    rows.labels[2] = -3;
    const LabelReport report =
        launch_cross_entropy_fwd(rows.with_grad(rows.call(true)), {}, plain_loop());
    expect(report.bad_label && report.label == classes, "row softmax: the first bad label");

    rows.labels[1] = rows.labels[2] = -100;
    for (int64_t c = 0; c < classes; ++c)
      rows.logits[rows.at(1 / inner, c, 1 % inner)] = std::numeric_limits<float>::quiet_NaN();
    launch_cross_entropy_fwd(rows.with_grad(rows.call(true)), {}, plain_loop());
    expect(std::isfinite(rows.loss), "row softmax: a NaN in an ignored row has no effect");
    for (int64_t c = 0; c < classes; ++c)
      expect(rows.grad[rows.at(1 / inner, c, 1 % inner)] == 0.0f,
             "row softmax: ignored rows have no gradient");
  }
}

// Cross entropy with the target's logit lowered by a margin, as CosFace does it.
struct Margin : CrossEntropy<float> {
  static constexpr bool kChangesTarget = true;
  static constexpr bool kHasWeightedTerms = false;
  float margin;
  FUSEDLOSS_HD TargetLogit<float> changed_target(float logit, int64_t) const {
    return {logit - margin, 1.0f};
  }
};

// The target dominates by far before the margin (so that sums relative to it would vanish), a
// little, or not at all; and stands alone.
void test_changed_target() {
  const int64_t shapes[][2] = {{100, 1}, {5, 64}, {1, 64}, {1, 1}};
  for (const auto& [classes, inner] : shapes)
    for (const float lead : {0.0f, 3.0f, 200.0f}) {
      const float margin = lead + 2.0f;
      Rows<float> rows(4, classes, inner, 0), lowered(4, classes, inner, 0);
      for (int64_t o = 0; o < 4; ++o)
        for (int64_t i = 0; i < inner; ++i) {
          const int64_t at = rows.at(o, rows.labels[o * inner + i], i);
          rows.logits[at] = std::round(rows.logits[at] * 64) / 64 + lead;  // subtracts exactly
          lowered.logits[at] = rows.logits[at] - margin;
        }
      launch_cross_entropy_fwd(lowered.with_grad(lowered.call(false)), {}, plain_loop());
      const RowSoftmaxCall call = rows.with_grad(rows.call(false));
      const Margin loss{CrossEntropy<float>({}, call), margin};
      cpu::forward_rows<float>(call, loss, plain_loop());
      expect(std::fabs(rows.loss - lowered.loss) <= 2e-6f * lowered.loss,
             "row softmax: changed target, loss");
      for (size_t k = 0; k < rows.grad.size(); ++k)
        expect(std::fabs(rows.grad[k] - lowered.grad[k]) < 1e-6f,
               "row softmax: changed target, gradient");
    }
}

}  // namespace

void test_row_softmax() {
  test_values<float>();
  test_values<BFloat16>();
  test_order_of_tasks();
  test_labels();
  test_changed_target();
}
