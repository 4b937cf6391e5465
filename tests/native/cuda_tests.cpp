// C++ tests of the CUDA kernels, on the emulator and under sanitizers: every family of launches in
// shapes that reach each of its walks, against the CPU's kernels. Runs the families that are named;
// exits with 1 and says what differs where a result is wrong.
#include "cuda_tests.h"

#include <cstring>

int main(int count, char** names) {
  // Of memory that kernels read and write the emulator sees atomics alone here: no records to keep.
  emu::Config config;
  config.count = config.race_check = config.check_uninitialized = false;
  emu::configure(config);
  const struct {
    const char* name;
    void (*run)();
  } families[] = {{"elements", test_cuda_elements},
                  {"rows", test_cuda_rows},
                  {"regions", test_cuda_regions},
                  {"mining", test_cuda_mining}};
  int run = 0;
  for (int i = 1; i < count; ++i)
    for (const auto& family : families) {
      if (std::strcmp(names[i], family.name) != 0) continue;
      family.run();
      ++run;
    }
  if (run == 0 || run != count - 1) {
    std::fprintf(stderr, "give families: elements, rows, regions, mining\n");
    return 2;
  }
  if (failures == 0) std::printf("all C++ tests of the CUDA kernels passed\n");
  return failures == 0 ? 0 : 1;
}
