// Python module of the emulator's own tests: the emulator's bindings and run(kernel name, ...).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <string>

#include "../bind_emulator.h"
#include "../emu.h"
#include "selftest.h"

namespace py = pybind11;
using namespace fusedloss::selftest;

namespace {

Kernel find_kernel(const std::string& name) {
  for (const Entries& entries :
       {correct_kernels(), warp_kernels(), planted_bugs(), planted_races()}) {
    for (const Entry* entry = entries.begin; entry != entries.end; ++entry) {
      if (name == entry->name) return entry->kernel;
    }
  }
  throw py::key_error("no kernel '" + name + "'");
}

dim3 dimensions(const std::array<unsigned, 3>& d) { return dim3(d[0], d[1], d[2]); }

// Returns the name of the status the launch gave.
std::string run(const std::string& name, std::array<unsigned, 3> grid,
                std::array<unsigned, 3> block, size_t dynamic_bytes, uintptr_t in, uintptr_t out,
                uintptr_t scratch, int64_t n, int64_t k) {
  const Arguments arguments{reinterpret_cast<const void*>(in), reinterpret_cast<void*>(out),
                            reinterpret_cast<void*>(scratch), n, k};
  return cudaGetErrorName(
      launch(find_kernel(name), dimensions(grid), dimensions(block), dynamic_bytes, arguments));
}

std::string copy(uintptr_t to, uintptr_t from, size_t bytes, int kind) {
  return cudaGetErrorName(cudaMemcpyAsync(reinterpret_cast<void*>(to),
                                          reinterpret_cast<const void*>(from), bytes,
                                          static_cast<cudaMemcpyKind>(kind), nullptr));
}

}  // namespace

PYBIND11_MODULE(fusedloss_emu_selftest, m) {
  bind_emulator(m);
  m.def("run", &run, py::arg("name"), py::arg("grid"), py::arg("block"),
        py::arg("dynamic_bytes") = 0, py::arg("source") = 0, py::arg("out") = 0,
        py::arg("scratch") = 0, py::arg("n") = 0, py::arg("k") = 0);
  m.def("allow_dynamic_bytes", [](const std::string& name, int bytes) {
    return std::string(cudaGetErrorName(allow_dynamic_bytes(find_kernel(name), bytes)));
  });
  m.def("last_status", [] { return std::string(cudaGetErrorName(cudaGetLastError())); });
  m.def("copy", &copy, py::arg("to"), py::arg("source"), py::arg("nbytes"), py::arg("kind"));
  m.def("fill", [](uintptr_t address, int value, size_t bytes) {
    return std::string(
        cudaGetErrorName(cudaMemsetAsync(reinterpret_cast<void*>(address), value, bytes, nullptr)));
  });
}
