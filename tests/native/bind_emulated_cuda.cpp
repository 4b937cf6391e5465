// The CUDA launchers of the pointwise engine, running on the emulator, over raw addresses.
// tests/emulated.py calls them the way csrc/ does with tensors.
#include "../../kernels/cuda/pointwise.h"
#include "../../kernels/cuda/scale.h"
#include "../../kernels/loss/sigmoid_focal.h"
#include "../../kernels/loss/smooth_l1.h"
#include "bind.h"
#include "bind_emulated_calls.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

// A loss whose options are made of these numbers.
template <class Options, class... Numbers>
void bind_pointwise(py::module_& m, const std::string& name) {
  m.def((name + "_fwd").c_str(), [](const py::dict& given, Numbers... numbers) {
    launch_pointwise_fwd(make_pointwise_call(given), Options{numbers...}, nullptr);
  });
  m.def((name + "_bwd").c_str(), [](const py::dict& given, Numbers... numbers) {
    launch_pointwise_bwd(make_pointwise_call(given), Options{numbers...}, nullptr);
  });
}

}  // namespace

void bind_emulated_cuda(py::module_& m) {
  m.def("pointwise_workspace_bytes", [](const py::dict& given) {
    return pointwise_workspace_bytes(make_pointwise_call(given), nullptr);
  });
  bind_pointwise<FocalOptions, double, double>(m, "sigmoid_focal");
  bind_pointwise<SmoothL1Options, double>(m, "smooth_l1");
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
