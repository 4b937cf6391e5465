// The seam to whoever owns the threads. The binding passes torch's pool; tests pass a plain loop.
#pragma once

#include <cstdint>

namespace fusedloss::cpu {

// Calls body(begin, end, context) over disjoint ranges that cover [0, count). Results must not
// depend on how the range is cut: the engines give every task its own slot and combine the slots in
// order.
struct Threads {
  void (*parallel_for)(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                       void* context);

  template <class Body>
  void run(int64_t count, int64_t grain, const Body& body) const {
    parallel_for(
        count, grain,
        [](int64_t begin, int64_t end, void* context) {
          (*static_cast<const Body*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace fusedloss::cpu
