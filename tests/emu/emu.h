// An emulator of the CUDA execution model: runs the unchanged .cu sources on the host, one fiber
// per thread, and sees every load and store they make.
//
//   emu::configure({.seed = 7});
//   float* x = static_cast<float*>(emu::alloc(bytes, "x"));
//   launch_something(x, ...);              // throws emu::KernelError where the kernel misbehaves
//   for (const emu::KernelCounters& k : emu::counters()) ...
//
// A process has one emulated device. Launches are serialised; blocks run one after another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace emu {

struct Config {
  // Orders blocks and threads; 0 is the natural order.
  uint64_t seed = 1;
  // Keep the counters of memory traffic. Without it only launches, threads, barriers and atomics
  // are counted.
  bool count = true;
  bool race_check = true;
  // Report reads of shared memory (and of device memory not yet written, see `alloc`) that nothing
  // wrote. Needs race_check, whose records it reads.
  bool check_uninitialized = true;
  int multiprocessors = 132;
};

// A kernel did something that is an error on a real device, or undefined there.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Index into Traffic::accesses_by_width.
enum Width : int { kWidth1, kWidth2, kWidth4, kWidth8, kWidth16, kWidthOther, kWidths };

// Traffic of one direction on global memory. A request is what one access instruction makes for
// the lanes of one warp, at their k-th execution of it.
struct Traffic {
  uint64_t bytes = 0;           // sum over lanes of the width of each access
  uint64_t requests = 0;        // warp requests
  uint64_t sectors = 0;         // distinct 32-byte sectors per request, summed
  uint64_t full_sectors = 0;    // of those: every byte that lies inside the allocation was used
  uint64_t used_bytes = 0;      // distinct bytes per request, summed
  uint64_t unique_sectors = 0;  // distinct sectors per launch, summed over launches
  std::array<uint64_t, kWidths> accesses_by_width{};

  uint64_t unique_bytes() const { return 32 * unique_sectors; }
};

// Sums over all launches of one kernel, or of one kind of copy.
struct KernelCounters {
  std::string name;       // without namespace and template arguments; "cudaMemsetAsync"
  std::string signature;  // demangled
  uint64_t launches = 0, blocks = 0, threads = 0;
  Traffic read, write;
  uint64_t shared_read_bytes = 0, shared_written_bytes = 0;
  uint64_t static_shared_bytes = 0, dynamic_shared_bytes = 0;  // per block, largest launch
  std::map<std::string, uint64_t> atomics;                     // "atomicAdd.u32"
  uint64_t float_atomics = 0;
  uint64_t barriers = 0;          // completed block barriers, summed over blocks
  uint64_t warp_collectives = 0;  // completed shuffles, votes, warp barriers
};

void configure(const Config& config);
Config configuration();

// Device memory, filled with 0xFF bytes and counted as not yet written. What the host writes into
// it directly has to be announced with mark_initialized; cudaMemcpyAsync and cudaMemsetAsync do
// that themselves.
void* alloc(size_t bytes, const std::string& name);
void free(void* address);
void mark_initialized(void* address, size_t bytes);

// Lets kernels use memory of the host's, within exactly these bounds. The same range may be
// registered repeatedly (as often to be unregistered); ranges that overlap otherwise are refused.
void register_range(void* address, size_t bytes, const std::string& name, bool initialized = true);
void unregister_range(void* address);

void reset_counters();
std::vector<KernelCounters> counters();  // in the order of each kernel's first launch

// What the last KernelError said; empty after a launch without one.
std::string last_error();

}  // namespace emu
