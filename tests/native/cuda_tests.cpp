// C++ tests of the CUDA kernels, on the emulator and under sanitizers: every family of launches in
// shapes that reach each of its walks, against the CPU's kernels. Exits with 1 and says what
// differs where a result is wrong.
#include "cuda_tests.h"

int main() {
  // Of memory that kernels read and write the emulator sees atomics alone here: no records to keep.
  emu::Config config;
  config.count = config.race_check = config.check_uninitialized = false;
  emu::configure(config);
  test_cuda_elements();
  test_cuda_rows();
  test_cuda_regions();
  test_cuda_mining();
  if (failures == 0) std::printf("all C++ tests of the CUDA kernels passed\n");
  return failures == 0 ? 0 : 1;
}
