// C++ tests of the CPU kernels without Python: a sanitizer sees every access of theirs here.
// Exits with 1 and says what differs where a result is wrong. Those of rows, regions and mining
// are in files of their own.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../../kernels/core/layout.h"
#include "../../kernels/cpu/pointwise_calls.h"
#include "../../kernels/cpu/scale.h"
#include "../../kernels/loss/sigmoid_focal.h"
#include "cpp_tests.h"

using namespace fusedloss;

namespace {

double focal(double x, double t, double alpha, double gamma) {
  const double p = 1 / (1 + std::exp(-x));
  const double pt = p * t + (1 - p) * (1 - t);
  const double ce = std::max(x, 0.0) - x * t + std::log1p(std::exp(-std::fabs(x)));
  return (alpha * t + (1 - alpha) * (1 - t)) * std::pow(1 - pt, gamma) * ce;
}

struct Problem {
  int64_t rows, classes;
  std::vector<float> logits, grad;
  std::vector<int64_t> labels;
  float loss = 0, scale = 0;

  Problem(int64_t n, int64_t c) : rows(n), classes(c), logits(n * c), grad(n * c), labels(n) {
    std::mt19937 random(static_cast<unsigned>(n * 31 + c));
    for (float& x : logits) x = std::normal_distribution<float>(0, 3)(random);
    for (int64_t& l : labels) l = static_cast<int64_t>(random() % (c + 2)) - 1;
  }

  PointwiseCall call() {
    PointwiseCall made{};
    made.shape = {2, 1, {rows, classes}};
    made.logits = {logits.data(), DType::kFloat32, {classes, 1}};
    made.target = {labels.data(), DType::kInt64, {1, 0}};
    made.grad = {grad.data(), DType::kFloat32, {classes, 1}};
    made.loss = {&loss, DType::kFloat32, {}};
    made.scale = &scale;
    made.side_value = 0.25;
    made.ignore_index = -100;
    made.num_classes = classes;
    made.indexed = true;
    made.prescale = true;
    made.reduction = Reduction::kMean;
    return made;
  }
};

void test_focal_values() {
  for (const auto& [rows, classes] :
       {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {513, 80}, {3, 20000}}) {
    Problem problem(rows, classes);
    launch_pointwise_fwd(problem.call(), FocalOptions{2.0, 0.0}, plain_loop());
    double wanted = 0;
    for (int64_t i = 0; i < rows * classes; ++i)
      wanted += focal(problem.logits[i], problem.labels[i / classes] == i % classes, 0.25, 2.0);
    wanted /= static_cast<double>(rows * classes);
    expect(std::fabs(problem.loss - wanted) < 1e-5 * wanted, "focal mean");
    expect(problem.scale == 1.0f, "the gradient needs no further scale");
  }
}

void test_same_bits_in_any_order() {
  Problem a(4001, 80), b(4001, 80);
  launch_pointwise_fwd(a.call(), FocalOptions{2.0, 0.0}, plain_loop());
  launch_pointwise_fwd(b.call(), FocalOptions{2.0, 0.0}, reversed_tasks());
  expect(a.loss == b.loss && a.grad == b.grad, "order of tasks changes nothing");
}

void test_bad_label_is_reported() {
  Problem problem(50, 4);
  problem.labels[20] = 17;
  problem.labels[40] = 18;
  const LabelReport report =
      launch_pointwise_fwd(problem.call(), FocalOptions{2.0, 0.0}, reversed_tasks());
  expect(report.bad_label && report.label == 17, "the first bad label is reported");
}

void test_ignored_rows_ignore_nan() {
  Problem problem(3, 5);
  problem.labels[1] = -100;
  for (int c = 0; c < 5; ++c) problem.logits[5 + c] = std::numeric_limits<float>::quiet_NaN();
  launch_pointwise_fwd(problem.call(), FocalOptions{0.5, 0.0}, plain_loop());
  expect(std::isfinite(problem.loss), "a NaN logit in an ignored row has no effect");
  for (int c = 0; c < 5; ++c) expect(problem.grad[5 + c] == 0.0f, "ignored rows have no gradient");
}

void test_scale() {
  std::vector<float> grad(5000, 2.0f), out(5000);
  const float factor = 3.0f, scale = 0.5f;
  ScaleCall call{};
  call.shape = {1, -1, {5000}};
  call.grad = {grad.data(), DType::kFloat32, {1}};
  call.out = {out.data(), DType::kFloat32, {1}};
  call.grad_output = {const_cast<float*>(&factor), DType::kFloat32, {0}};
  call.scale = &scale;
  launch_scale_gradient(call, plain_loop());
  expect(out[0] == 3.0f && out[4999] == 3.0f, "scale multiplies");
}

void test_simplify() {
  // A channels-last image becomes one dimension; the class dimension stays on its own.
  Shape shape{4, -1, {2, 3, 5, 7}};
  TensorView x{nullptr, DType::kFloat32, {105, 1, 21, 3}}, y = x;
  TensorView* views[] = {&x, &y};
  simplify(shape, views, 2);
  expect(shape.ndim == 1 && shape.sizes[0] == 210 && x.strides[0] == 1, "channels-last is dense");
  Shape rows{3, 2, {4, 6, 10}};
  TensorView logits{nullptr, DType::kFloat32, {60, 10, 1}},
      labels{nullptr, DType::kInt64, {6, 1, 0}};
  TensorView* both[] = {&logits, &labels};
  simplify(rows, both, 2);
  expect(rows.ndim == 2 && rows.sizes[0] == 24 && rows.class_dim == 1,
         "rows merge, classes do not");
}

}  // namespace

int main() {
  test_focal_values();
  test_same_bits_in_any_order();
  test_bad_label_is_reported();
  test_ignored_rows_ignore_nan();
  test_scale();
  test_simplify();
  test_row_softmax();
  test_regions();
  test_mining();
  if (failures == 0) std::printf("all C++ tests passed\n");
  return failures == 0 ? 0 : 1;
}
