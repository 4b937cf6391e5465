// How the CPU engines cut their work: tasks of a fixed size, whatever the number of threads.
#pragma once

#include <cstdint>

#include "stage.h"
#include "threads.h"

namespace fusedloss::cpu {

constexpr int64_t kTask = 16 * kBlock;
constexpr int64_t kTasksPerThread = 2;  // below this much work another thread does not pay

inline int64_t num_tasks(int64_t numel) { return (numel + kTask - 1) / kTask; }

// Calls body(task, begin, end) for every task. Each task leaves its sums in its own slot and the
// caller adds the slots in order, so results are bitwise equal for any thread count.
template <class Body>
inline void for_each_task(int64_t numel, const Threads& threads, const Body& body) {
  threads.run(num_tasks(numel), kTasksPerThread, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task * kTask;
      body(task, begin, begin + kTask < numel ? begin + kTask : numel);
    }
  });
}

}  // namespace fusedloss::cpu
