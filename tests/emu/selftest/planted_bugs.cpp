// Runs one kernel with a planted bug under sanitizers, which end the program with their report.
//
//   fusedloss_planted_bugs <kernel> <n> <k>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../emu.h"
#include "selftest.h"

using namespace fusedloss::selftest;

int main(int count, char** given) {
  if (count != 4) return std::fprintf(stderr, "give a kernel, n and k\n"), 2;
  emu::Config config;
  config.count = config.race_check = config.check_uninitialized = false;
  emu::configure(config);
  const size_t bytes = 64 * sizeof(float);
  void *in = emu::alloc(bytes, "in"), *out = emu::alloc(bytes, "out"),
       *scratch = emu::alloc(bytes, "scratch");
  std::memset(scratch, 0, bytes);
  const Arguments arguments{in, out, scratch, std::atoll(given[2]), std::atoll(given[3])};
  for (const Entries& entries : {correct_kernels(), planted_bugs()})
    for (const Entry* entry = entries.begin; entry != entries.end; ++entry) {
      if (std::strcmp(entry->name, given[1]) != 0) continue;
      launch(entry->kernel, 1, 64, bytes, arguments);
      for (void* memory : {in, out, scratch}) emu::free(memory);
      std::printf("%s: nothing reported\n", given[1]);
      return 0;
    }
  std::fprintf(stderr, "no kernel '%s'\n", given[1]);
  return 2;
}
