// The CUDA launchers of the pointwise engine, running on the emulator, over raw addresses.
// tests/emulated.py calls them the way csrc/ does with tensors.
#include "../../kernels/cuda/focal.h"
#include "../../kernels/cuda/scale.h"
#include "bind.h"
#include "bind_emulated_views.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

PointwiseCall make_call(const py::dict& given) {
  PointwiseCall call{};
  call.shape = make_shape(given["sizes"].cast<Sizes>(), given["class_dim"].cast<int>());
  call.logits = view_of(given, "logits");
  call.target = view_of(given, "target");
  call.side = view_of(given, "side");
  call.weight = view_of(given, "weight");
  call.grad_output = view_of(given, "grad_output");
  call.loss = view_of(given, "loss");
  call.grad = view_of(given, "grad");
  call.normalizer = address_of(given, "normalizer");
  call.normalizer_value = given["normalizer_value"].cast<double>();
  call.scale = address_of(given, "scale");
  call.workspace = address_of(given, "workspace");
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
  m.def("scale_gradient", [](const Sizes& sizes, const GivenView& grad,
                             const GivenView& grad_output, const GivenView& out, uintptr_t scale) {
    ScaleCall call{};
    call.shape = make_shape(sizes, -1);
    call.grad = make_view(grad);
    call.grad_output = make_view(grad_output);
    call.out = make_view(out);
    call.scale = address(scale);
    launch_scale_gradient(call, nullptr);
  });
}
