// What the C++ tests share.
#pragma once

#include <cstdint>
#include <cstdio>

#include "../../kernels/cpu/threads.h"

inline int failures = 0;

inline void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

inline fusedloss::cpu::Threads plain_loop() {
  return {[](int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
    if (count > 0) body(0, count, context);
  }};
}

// One range per task, last one first: any order must give the same bits.
inline fusedloss::cpu::Threads reversed_tasks() {
  return {[](int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
    for (int64_t i = count; i-- > 0;) body(i, i + 1, context);
  }};
}

void test_row_softmax();
void test_regions();
void test_mining();
