// C++ tests of hard example mining on the CPU: the selection against a sort, for ties, NaNs, every
// k and any order of tasks; and the gradients of mined rows against plain double loops.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../kernels/cpu/mined_cross_entropy.h"
#include "../../kernels/cpu/select.h"
#include "../../kernels/cpu/stage.h"
#include "cpp_tests.h"

using namespace fusedloss;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

template <class T>
struct Selected {
  T loss = T(-1), scale = T(-1);
  std::vector<Selection<T>> selection;
  std::vector<T> losses;
};

// Marks of slices, and the call over them.
template <class T>
struct Marks {
  int64_t slices, size;
  std::vector<T> marks, values;

  // Of a few different losses where `ties`; a tenth left out, a tenth always selected.
  Marks(int64_t s, int64_t n, bool ties, unsigned seed = 1) : slices(s), size(n) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < s * n; ++i) {
      const double x = std::exp(std::normal_distribution<double>(0, 2)(random));
      const T loss = static_cast<T>(ties ? std::floor(x) : x);
      const unsigned kind = random() % 10;
      const Mark<T> mark = kind == 0   ? kLeftOut<T>
                           : kind == 1 ? always_selected(loss)
                                       : candidate(loss);
      marks.push_back(bit_cast<T>(mark));
      values.push_back(static_cast<T>(kind == 0 ? kNaN : 1 + static_cast<double>(random() % 4)));
    }
  }

  Selected<T> run(const SelectionRule& rule, Reduction reduction, bool with_values,
                  const cpu::Threads& threads) {
    Selected<T> out;
    out.selection.resize(slices);
    out.losses.resize(marks.size());
    SelectCall call{};
    call.marks = marks.data();
    call.values = with_values ? values.data() : nullptr;
    call.num_slices = slices;
    call.slice_size = size;
    call.rule = rule;
    call.reduction = reduction;
    call.loss = reduction == Reduction::kNone ? out.losses.data() : &out.loss;
    call.scale = &out.scale;
    call.selection = out.selection.data();
    cpu::select<T>(call, nullptr, threads);
    return out;
  }
};

// What is selected of one slice, by sorting.
struct Truth {
  double sum = 0, number = 0;
  std::vector<double> shares;
};

template <class T>
Truth truth_of(const Marks<T>& marks, int64_t slice, const SelectionRule& rule, bool with_values) {
  const T* first = marks.marks.data() + slice * marks.size;
  std::vector<Mark<T>> candidates;
  int64_t always = 0;
  const auto mark_at = [&](int64_t i) { return bit_cast<Mark<T>>(first[i]); };
  for (int64_t i = 0; i < marks.size; ++i) {
    if (is_candidate<T>(mark_at(i)))
      candidates.push_back(mark_at(i));
    else
      always += mark_at(i) != kLeftOut<T>;
  }
  std::sort(candidates.rbegin(), candidates.rend());
  const int64_t many = static_cast<int64_t>(candidates.size());
  const int64_t wanted = wanted_candidates(rule, always, many);
  const Mark<T> cut = wanted > 0 ? candidates[wanted - 1] : ~Mark<T>(0);
  const int64_t above =
      std::count_if(candidates.begin(), candidates.end(), [&](Mark<T> mark) { return mark > cut; });
  const int64_t tied = std::count(candidates.begin(), candidates.end(), cut);
  Truth out;
  for (int64_t i = 0; i < marks.size; ++i) {
    const Mark<T> mark = mark_at(i);
    double share = mark == kLeftOut<T> ? 0 : 1;
    if (is_candidate<T>(mark)) {
      const double of_tied = static_cast<double>(wanted - above) / static_cast<double>(tied);
      share = mark > cut ? 1 : mark < cut || wanted == 0 ? 0 : rule.whole_ties ? 1 : of_tied;
    }
    out.shares.push_back(share);
    const double value = with_values ? static_cast<double>(marks.values[slice * marks.size + i])
                                     : static_cast<double>(loss_of<T>(mark));
    if (share > 0) out.sum += share * value;
    out.number += share;
  }
  return out;
}

// A block's 1,024 floats are added one after the other where the baseline has no vectors for it.
template <class T>
bool near(T a, double b) {
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
  return (std::isnan(static_cast<double>(a)) && std::isnan(b)) || static_cast<double>(a) == b ||
         std::fabs(static_cast<double>(a) - b) <= tolerance * std::fabs(b);
}

template <class T>
void check(Marks<T>& marks, const SelectionRule& rule, bool with_values) {
  double sum = 0, number = 0;
  std::vector<Truth> truths;
  for (int64_t s = 0; s < marks.slices; ++s) {
    truths.push_back(truth_of(marks, s, rule, with_values));
    sum += truths.back().sum;
    number += truths.back().number;
  }
  const Selected<T> mean = marks.run(rule, Reduction::kMean, with_values, plain_loop());
  const double divisor = number + rule.epsilon;
  expect(near(mean.loss, number == 0 ? 0 : sum / divisor), "mining: mean");
  expect(near(mean.scale, number == 0 ? 0 : 1 / divisor), "mining: scale of a mean");
  const Selected<T> other = marks.run(rule, Reduction::kMean, with_values, reversed_tasks());
  expect(std::memcmp(&mean.loss, &other.loss, sizeof(T)) == 0 &&
             std::memcmp(mean.selection.data(), other.selection.data(),
                         sizeof(Selection<T>) * mean.selection.size()) == 0,
         "mining: order of tasks changes nothing");
  const Selected<T> none = marks.run(rule, Reduction::kNone, with_values, reversed_tasks());
  expect(none.scale == T(1), "mining: nothing is averaged");
  for (int64_t s = 0; s < marks.slices; ++s)
    for (int64_t i = 0; i < marks.size; ++i) {
      const int64_t at = s * marks.size + i;
      const Mark<T> mark = bit_cast<Mark<T>>(marks.marks[at]);
      const double share = truths[s].shares[i];
      expect(near(share_of(mean.selection[s], mark), share), "mining: shares");
      const double value = static_cast<double>(with_values ? marks.values[at] : loss_of<T>(mark));
      expect(near(none.losses[at], share > 0 ? share * value : 0), "mining: losses");
    }
}

template <class T>
void test_selection() {
  const int64_t shapes[][2] = {{1, 1},     {1, 5},   {1, 1000}, {1, 70001},
                               {3, 20000}, {7, 333}, {64, 9}};
  for (const auto& [slices, size] : shapes)
    for (const bool ties : {false, true})
      for (const bool with_values : {false, true}) {
        Marks<T> marks(slices, size, ties);
        for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{2}, size / 10, size / 2, size})
          check(marks, {Wanted::kNumber, k, 0, false, 0}, with_values);
        check(marks, {Wanted::kTogether, size / 4, 0, true, 0}, with_values);
        check(marks, {Wanted::kTogether, size / 20, 0, true, 0}, with_values);
        check(marks, {Wanted::kFraction, 0, 0.1, false, 0}, with_values);
        check(marks, {Wanted::kFraction, 0, 1.0, false, 0}, with_values);
        check(marks, {Wanted::kRatio, 5, 3.0, false, 1e-6}, with_values);
      }
}

// Every k of a few marks, among them a NaN, an infinity, a subnormal number and zeros.
template <class T>
void test_every_k() {
  Marks<T> marks(1, 40, false);
  const double special[] = {kNaN, HUGE_VAL, 1e-310, 0.0, 0.0, -0.0};
  for (int i = 0; i < 6; ++i)
    marks.marks[3 * i] = bit_cast<T>(candidate(static_cast<T>(special[i])));
  for (int64_t k = 0; k <= 41; ++k)
    for (const bool whole : {false, true}) check(marks, {Wanted::kNumber, k, 0, whole, 0}, false);
}

template <class T>
void test_nothing_to_select() {
  Marks<T> marks(2, 3000, false);
  std::fill(marks.marks.begin(), marks.marks.end(), bit_cast<T>(kLeftOut<T>));
  check(marks, {Wanted::kTogether, 100, 0, true, 0}, false);
  check(marks, {Wanted::kRatio, 100, 3, false, 1e-6}, false);
  for (T& mark : marks.marks) mark = bit_cast<T>(candidate(T(2)));
  check(marks, {Wanted::kRatio, 0, 3, false, 1e-6}, false);  // no positives
  for (T& mark : marks.marks) mark = bit_cast<T>(always_selected(T(2)));
  check(marks, {Wanted::kRatio, 0, 3, false, 1e-6}, false);  // no negatives
}

// --- Rows [outer, classes, inner]; some ignored with logits of NaN.

struct Rows {
  int64_t outer, classes, inner;
  std::vector<float> logits, grad, marks, weights, losses;
  std::vector<int64_t> labels;
  float loss = 0, scale = 0;
  Selection<float> selection{};

  Rows(int64_t o, int64_t c, int64_t i, float spread)
      : outer(o),
        classes(c),
        inner(i),
        logits(o * c * i),
        grad(logits.size(), -7.0f),
        marks(o * i),
        weights(c),
        losses(o * i),
        labels(o * i) {
    std::mt19937 random(static_cast<unsigned>(o * 1000 + c * 10 + i));
    for (float& x : logits) x = std::normal_distribution<float>(0, spread)(random);
    for (float& w : weights) w = 0.5f + static_cast<float>(random() % 100) / 100;
    for (int64_t& l : labels)
      l = random() % 8 == 0 ? -100 : static_cast<int64_t>(random() % static_cast<unsigned>(c));
    for (int64_t r = 0; r < o * i; ++r)
      for (int64_t k = 0; labels[r] < 0 && k < c; ++k)
        logits[at(r, k)] = r % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : 1e4f;
  }

  int64_t at(int64_t row, int64_t c) const {
    return (row / inner * classes + c) * inner + row % inner;
  }
  TensorView by_row(std::vector<float>& data) const {
    return {data.data(), DType::kFloat32, {inner, 0, 1}};
  }
  TensorView dense(std::vector<float>& data) const {
    return {data.data(), DType::kFloat32, {classes * inner, inner, 1}};
  }

  RowSoftmaxCall call() {
    RowSoftmaxCall made{};
    made.shape = {3, 1, {outer, classes, inner}};
    made.logits = dense(logits);
    made.target = {labels.data(), DType::kInt64, {inner, 0, 1}};
    made.class_weight = weights.data();
    made.ignore_index = -100;
    made.num_classes = classes;
    return made;
  }
  LabelReport forward(const SelectionRule& rule, double threshold, const cpu::Threads& threads) {
    std::vector<float> values(marks.size());
    MiningCall mining{};
    mining.marks = by_row(marks);
    mining.threshold = threshold;
    mining.select.marks = marks.data();
    mining.select.values = values.data();
    mining.select.num_slices = 1;
    mining.select.slice_size = outer * inner;
    mining.select.rule = rule;
    mining.select.reduction = Reduction::kMean;
    mining.select.loss = &loss;
    mining.select.scale = &scale;
    mining.select.selection = &selection;
    return launch_mined_cross_entropy_fwd(call(), mining, threads);
  }
  void backward(const cpu::Threads& threads) {
    const float upstream = 2.0f;
    RowSoftmaxCall made = call();
    made.grad = dense(grad);
    made.grad_output = {const_cast<float*>(&upstream), DType::kFloat32, {}};
    made.scale = &scale;
    MinedGradientCall mined{};
    mined.marks = by_row(marks);
    mined.selection = &selection;
    launch_mined_cross_entropy_bwd(made, mined, threads);
  }
  // Within a few roundings of the largest entry of the gradient.
  void check_gradient() const {
    for (int64_t r = 0; r < outer * inner; ++r) {
      const double share = share_of(selection, bit_cast<Mark<float>>(marks[r]));
      const int64_t label = labels[r];
      double max = -HUGE_VAL, total = 0;
      for (int64_t c = 0; c < classes; ++c) max = std::max(max, double{logits[at(r, c)]});
      for (int64_t c = 0; c < classes; ++c) total += std::exp(double{logits[at(r, c)]} - max);
      for (int64_t c = 0; c < classes; ++c) {
        const double p = std::exp(double{logits[at(r, c)]} - max) / total;
        const double factor = share > 0 ? 2.0 * share * scale * weights[label] : 0.0;
        const double exact = share > 0 ? factor * (p - (c == label ? 1 : 0)) : 0.0;
        expect(std::fabs(grad[at(r, c)] - exact) <= 1e-6 * factor, "mined rows: gradient");
      }
    }
  }
};

void test_rows() {
  // Along pixels in several tasks and with runs that end inside a block; along classes.
  const int64_t shapes[][3] = {{1, 1, 1}, {2, 19, 5000}, {40, 5, 33}, {300, 3, 1}, {90, 200, 1}};
  for (const auto& [outer, classes, inner] : shapes)
    for (const float spread : {2.0f, 30.0f, 1e6f})  // the last beyond what marks give back
      for (const int64_t part : {100, 20, 3, 1}) {  // few rows of a block to all of them
        Rows rows(outer, classes, inner, spread), other(outer, classes, inner, spread);
        const SelectionRule rule{Wanted::kNumber, outer * inner / part, 0, false, 0};
        rows.forward(rule, HUGE_VAL, plain_loop());
        rows.backward(plain_loop());
        rows.check_gradient();
        other.forward(rule, HUGE_VAL, reversed_tasks());
        other.backward(reversed_tasks());
        expect(rows.loss == other.loss && rows.grad == other.grad,
               "mined rows: order of tasks changes nothing");
      }
}

// A label far from its row's maximum, or of probability 0.
void test_rows_at_the_ends() {
  for (const int64_t inner : {1, 64})
    for (const float far : {50.0f, 1e5f, 1e30f, HUGE_VALF}) {
      Rows rows(4, 40, inner, 1.0f);
      for (int64_t r = 0; r < 4 * inner; ++r)
        if (rows.labels[r] >= 0) rows.logits[rows.at(r, rows.labels[r])] = -far;
      rows.forward({Wanted::kTogether, 2, 0, true, 0}, 0.3, plain_loop());
      rows.backward(plain_loop());
      rows.check_gradient();
    }
}

void test_bad_labels() {
  Rows rows(3, 4, 40, 1.0f);
  rows.labels[5] = 9;
  const LabelReport report = rows.forward({Wanted::kNumber, 7, 0, false, 0}, 1.0, plain_loop());
  expect(report.bad_label && report.label == 9, "mined rows: the first bad label");
}

}  // namespace

void test_mining() {
  test_selection<float>();
  test_selection<double>();
  test_every_k<float>();
  test_every_k<double>();
  test_nothing_to_select<float>();
  test_nothing_to_select<double>();
  test_rows();
  test_rows_at_the_ends();
  test_bad_labels();
}
