// C++ tests of hard example mining on CUDA: rows and elements, every way to say how many, one slice
// and several.
#include "../../kernels/cpu/mined_binary_cross_entropy.h"
#include "../../kernels/cpu/mined_cross_entropy.h"
#include "../../kernels/cuda/mined_binary_cross_entropy.h"
#include "../../kernels/cuda/mined_cross_entropy.h"
#include "cuda_tests.h"

using namespace fusedloss;

namespace {

// What a selection writes, and the call that says so.
struct Selected {
  Numbers<float> marks, values, loss, scale, selection;
  Numbers<unsigned char> workspace;
  MiningCall call{};

  Selected(int64_t slices, int64_t size, const SelectionRule& rule, bool none, bool with_values)
      : marks(slices * size),
        values(slices * size),
        loss(none ? slices * size : 1),
        scale(1),
        selection(2 * slices),
        workspace(some(bytes(slices, size, with_values))) {
    SelectCall& select = call.select;
    select = shape_of(slices, size, with_values ? values.data() : nullptr);
    select.marks = marks.data();
    select.rule = rule;
    select.reduction = none ? Reduction::kNone : Reduction::kMean;
    select.loss = loss.data();
    select.scale = scale.data();
    select.selection = selection.data();
    select.workspace = workspace.data();
    call.threshold = HUGE_VAL;
  }

 private:
  static SelectCall shape_of(int64_t slices, int64_t size, void* values) {
    SelectCall select{};
    select.values = values;
    select.num_slices = slices;
    select.slice_size = size;
    return select;
  }
  int64_t bytes(int64_t slices, int64_t size, bool with_values) {
    const SelectCall select = shape_of(slices, size, with_values ? values.data() : nullptr);
    return select_workspace_bytes(select, DType::kFloat32, kStream);
  }
};

template <class X>
struct MinedRows {
  Inputs<X> in;
  Numbers<float> weights, upstream;

  explicit MinedRows(const Layout& how)
      : in(how, 3.0f), weights(how.classes), upstream(how.rows()) {
    for (int64_t c = 0; c < how.classes; ++c)
      weights[c] = 0.5f + 0.01f * static_cast<float>(c % 50);
    for (int64_t r = 0; r < how.rows(); ++r) upstream[r] = 1 + static_cast<float>(r % 3);
  }

  template <class Executor>
  Outcome run(const SelectionRule& rule, double threshold, bool none, bool weighted,
              const Executor& executor) {
    const Layout& how = in.layout;
    Numbers<X> grad(how.size(), how.shift);
    Selected selected(1, how.rows(), rule, none, weighted);
    RowSoftmaxCall call{};
    call.shape = how.shape(1);
    call.logits = how.view(in.logits);
    call.target = how.by_row(in.labels);
    call.class_weight = weighted ? weights.data() : nullptr;
    call.weight_value = 1;
    call.ignore_index = kIgnored;
    call.num_classes = how.classes;
    selected.call.marks = how.by_row(selected.marks);
    selected.call.threshold = threshold;
    launch_mined_cross_entropy_fwd(call, selected.call, executor);
    call.grad = how.view(grad);
    call.grad_output = none ? how.by_row(upstream) : upstream.one();
    call.scale = selected.scale.data();
    MinedGradientCall mined{};
    mined.marks = how.by_row(selected.marks);
    mined.selection = selected.selection.data();
    launch_mined_cross_entropy_bwd(call, mined, executor);
    Outcome out;
    out.take(how, selected.loss, grad);
    return out;
  }
};

template <class X>
struct MinedElements {
  Inputs<X> in;
  Numbers<X> target;
  Numbers<unsigned char> mask;

  MinedElements(const Layout& how, bool from_logits)
      : in(how, 3.0f), target(how.size(), how.shift), mask(how.size()) {
    in.replace_nan();
    std::mt19937 random(9);
    for (X& t : target) t = from<X>(random() % 8 == 0 ? 1.0f : 0.0f);
    for (unsigned char& m : mask) m = random() % 5 != 0;
    if (from_logits) return;
    for (X& x : in.logits) x = from<X>(1 / (1 + std::exp(-to<float>(x))));
  }

  template <class Executor>
  Outcome run(const SelectionRule& rule, bool from_logits, bool by_sample, bool masked, bool none,
              const Executor& executor) {
    const Layout& how = in.layout;
    Numbers<X> grad(how.size(), how.shift);
    const int64_t slices = by_sample ? how.outer : 1;
    Selected selected(slices, how.size() / slices, rule, none, false);
    PointwiseCall call{};
    call.shape = how.shape(-1);
    call.logits = how.view(in.logits);
    call.target = how.view(target);
    if (masked) call.weight = how.view(mask);
    call.num_classes = 1;
    selected.call.marks = how.view(selected.marks);
    launch_mined_binary_cross_entropy_fwd(call, {from_logits}, selected.call, executor);
    Numbers<float> upstream(1);
    upstream[0] = 2.0f;
    call.reduction = Reduction::kSum;
    call.grad = how.view(grad);
    call.grad_output = upstream.one();
    call.scale = selected.scale.data();
    MinedGradientCall mined{};
    mined.marks = how.view(selected.marks);
    mined.slice.strides[0] = by_sample && how.outer > 1 ? 1 : 0;
    mined.selection = selected.selection.data();
    launch_mined_binary_cross_entropy_bwd(call, {from_logits}, mined, executor);
    Outcome out;
    out.take(how, selected.loss, grad);
    return out;
  }
};

template <class X>
void test_rows(const Layout& how) {
  MinedRows<X> rows(how);
  const SelectionRule rules[] = {{Wanted::kTogether, how.rows() / 3, 0, true, 0},
                                 {Wanted::kNumber, how.rows() / 4, 0, false, 0},
                                 {Wanted::kFraction, 0, 0.3, false, 0}};
  for (const SelectionRule& rule : rules)
    for (const bool none : {false, true})
      for (const bool weighted : {false, true}) {
        const double threshold = rule.wanted == Wanted::kTogether ? 4.0 : HUGE_VAL;
        expect_same<X>(rows.run(rule, threshold, none, weighted, kStream),
                       rows.run(rule, threshold, none, weighted, plain_loop()), "cuda: mined rows");
      }
}

template <class X>
void test_elements(const Layout& how) {
  for (const bool from_logits : {true, false}) {
    MinedElements<X> elements(how, from_logits);
    const SelectionRule rule{Wanted::kRatio, 5, 2.0, false, 1e-6};
    for (const bool by_sample : {false, true})
      for (const bool masked : {false, true})
        for (const bool none : {false, true})
          expect_same<X>(elements.run(rule, from_logits, by_sample, masked, none, kStream),
                         elements.run(rule, from_logits, by_sample, masked, none, plain_loop()),
                         "cuda: mined elements");
  }
}

template <class X>
void test_types() {
  // Tiles, blocks, pixels; one row; rows apart. Elements: one, odd samples, tails, several blocks.
  for_each_shifted(
      {{1, 1, 1}, {90, 19, 1}, {5, 1300, 1}, {2, 5, 333}, {9, 6, 7, true}, {30, 5, 1, true, 2}},
      {0, 1}, test_rows<X>);
  for_each_shifted({{1, 1, 1}, {3, 1, 333}, {4, 1, 1200}, {2, 3, 64, true}}, {0, 1},
                   test_elements<X>);
}

}  // namespace

void test_cuda_mining() {
  test_types<float>();
  test_types<BFloat16>();
}
