// The CUDA launchers of hard example mining, running on the emulator, over raw addresses.
#include "../../kernels/cuda/mined_binary_cross_entropy.h"
#include "../../kernels/cuda/mined_cross_entropy.h"
#include "bind.h"
#include "bind_emulated_calls.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

MiningCall make_mining_call(const py::dict& given) {
  MiningCall mining{};
  mining.marks = view_of(given, "marks");
  mining.threshold = given["threshold"].cast<double>();
  SelectCall& select = mining.select;
  select.marks = mining.marks.data;
  select.values = address_of(given, "values");
  select.num_slices = given["num_slices"].cast<int64_t>();
  select.slice_size = given["slice_size"].cast<int64_t>();
  select.rule = {static_cast<Wanted>(given["wanted"].cast<int>()), given["number"].cast<int64_t>(),
                 given["factor"].cast<double>(), given["whole_ties"].cast<bool>(),
                 given["epsilon"].cast<double>()};
  select.reduction = static_cast<Reduction>(given["reduction"].cast<int>());
  select.loss = address_of(given, "loss");
  select.scale = address_of(given, "scale");
  select.selection = address_of(given, "selection");
  select.workspace = address_of(given, "workspace");
  return mining;
}

MinedGradientCall make_gradient_call(const py::dict& given) {
  return {view_of(given, "marks"), view_of(given, "slice"), address_of(given, "selection")};
}

}  // namespace

void bind_emulated_mining(py::module_& m) {
  m.def("select_workspace_bytes", [](const py::dict& mining) {
    const MiningCall call = make_mining_call(mining);
    return select_workspace_bytes(call.select, call.marks.dtype, nullptr);
  });
  m.def("mined_cross_entropy_fwd", [](const py::dict& call, const py::dict& mining) {
    launch_mined_cross_entropy_fwd(make_row_call(call), make_mining_call(mining), nullptr);
  });
  m.def("mined_cross_entropy_bwd", [](const py::dict& call, const py::dict& mined) {
    launch_mined_cross_entropy_bwd(make_row_call(call), make_gradient_call(mined), nullptr);
  });
  m.def("mined_binary_cross_entropy_fwd",
        [](const py::dict& call, bool from_logits, const py::dict& mining) {
          launch_mined_binary_cross_entropy_fwd(make_pointwise_call(call), {from_logits},
                                                make_mining_call(mining), nullptr);
        });
  m.def("mined_binary_cross_entropy_bwd",
        [](const py::dict& call, bool from_logits, const py::dict& mined) {
          launch_mined_binary_cross_entropy_bwd(make_pointwise_call(call), {from_logits},
                                                make_gradient_call(mined), nullptr);
        });
}
