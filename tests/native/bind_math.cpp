// The elementary functions of kernels/core over arrays, and the half conversions, for
// tests/test_math.py.
#include <pybind11/numpy.h>

#include "../../kernels/core/math.h"
#include "../../kernels/core/number.h"
#include "bind.h"

namespace py = pybind11;
using namespace fusedloss;

namespace {

template <class To, class Array, class F>
py::array_t<To> map(const Array& input, F f) {
  py::array_t<To> out(input.size());
  const auto* from = input.data();
  To* to = out.mutable_data();
  const py::ssize_t count = input.size();
  for (py::ssize_t i = 0; i < count; ++i) to[i] = f(from[i]);
  return out;
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bits = py::array_t<uint16_t, py::array::c_style | py::array::forcecast>;

}  // namespace

void bind_math(py::module_& m) {
  m.def("exp",
        [](const Floats& x) { return map<float>(x, [](float v) { return fusedloss::exp(v); }); });
  m.def("exp_nonpositive",
        [](const Floats& x) { return map<float>(x, [](float v) { return exp_nonpositive(v); }); });
  m.def("log",
        [](const Floats& x) { return map<float>(x, [](float v) { return fusedloss::log(v); }); });
  m.def("log1p_unit",
        [](const Floats& x) { return map<float>(x, [](float v) { return log1p_unit(v); }); });
  m.def("sigmoid",
        [](const Floats& x) { return map<float>(x, [](float v) { return sigmoid(v); }); });
  m.def("softplus",
        [](const Floats& x) { return map<float>(x, [](float v) { return softplus(v); }); });
  m.def("power", [](const Floats& x, float gamma) {
    return map<float>(x, [gamma](float v) { return SwitchedPower<float>(gamma)(v).value; });
  });
  m.def("power_derivative", [](const Floats& x, float gamma) {
    return map<float>(x, [gamma](float v) { return SwitchedPower<float>(gamma)(v).derivative; });
  });
  m.def("half_to_float", [](const Bits& x) {
    return map<float>(x, [](uint16_t v) { return to_float(Float16{v}); });
  });
  m.def("float_to_half", [](const Floats& x) {
    return map<uint16_t>(x, [](float v) { return to_float16(v).bits; });
  });
  m.def("bfloat16_to_float", [](const Bits& x) {
    return map<float>(x, [](uint16_t v) { return to_float(BFloat16{v}); });
  });
  m.def("float_to_bfloat16", [](const Floats& x) {
    return map<uint16_t>(x, [](float v) { return to_bfloat16(v).bits; });
  });
}
