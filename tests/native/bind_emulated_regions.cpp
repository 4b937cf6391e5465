// The CUDA launchers of the region engine, running on the emulator, over raw addresses.
#include "../../kernels/cuda/element_regions.h"
#include "../../kernels/cuda/softmax_regions.h"
#include "bind.h"
#include "bind_emulated_calls.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

double number(const py::dict& given, const char* name) { return given[name].cast<double>(); }

RegionCall make_region_call(const py::dict& given) {
  RegionCall region{};
  region.index = view_of(given, "index");
  region.num_groups = given["num_groups"].cast<int64_t>();
  region.num_classes = given["num_classes"].cast<int64_t>();
  region.squared = given["squared"].cast<bool>();
  region.skip_absent = given["skip_absent"].cast<bool>();
  region.first_class = given["first_class"].cast<int64_t>();
  region.overlap = {number(given, "gain"),
                    number(given, "by_overlap"),
                    number(given, "by_mass"),
                    number(given, "by_truth"),
                    number(given, "smooth_numerator"),
                    number(given, "smooth_denominator"),
                    number(given, "gamma"),
                    given["log"].cast<bool>(),
                    static_cast<GeneralizedWeighting>(given["weighting"].cast<int>())};
  region.class_weight = address_of(given, "region_weight");
  region.factor = number(given, "factor");
  region.joined = given["joined"].cast<int>() != 0;
  region.joined_factor = number(given, "joined_factor");
  region.reduction = static_cast<Reduction>(given["reduction"].cast<int>());
  region.loss = address_of(given, "loss");
  region.slopes = address_of(given, "slopes");
  region.upstream = address_of(given, "upstream");
  region.upstream_group_stride = given["upstream_group_stride"].cast<int64_t>();
  region.upstream_class_stride = given["upstream_class_stride"].cast<int64_t>();
  return region;
}

SoftmaxRegionOptions softmax_options(const py::dict& given) {
  const double smoothing = number(given, "label_smoothing");
  return {static_cast<Joined>(given["joined"].cast<int>()),
          {smoothing, given["smooth_others"].cast<bool>(), 0.0},
          {number(given, "focal_gamma"), smoothing}};
}

ElementRegionOptions element_options(const py::dict& given) {
  return {static_cast<Activation>(given["activation"].cast<int>()),
          static_cast<Joined>(given["joined"].cast<int>()),
          {number(given, "focal_gamma"), number(given, "label_smoothing")}};
}

}  // namespace

void bind_emulated_regions(py::module_& m) {
  m.def("softmax_regions_workspace_bytes", [](const py::dict& call, const py::dict& region) {
    return softmax_regions_workspace_bytes(make_row_call(call), make_region_call(region), nullptr);
  });
  m.def("softmax_regions_fwd", [](const py::dict& call, const py::dict& region) {
    launch_softmax_regions_fwd(make_row_call(call), make_region_call(region),
                               softmax_options(region), nullptr);
  });
  m.def("softmax_regions_bwd", [](const py::dict& call, const py::dict& region) {
    launch_softmax_regions_bwd(make_row_call(call), make_region_call(region),
                               softmax_options(region), nullptr);
  });
  m.def("element_regions_workspace_bytes", [](const py::dict& call, const py::dict& region) {
    return element_regions_workspace_bytes(make_pointwise_call(call), make_region_call(region),
                                           nullptr);
  });
  m.def("element_regions_fwd", [](const py::dict& call, const py::dict& region) {
    launch_element_regions_fwd(make_pointwise_call(call), make_region_call(region),
                               element_options(region), nullptr);
  });
  m.def("element_regions_bwd", [](const py::dict& call, const py::dict& region) {
    launch_element_regions_bwd(make_pointwise_call(call), make_region_call(region),
                               element_options(region), nullptr);
  });
}
