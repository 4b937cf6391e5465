// The emulator's own test kernels: one signature for all, so that one binding serves them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <iterator>

namespace fusedloss::selftest {

struct Arguments {
  const void* in;
  void* out;
  void* scratch;
  int64_t n;
  int64_t k;
};

using Kernel = void (*)(Arguments);

struct Entry {
  const char* name;
  Kernel kernel;
};

struct Entries {
  const Entry* begin;
  const Entry* end;
};

Entries correct_kernels();  // correct.cu
Entries warp_kernels();     // warp.cu
Entries planted_bugs();     // bugs.cu
Entries planted_races();    // races.cu

// In correct.cu.
cudaError_t launch(Kernel kernel, dim3 grid, dim3 block, size_t dynamic_bytes,
                   const Arguments& arguments);
cudaError_t allow_dynamic_bytes(Kernel kernel, int bytes);

}  // namespace fusedloss::selftest
