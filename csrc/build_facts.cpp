// How this library was built and what it runs at, as JSON for show_config().
#include <torch/csrc/stable/library.h>

#include <string>

#include "../kernels/core/macros.h"

// The architecture list comes as a bare word with commas in it.
#define TEXT(...) TEXT_(__VA_ARGS__)
#define TEXT_(...) #__VA_ARGS__

namespace fusedloss {
namespace {

// Multi-versioned like the engines (FUSEDLOSS_CPU_LEVELS), so it names the version the loader
// picked.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && !defined(__clang__) && \
    !defined(FUSEDLOSS_BASELINE_ONLY)
__attribute__((target("default"))) const char* cpu_level() { return "baseline x86-64"; }
__attribute__((target("arch=x86-64-v3"))) const char* cpu_level() { return "AVX2 (x86-64-v3)"; }
__attribute__((target("arch=x86-64-v4"))) const char* cpu_level() { return "AVX-512 (x86-64-v4)"; }
#else
const char* cpu_level() { return "compiler's target"; }
#endif

std::string build_facts() {
  std::string facts = "{\"compiler\": \"" __VERSION__ "\", \"cpu_level\": \"";
  facts += cpu_level();
#if FUSEDLOSS_WITH_CUDA
  facts +=
      "\", \"cuda\": true, \"cuda_architectures\": \"" TEXT(FUSEDLOSS_CUDA_ARCHITECTURES) "\"}";
#else
  facts += "\", \"cuda\": false, \"cuda_architectures\": \"\"}";
#endif
  return facts;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) { m.def("build_facts() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CompositeExplicitAutograd, m) {
  m.impl("build_facts", TORCH_BOX(&build_facts));
}

}  // namespace fusedloss
