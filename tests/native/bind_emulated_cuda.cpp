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
  auto call = make_call_of<PointwiseCall>(given);
  call.side = view_of(given, "side");
  call.weight = view_of(given, "weight");
  call.side_value = given["side_value"].cast<double>();
  call.indexed = given["indexed"].cast<bool>();
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
