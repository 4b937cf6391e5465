// The only macros of the kernels: what a function needs to run on host and device alike, and what
// lets one CPU function exist in several instruction-set versions.
#pragma once

#if defined(__CUDACC__)
#define FUSEDLOSS_HD __host__ __device__ __forceinline__
#else
#define FUSEDLOSS_HD inline __attribute__((always_inline))
#endif

// CPU engine functions are compiled once per level; the loader picks the best one the CPU has. The
// functors they call are always inlined, so each version vectorises them at its own width. Where
// the compiler has no function multi-versioning (or a sanitizer runs before the loader's resolvers
// could) the baseline alone is built.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && !defined(__clang__) && \
    !defined(FUSEDLOSS_BASELINE_ONLY)
#define FUSEDLOSS_CPU_LEVELS \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FUSEDLOSS_CPU_LEVELS
#endif
