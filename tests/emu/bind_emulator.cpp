// Python bindings of the emulator, for a test module to include among its own.
#include "bind_emulator.h"

#include <pybind11/stl.h>

#include "emu.h"

namespace py = pybind11;

namespace {

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

py::dict traffic_dict(const emu::Traffic& traffic) {
  static const char* const widths[] = {"1", "2", "4", "8", "16", "other"};
  py::dict by_width;
  for (int i = 0; i < emu::kWidths; ++i) {
    if (traffic.accesses_by_width[i] != 0) by_width[widths[i]] = traffic.accesses_by_width[i];
  }
  py::dict result;
  result["bytes"] = traffic.bytes;
  result["requests"] = traffic.requests;
  result["sectors"] = traffic.sectors;
  result["full_sectors"] = traffic.full_sectors;
  result["used_bytes"] = traffic.used_bytes;
  result["unique_sectors"] = traffic.unique_sectors;
  result["unique_bytes"] = traffic.unique_bytes();
  result["accesses_by_width"] = by_width;
  return result;
}

py::dict counters_dict(const emu::KernelCounters& counters) {
  py::dict result;
  result["name"] = counters.name;
  result["signature"] = counters.signature;
  result["launches"] = counters.launches;
  result["blocks"] = counters.blocks;
  result["threads"] = counters.threads;
  result["read"] = traffic_dict(counters.read);
  result["write"] = traffic_dict(counters.write);
  result["shared_read_bytes"] = counters.shared_read_bytes;
  result["shared_written_bytes"] = counters.shared_written_bytes;
  result["static_shared_bytes"] = counters.static_shared_bytes;
  result["dynamic_shared_bytes"] = counters.dynamic_shared_bytes;
  result["atomics"] = counters.atomics;
  result["float_atomics"] = counters.float_atomics;
  result["barriers"] = counters.barriers;
  result["warp_collectives"] = counters.warp_collectives;
  return result;
}

// Sets what is given and leaves the rest as it is.
void configure(py::kwargs given) {
  emu::Config config = emu::configuration();
  for (auto& [key, value] : given) {
    const auto name = key.cast<std::string>();
    if (name == "seed") {
      config.seed = value.cast<uint64_t>();
    } else if (name == "count") {
      config.count = value.cast<bool>();
    } else if (name == "race_check") {
      config.race_check = value.cast<bool>();
    } else if (name == "check_uninitialized") {
      config.check_uninitialized = value.cast<bool>();
    } else if (name == "multiprocessors") {
      config.multiprocessors = value.cast<int>();
    } else {
      throw py::type_error("configure() got an unknown setting '" + name +
                           "'; known: seed, count, race_check, check_uninitialized, "
                           "multiprocessors");
    }
  }
  emu::configure(config);
}

py::dict configuration() {
  const emu::Config config = emu::configuration();
  py::dict result;
  result["seed"] = config.seed;
  result["count"] = config.count;
  result["race_check"] = config.race_check;
  result["check_uninitialized"] = config.check_uninitialized;
  result["multiprocessors"] = config.multiprocessors;
  return result;
}

py::list counters() {
  py::list result;
  for (const emu::KernelCounters& kernel : emu::counters()) result.append(counters_dict(kernel));
  return result;
}

}  // namespace

void bind_emulator(py::module_& m) {
  py::register_exception<emu::KernelError>(m, "KernelError", PyExc_RuntimeError);
  m.def(
      "alloc",
      [](size_t bytes, const std::string& name) {
        return reinterpret_cast<uintptr_t>(emu::alloc(bytes, name));
      },
      py::arg("nbytes"), py::arg("name"),
      "Device memory of this size, filled with 0xFF bytes; returns its address.");
  m.def("free", [](uintptr_t address) { emu::free(pointer(address)); }, py::arg("address"));
  m.def(
      "register_range",
      [](uintptr_t address, size_t bytes, const std::string& name, bool initialized) {
        emu::register_range(pointer(address), bytes, name, initialized);
      },
      py::arg("address"), py::arg("nbytes"), py::arg("name"), py::arg("initialized") = true,
      "Lets kernels use this host memory, within exactly these bounds. With initialized=False a "
      "read of what no kernel has written is an error.");
  m.def(
      "unregister_range", [](uintptr_t address) { emu::unregister_range(pointer(address)); },
      py::arg("address"));
  m.def(
      "mark_initialized",
      [](uintptr_t address, size_t bytes) { emu::mark_initialized(pointer(address), bytes); },
      py::arg("address"), py::arg("nbytes"));
  m.def("configure", &configure,
        "Sets any of seed, count, race_check, check_uninitialized, multiprocessors.");
  m.def("configuration", &configuration);
  m.def("counters", &counters, "One dict per kernel, in the order of first launch.");
  m.def("reset_counters", &emu::reset_counters);
  m.def("last_error", &emu::last_error);
}
