// The CUDA launchers, running on the emulator, over raw addresses. tests/emulated.py calls them the
// way csrc/ does with tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "../../kernels/cuda/focal.h"
#include "../../kernels/cuda/scale.h"
#include "bind.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

using Sizes = std::vector<int64_t>;
// (address, dtype, strides); address 0: absent
using View = std::tuple<uintptr_t, int, Sizes>;

void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

TensorView make_view(const View& given) {
  TensorView view{};
  view.data = address(std::get<0>(given));
  view.dtype = static_cast<DType>(std::get<1>(given));
  const Sizes& strides = std::get<2>(given);
  for (size_t d = 0; d < strides.size(); ++d) view.strides[d] = strides[d];
  return view;
}

Shape make_shape(const Sizes& sizes, int class_dim) {
  Shape shape{};
  shape.ndim = static_cast<int>(sizes.size());
  shape.class_dim = class_dim;
  for (size_t d = 0; d < sizes.size(); ++d) shape.sizes[d] = sizes[d];
  return shape;
}

PointwiseCall make_call(const py::dict& given) {
  const auto view = [&](const char* name) {
    return given.contains(name) ? make_view(given[name].cast<View>()) : TensorView{};
  };
  PointwiseCall call{};
  call.shape = make_shape(given["sizes"].cast<Sizes>(), given["class_dim"].cast<int>());
  call.logits = view("logits");
  call.target = view("target");
  call.side = view("side");
  call.weight = view("weight");
  call.grad_output = view("grad_output");
  call.loss = view("loss");
  call.grad = view("grad");
  call.normalizer = address(given["normalizer"].cast<uintptr_t>());
  call.normalizer_value = given["normalizer_value"].cast<double>();
  call.scale = address(given["scale"].cast<uintptr_t>());
  call.workspace = address(given["workspace"].cast<uintptr_t>());
  call.side_value = given["side_value"].cast<double>();
  call.ignore_index = given["ignore_index"].cast<int64_t>();
  call.num_classes = given["num_classes"].cast<int64_t>();
  call.indexed = given["indexed"].cast<bool>();
  call.prescale = given["prescale"].cast<bool>();
  call.reduction = static_cast<Reduction>(given["reduction"].cast<int>());
  return call;
}

}  // namespace

void bind_emulated_cuda(py::module_& m) {
  m.def("pointwise_workspace_bytes",
        [](const py::dict& given) { return pointwise_workspace_bytes(make_call(given), nullptr); });
  m.def("sigmoid_focal_fwd", [](const py::dict& given, double gamma, double label_smoothing) {
    launch_sigmoid_focal_fwd(make_call(given), {gamma, label_smoothing}, nullptr);
  });
  m.def("sigmoid_focal_bwd", [](const py::dict& given, double gamma, double label_smoothing) {
    launch_sigmoid_focal_bwd(make_call(given), {gamma, label_smoothing}, nullptr);
  });
  m.def("scale_gradient", [](const Sizes& sizes, const View& grad, const View& grad_output,
                             const View& out, uintptr_t scale) {
    ScaleCall call{};
    call.shape = make_shape(sizes, -1);
    call.grad = make_view(grad);
    call.grad_output = make_view(grad_output);
    call.out = make_view(out);
    call.scale = address(scale);
    launch_scale_gradient(call, nullptr);
  });
}
