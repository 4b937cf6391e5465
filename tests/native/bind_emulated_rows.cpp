// The CUDA launchers of the row-softmax engine, running on the emulator, over raw addresses.
#include "../../kernels/cuda/cross_entropy.h"
#include "../../kernels/cuda/margin_softmax.h"
#include "../../kernels/cuda/softmax_focal.h"
#include "bind.h"
#include "bind_emulated_calls.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

MarginNumber margin_number(const py::dict& given, const std::string& name) {
  return {given[name.c_str()].cast<double>(), address_of(given, (name + "_by_class").c_str())};
}

MarginOptions margin_options(const py::dict& given) {
  return {given["scale"].cast<double>(),
          margin_number(given, "m1"),
          margin_number(given, "m2"),
          margin_number(given, "m3"),
          given["easy"].cast<bool>(),
          given["linear"].cast<bool>(),
          given["straight_through"].cast<bool>(),
          given["label_smoothing"].cast<double>()};
}

}  // namespace

void bind_emulated_rows(py::module_& m) {
  m.def("row_softmax_workspace_bytes", [](const py::dict& given) {
    return row_softmax_workspace_bytes(make_row_call(given), nullptr);
  });
  m.def("saved_numbers", [](int terms, bool gradient_needs_smooth, bool changes_target) {
    return saved_numbers(static_cast<Terms>(terms), gradient_needs_smooth, changes_target);
  });
  m.def("cross_entropy_shares", [](double label_smoothing, bool smooth_others, int64_t classes) {
    const CrossEntropyOptions options{label_smoothing, smooth_others, 0.0};
    return py::make_tuple(options.target_share(classes), options.uniform_share(classes));
  });
  m.def("cross_entropy_fwd",
        [](const py::dict& given, double label_smoothing, bool smooth_others, double z_loss) {
          launch_cross_entropy_fwd(make_row_call(given), {label_smoothing, smooth_others, z_loss},
                                   nullptr);
        });
  m.def("cross_entropy_bwd",
        [](const py::dict& given, double label_smoothing, bool smooth_others, double z_loss) {
          launch_cross_entropy_bwd(make_row_call(given), {label_smoothing, smooth_others, z_loss},
                                   nullptr);
        });
  m.def("margin_softmax_fwd", [](const py::dict& given, const py::dict& options) {
    launch_margin_softmax_fwd(make_row_call(given), margin_options(options), nullptr);
  });
  m.def("margin_softmax_bwd", [](const py::dict& given, const py::dict& options) {
    launch_margin_softmax_bwd(make_row_call(given), margin_options(options), nullptr);
  });
  m.def("softmax_focal_fwd", [](const py::dict& given, double gamma, double label_smoothing) {
    launch_softmax_focal_fwd(make_row_call(given), {gamma, label_smoothing}, nullptr);
  });
  m.def("softmax_focal_bwd", [](const py::dict& given, double gamma, double label_smoothing) {
    launch_softmax_focal_bwd(make_row_call(given), {gamma, label_smoothing}, nullptr);
  });
}
