// The parts of the torch-free test module.
#pragma once

#include <pybind11/pybind11.h>

void bind_math(pybind11::module_& m);
void bind_emulated_cuda(pybind11::module_& m);
void bind_emulated_rows(pybind11::module_& m);
void bind_emulated_regions(pybind11::module_& m);
void bind_emulated_mining(pybind11::module_& m);
