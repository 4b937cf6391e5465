// C++ tests of the region engine on the CPU: both walks against a plain double loop, in layouts
// whose blocks straddle samples, with ignored NaNs, for any order of tasks.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../../kernels/cpu/element_regions.h"
#include "../../kernels/cpu/softmax_regions.h"
#include "cpp_tests.h"

using namespace fusedloss;

namespace {

constexpr int64_t kIgnored = 255;

// Inputs [samples, classes, pixels]; labels, or a target of 0 or 1 for every element.
struct Regions {
  int64_t samples, classes, pixels;
  bool last;  // classes innermost
  std::vector<float> input, target, grad, saved, slopes;
  std::vector<int64_t> labels;
  float loss = 0, scale[2] = {0, 0}, upstream = 1;

  Regions(int64_t n, int64_t c, int64_t m, bool classes_last)
      : samples(n),
        classes(c),
        pixels(m),
        last(classes_last),
        input(n * c * m),
        target(input.size()),
        grad(input.size()),
        saved(2 * n * m),
        slopes(2 * n * c),
        labels(n * m) {
    std::mt19937 random(static_cast<unsigned>(n * 1000 + c * 10 + m));
    for (float& x : input) x = std::normal_distribution<float>(0, 2)(random);
    for (float& t : target) t = static_cast<float>(random() % 2);
    for (int64_t& l : labels) l = random() % 5 == 0 ? kIgnored : static_cast<int64_t>(random() % c);
    for (int64_t n_ = 0; n_ < samples; ++n_)
      for (int64_t i = 0; i < pixels; ++i)
        if (labels[n_ * pixels + i] == kIgnored)
          for (int64_t c_ = 0; c_ < classes; ++c_) {
            input[at(n_, c_, i)] = std::numeric_limits<float>::quiet_NaN();
            target[at(n_, c_, i)] = static_cast<float>(kIgnored);
          }
  }

  int64_t at(int64_t n, int64_t c, int64_t i) const {
    return last ? (n * pixels + i) * classes + c : (n * classes + c) * pixels + i;
  }
  bool valid(int64_t n, int64_t i) const { return labels[n * pixels + i] != kIgnored; }

  TensorView view(std::vector<float>& data) const {
    const int64_t sample = classes * pixels;
    if (last) return {data.data(), DType::kFloat32, {sample, 1, classes}};
    return {data.data(), DType::kFloat32, {sample, pixels, 1}};
  }
  Shape shape() const { return {3, 1, {samples, classes, pixels}}; }

  RegionCall regions(bool batch, bool squared) {
    RegionCall call{};
    call.index.strides[0] = batch ? 0 : classes;
    call.index.strides[1] = 1;
    call.num_groups = batch ? 1 : samples;
    call.num_classes = classes;
    call.squared = squared;
    call.overlap = {2, 0, 1, 1, 0.1, 0.1, 1, false, GeneralizedWeighting::kNone};
    call.factor = 1;
    call.reduction = Reduction::kMean;
    call.loss = &loss;
    call.slopes = slopes.data();
    call.upstream = &upstream;
    return call;
  }
  RowSoftmaxCall rows() {
    RowSoftmaxCall call{};
    call.shape = shape();
    call.logits = view(input);
    call.grad = TensorView{};
    call.target = {labels.data(), DType::kInt64, {pixels, 0, 1}};
    call.saved = {saved.data(), DType::kFloat32, {pixels, 0, 1}};
    call.saved_stride = samples * pixels;
    call.weight_value = 1;
    call.target_share = 1;
    call.ignore_index = kIgnored;
    call.num_classes = classes;
    call.scale = scale;
    call.nothing_is_zero = true;
    call.reduction = Reduction::kMean;
    return call;
  }
  PointwiseCall elements() {
    PointwiseCall call{};
    call.shape = shape();
    call.shape.class_dim = -1;
    call.logits = view(input);
    call.target = view(target);
    call.side_value = -1;
    call.ignore_index = kIgnored;
    call.num_classes = 1;
    call.scale = scale;
    call.reduction = Reduction::kMean;
    return call;
  }

  // p and t of an element that is not ignored.
  double p(bool softmax, int64_t n, int64_t c, int64_t i) const {
    if (!softmax) return 1 / (1 + std::exp(-static_cast<double>(input[at(n, c, i)])));
    double total = 0;
    for (int64_t k = 0; k < classes; ++k)
      total += std::exp(static_cast<double>(input[at(n, k, i)] - input[at(n, c, i)]));
    return 1 / total;
  }
  double t(bool softmax, int64_t n, int64_t c, int64_t i) const {
    return softmax ? labels[n * pixels + i] == c : target[at(n, c, i)];
  }

  double expected(bool softmax, bool batch, bool squared) const {
    const int64_t groups = batch ? 1 : samples;
    std::vector<double> sums(static_cast<size_t>(3 * groups * classes));
    for (int64_t n = 0; n < samples; ++n)
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t i = 0; i < pixels; ++i) {
          if (!valid(n, i)) continue;
          const double prob = p(softmax, n, c, i), truth = t(softmax, n, c, i);
          double* sum = sums.data() + 3 * ((batch ? 0 : n) * classes + c);
          sum[0] += prob * truth;
          sum[1] += squared ? prob * prob : prob;
          sum[2] += truth;
        }
    double total = 0;
    for (size_t r = 0; r < sums.size(); r += 3)
      total += 1 - (2 * sums[r] + 0.1) / (sums[r + 1] + sums[r + 2] + 0.1);
    return total / static_cast<double>(groups * classes);
  }

  // `begun`: over a softmax, forward begins the gradient.
  void run(bool softmax, bool begun, bool batch, bool squared, const cpu::Threads& threads) {
    RegionCall call = regions(batch, squared);
    if (softmax) {
      const SoftmaxRegionOptions options{};
      RowSoftmaxCall forward = rows(), backward = rows();
      backward.grad = view(grad);
      if (begun) forward.grad = backward.logits = backward.grad;
      launch_softmax_regions_fwd(forward, call, options, threads);
      call.begun = begun;
      launch_softmax_regions_bwd(backward, call, options, threads);
      return;
    }
    const ElementRegionOptions options{Activation::kSigmoid, Joined::kNothing, {0, 0}};
    launch_element_regions_fwd(elements(), call, options, threads);
    PointwiseCall backward = elements();
    backward.grad = view(grad);
    launch_element_regions_bwd(backward, call, options, threads);
  }
};

// The gradient of a few elements by differences of the plain double loop.
bool gradient_fits(Regions& r, bool softmax, bool batch, bool squared) {
  for (size_t k = 0; k < r.input.size(); k += 1 + r.input.size() / 17) {
    const float x = r.input[k];
    if (std::isnan(x)) {
      if (r.grad[k] != 0) return false;
      continue;
    }
    const float step = 1.0f / 64;
    r.input[k] = x + step;
    const double above = r.expected(softmax, batch, squared);
    r.input[k] = x - step;
    const double below = r.expected(softmax, batch, squared);
    r.input[k] = x;
    const double difference = (above - below) / (2 * step);
    if (std::abs(difference - r.grad[k]) > 1e-3 * std::abs(difference) + 2e-6) return false;
  }
  return true;
}

}  // namespace

void test_regions() {
  // Along rows and classes; blocks within a sample and across many; one pixel a sample.
  const int64_t sizes[][3] = {{2, 3, 700}, {9, 5, 7}, {3, 40, 33}, {6, 4, 1}, {1, 1, 50}};
  for (const auto& size : sizes)
    for (int kind = 0; kind < 32; ++kind) {
      const bool softmax = kind & 1, batch = kind & 2, squared = kind & 4, last = kind & 8;
      const bool begun = kind & 16;
      Regions r(size[0], size[1], size[2], last);
      r.run(softmax, begun, batch, squared, plain_loop());
      const double expected = r.expected(softmax, batch, squared);
      expect(std::abs(r.loss - expected) < 1e-5, "regions: loss");
      expect(gradient_fits(r, softmax, batch, squared), "regions: gradient");
      const std::vector<float> first = r.grad;
      const float loss = r.loss;
      r.run(softmax, begun, batch, squared, reversed_tasks());
      expect(r.loss == loss && r.grad == first, "regions: same bits in any order");
    }
}
