// The torch-free test module: the emulator, the CUDA launchers that run on it, the scalar
// functions.
#include "../emu/bind_emulator.h"
#include "bind.h"

PYBIND11_MODULE(fusedloss_testing, m) {
  bind_emulator(m);
  bind_math(m);
  bind_emulated_cuda(m);
  bind_emulated_rows(m);
  bind_emulated_regions(m);
  bind_emulated_mining(m);
}
