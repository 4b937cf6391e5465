// Python bindings of the emulator.
#pragma once

#include <pybind11/pybind11.h>

void bind_emulator(pybind11::module_& m);
