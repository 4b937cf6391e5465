// C++ tests of the region engine on CUDA, over rows of a softmax and over elements.
#include "../../kernels/cpu/element_regions.h"
#include "../../kernels/cpu/softmax_regions.h"
#include "../../kernels/cuda/element_regions.h"
#include "../../kernels/cuda/softmax_regions.h"
#include "cuda_tests.h"

using namespace fusedloss;

namespace {

struct Kind {
  bool batch, squared, none;
  Joined joined;
};

template <class X>
struct Regions {
  Inputs<X> in;
  Numbers<X> target;
  Numbers<float> weights, upstream;

  explicit Regions(const Layout& how)
      : in(how, 2.0f),
        target(how.size(), how.shift),
        weights(how.classes),
        upstream(how.outer * how.classes) {
    std::mt19937 random(3);
    for (X& t : target) t = from<X>(static_cast<float>(random() % 2));
    for (Numbers<float>* numbers : {&weights, &upstream})
      for (float& x : *numbers) x = 0.5f + static_cast<float>(random() % 100) / 100;
  }

  RegionCall regions(const Kind& kind, Numbers<float>& loss, Numbers<float>& slopes) {
    const int64_t classes = in.layout.classes;
    RegionCall made{};
    made.index.strides[0] = kind.batch ? 0 : classes;
    made.index.strides[1] = 1;
    made.num_groups = kind.batch ? 1 : in.layout.outer;
    made.num_classes = classes;
    made.squared = kind.squared;
    made.overlap = {2, 0, 1, 1, 0.1, 0.1, 1, false, GeneralizedWeighting::kNone};
    made.class_weight = kind.none ? weights.data() : nullptr;
    made.factor = 1;
    made.joined = kind.joined != Joined::kNothing;
    made.joined_factor = 0.5;
    made.reduction = kind.none ? Reduction::kNone : Reduction::kMean;
    made.loss = loss.data();
    made.slopes = slopes.data();
    made.upstream = upstream.data();
    made.upstream_group_stride = kind.none ? classes : 0;
    made.upstream_class_stride = kind.none ? 1 : 0;
    return made;
  }
  int64_t losses(const Kind& kind) const {
    return kind.none ? (kind.batch ? 1 : in.layout.outer) * in.layout.classes : 1;
  }

  template <class Executor>
  Outcome run_rows(const Kind& kind, const Executor& executor) {
    const Layout& how = in.layout;
    Numbers<X> grad(how.size(), how.shift);
    Numbers<float> loss(losses(kind)), scale(2), slopes(2 * how.outer * how.classes);
    const RegionCall region = regions(kind, loss, slopes);
    const bool focal = kind.joined == Joined::kFocal;
    RowSoftmaxCall call{};
    call.shape = how.shape(1);
    call.logits = how.view(in.logits);
    call.target = how.by_row(in.labels);
    call.weight_value = call.target_share = 1;
    call.ignore_index = kIgnored;
    call.num_classes = how.classes;
    call.scale = scale.data();
    call.nothing_is_zero = true;
    call.terms = kind.joined == Joined::kNothing ? Terms::kNone : Terms::kUniform;
    call.reduction = region.reduction;
    Numbers<float> saved(saved_numbers(call.terms, focal) * how.rows());
    call.saved = how.by_row(saved);
    call.saved_stride = how.rows();
    Numbers<unsigned char> workspace(some(softmax_regions_workspace_bytes(call, region, kStream)));
    call.workspace = workspace.data();
    const SoftmaxRegionOptions options{kind.joined, {0.1, false, 0.0}, {2.0, 0.1}};
    launch_softmax_regions_fwd(call, region, options, executor);
    call.grad = how.view(grad);
    call.reduction = Reduction::kSum;
    launch_softmax_regions_bwd(call, region, options, executor);
    Outcome out;
    out.take(how, loss, grad);
    return out;
  }

  // `indexed`: class labels, else a target for every element.
  template <class Executor>
  Outcome run_elements(const Kind& kind, bool indexed, Activation activation,
                       const Executor& executor) {
    const Layout& how = in.layout;
    Numbers<X> grad(how.size(), how.shift);
    Numbers<float> loss(losses(kind)), scale(2), slopes(2 * how.outer * how.classes);
    const RegionCall region = regions(kind, loss, slopes);
    PointwiseCall call{};
    call.shape = how.shape(indexed ? 1 : -1);
    call.logits = how.view(in.logits);
    call.target = indexed ? how.by_row(in.labels) : how.view(target);
    call.indexed = indexed;
    call.side_value = 0.25;
    call.ignore_index = kIgnored;
    call.num_classes = how.classes;
    call.scale = scale.data();
    call.reduction = region.reduction;
    Numbers<unsigned char> workspace(some(element_regions_workspace_bytes(call, region, kStream)));
    call.workspace = workspace.data();
    const ElementRegionOptions options{activation, kind.joined, {2.0, 0.0}};
    launch_element_regions_fwd(call, region, options, executor);
    call.grad = how.view(grad);
    call.reduction = Reduction::kSum;
    launch_element_regions_bwd(call, region, options, executor);
    Outcome out;
    out.take(how, loss, grad);
    return out;
  }
};

template <class X>
void test_layout(const Layout& how) {
  Regions<X> regions(how);
  for (const bool batch : {false, true})
    for (const bool none : {false, true})
      for (const Joined joined : {Joined::kNothing, Joined::kCrossEntropy, Joined::kFocal}) {
        if (none && joined != Joined::kNothing) continue;
        const Kind kind{batch, none != batch, none, joined};
        expect_same<X>(regions.run_rows(kind, kStream), regions.run_rows(kind, plain_loop()),
                       "cuda: softmax regions");
        if (joined == Joined::kCrossEntropy) continue;
        expect_same<X>(regions.run_elements(kind, true, Activation::kSigmoid, kStream),
                       regions.run_elements(kind, true, Activation::kSigmoid, plain_loop()),
                       "cuda: element regions of labels");
      }
  regions.in.replace_nan();
  for (const Joined joined : {Joined::kNothing, Joined::kFocal})
    for (const Activation activation : {Activation::kSigmoid, Activation::kNone}) {
      if (activation == Activation::kNone && joined != Joined::kNothing) continue;
      const Kind kind{false, true, false, joined};
      expect_same<X>(regions.run_elements(kind, false, activation, kStream),
                     regions.run_elements(kind, false, activation, plain_loop()),
                     "cuda: element regions");
    }
}

}  // namespace

void test_cuda_regions() {
  // Several tiles of a group; odd pixels; many classes; one pixel a sample; classes innermost;
  // more slopes than shared memory holds.
  for_each_shifted({{2, 3, 700},
                    {9, 5, 7},
                    {3, 40, 33},
                    {6, 4, 1},
                    {1, 1, 50},
                    {2, 5, 40, true},
                    {2, 3, 64, false, 2}},
                   {0, 1}, [](const Layout& how) {
                     test_layout<float>(how);
                     test_layout<BFloat16>(how);
                   });
  Regions<float> many({1, 7001, 2});
  const Kind kind{false, false, false, Joined::kCrossEntropy};
  expect_same<float>(many.run_rows(kind, kStream), many.run_rows(kind, plain_loop()),
                     "cuda: softmax regions of many classes");
}
