// The CUDA launchers of the pointwise engine, running on the emulator, over raw addresses.
// tests/emulated.py calls them the way csrc/ does with tensors.
#include "../../kernels/cuda/focal.h"
#include "../../kernels/cuda/scale.h"
#include "bind.h"
#include "bind_emulated_calls.h"

namespace py = pybind11;
using namespace fusedloss;

void bind_emulated_cuda(py::module_& m) {
  m.def("pointwise_workspace_bytes", [](const py::dict& given) {
    return pointwise_workspace_bytes(make_pointwise_call(given), nullptr);
  });
  m.def("sigmoid_focal_fwd", [](const py::dict& given, double gamma, double label_smoothing) {
    launch_sigmoid_focal_fwd(make_pointwise_call(given), {gamma, label_smoothing}, nullptr);
  });
  m.def("sigmoid_focal_bwd", [](const py::dict& given, double gamma, double label_smoothing) {
    launch_sigmoid_focal_bwd(make_pointwise_call(given), {gamma, label_smoothing}, nullptr);
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
