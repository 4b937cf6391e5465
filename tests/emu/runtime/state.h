// The state of the emulated device, shared by the runtime's files. One launch runs at a time, on
// one host thread, so nothing here is synchronised beyond the launch mutex.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "../emu.h"
#include "../include/emu_device/abi.h"
#include "../include/emu_device/runtime_api.h"

#define EMU_LIKELY(x) __builtin_expect(!!(x), 1)
#define EMU_UNLIKELY(x) __builtin_expect(!!(x), 0)

namespace emu::internal {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kDefaultSharedLimit = 48 * 1024;
constexpr size_t kOptInSharedLimit = 227 * 1024;

// ---- memory -------------------------------------------------------------------------------------

// Who accessed a piece of memory last. `interval` numbers the stretches between block barriers and
// never repeats, so it also tells block and launch.
struct AccessRecord {
  uint32_t interval = 0;
  uint16_t thread = 0;  // and the flags below
  uint16_t warp_clock = 0;
  uint32_t site = 0;
};
constexpr uint16_t kThreadMask = 0x3ff;
constexpr uint16_t kAtomic = 0x400;        // the access was atomic
constexpr uint16_t kManyInWarp = 0x800;    // several lanes of the thread's warp have read
constexpr uint16_t kManyInBlock = 0x1000;  // several warps have read
constexpr uint16_t kOtherBlocks = 0x2000;  // blocks before this one have read, in this launch

struct ShadowCell {
  AccessRecord write, read;
};

// One cell for each granule of 2^shift bytes of a region; made finer as narrower accesses appear.
struct Shadow {
  ShadowCell* cells = nullptr;
  uintptr_t base = 0;
  size_t count = 0;
  int shift = 2;

  void create(uintptr_t begin, uintptr_t end);
  void refine(int finer_shift);
  void destroy();
};

enum class Space : uint8_t { kGlobal, kShared };

struct Region {
  uintptr_t begin = 0, end = 0;
  Space space = Space::kGlobal;
  std::string name;
  Shadow shadow;
  bool tracks_initialization = false;
  int registrations = 1;
  void* mapping = nullptr;  // what alloc() mapped, red zones included
  size_t mapping_bytes = 0;
  uint64_t block_stamp = 0;   // shared: the block it was last poisoned for
  uint64_t launch_stamp = 0;  // of the bitmaps below; shared: of the last launch that used it
  std::vector<uint64_t> read_sectors, written_sectors;

  ~Region() { shadow.destroy(); }
};

Region* find_global(uintptr_t address);     // nullptr where there is none
Region* nearest_region(uintptr_t address);  // for messages
Region* find_shared(uintptr_t address);     // static variables and dynamic shared memory
bool is_readable_constant(uintptr_t address, size_t size);
void prepare_shared(const void* kernel, size_t dynamic_bytes);  // at the start of a launch
void fill_shared(Region& region);                               // with 0xFF
void fill_all_shared();
bool refresh_shared();  // true where new thread-local storage appeared
void mark_written(Region& region, uintptr_t address, size_t bytes);

// ---- counting -----------------------------------------------------------------------------------

struct Request {
  uint32_t lanes = 0;
  uint32_t size = 0;
  uintptr_t address[kWarp];
};
struct WarpRequests {
  uint32_t first = 0;  // the execution that requests[0] belongs to
  uint32_t done = 0;   // leading requests that are complete
  std::vector<Request> requests;
};

// One access instruction of the kernel code, known by its return address.
struct Site {
  void* pc = nullptr;
  uint32_t id = 0;
  bool is_write = false;
  Region* region = nullptr;  // the last one accessed
  uint64_t region_version = 0;
  uint64_t block_stamp = 0;
  std::vector<uint32_t> executions;  // by thread of the block
  std::vector<WarpRequests> warps;
};

Site* find_site(void* pc);
Site* site_by_id(uint32_t id);
void count_global(Site& site, Region& region, uintptr_t address, size_t size, bool is_write);
void finish_block_requests();

struct Totals {
  const void* kernel = nullptr;
  KernelCounters counters;
  uint64_t atomics[10][6] = {};  // by AtomicOp and AtomicType
};
Totals& totals_for(const void* kernel, const char* name);

// ---- execution ----------------------------------------------------------------------------------

enum class Status : uint8_t { kFresh, kRunning, kReady, kBarrier, kCollective, kExited };

struct Thread {
  uint3 index{};
  uint32_t flat = 0;
  void* context = nullptr;  // saved stack pointer while suspended
  int stack = -1;
  Status status = Status::kFresh;
  bool unfenced_write = false;
  uint32_t fence_interval = 0;  // 0: no fence in this block
  const char* file = nullptr;   // where it waits
  int line = 0;
  uint32_t mask = 0;
  uint64_t value = 0, result = 0;
  int argument = 0, width = 32;
};

struct Group {  // lanes that wait for each other in one warp collective
  uint32_t mask, arrived;
  abi::Collective op;
};
struct Warp {
  uint32_t existing = 0, exited = 0;
  int groups = 0;
  Group group[kWarp];
  uint16_t clock = 0;                     // warp barriers in this interval
  uint16_t full_sync = 0;                 // the clock at the last one of all lanes
  std::unique_ptr<uint16_t[]> pair_sync;  // [lane][lane]: the clock at the last one of both
};

// For ordering between blocks: a block's fenced writes become visible to whoever later operates
// atomically on a location that the block operated on after the fence.
struct Release {
  uint32_t block;     // in order of execution
  uint32_t upto;      // all accesses of the block in earlier intervals
  uint32_t own_upto;  // and those of `thread` in intervals up to this
  uint16_t thread;
};
struct SyncVariable {
  std::vector<Release> releases;
};
struct Acquisition {
  const SyncVariable* variable;
  size_t count;  // its first `count` releases
  uint32_t interval;
  uint16_t thread;
};

enum class Fault : int {
  kNone,
  kOutOfBounds,
  kMisaligned,
  kOtherStack,
  kUninitialized,
  kRace,
  kRaceBetweenBlocks,
  kDivergentBarrier,
  kBadMask,
  kCollectiveMismatch,
  kDeadlock,
  kStaticShared,
  kTrap,
};
struct FaultReport {
  Fault fault = Fault::kNone;
  uintptr_t address = 0;
  size_t size = 0;
  bool is_write = false;
  bool is_atomic = false;
  void* pc = nullptr;
  Region* region = nullptr;
  uint32_t thread = 0;
  uint3 block{};
  AccessRecord other;
  bool other_was_write = false;
  std::string detail;
};

struct State {
  // Hot fields first: the hooks read these on every access.
  bool running = false;
  bool race_check = true, count = true, check_uninitialized = true;
  uintptr_t stacks_begin = 0, stacks_size = 0;
  uintptr_t stack_low = 0, stack_high = 0;  // of the running thread
  Thread* current = nullptr;
  uint64_t region_version = 1;
  uint64_t block_stamp = 0;   // counts blocks ever run
  uint64_t launch_stamp = 0;  // counts launches
  uint32_t interval = 2;      // 1 stands for the host's writes
  uint32_t block_base = 2;    // first interval of this block, and of this launch
  uint32_t launch_base = 2;
  Totals* totals = nullptr;

  Config config;
  std::mutex mutex;
  uint3 block_index{}, block_dim{}, grid_dim{};
  int block_threads = 0;
  const void* kernel = nullptr;
  void (*run_thread)(void*) = nullptr;
  void* arguments = nullptr;
  size_t argument_bytes = 0, dynamic_bytes = 0, static_bytes = 0;

  void* main_context = nullptr;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kWarp];
  std::vector<Thread*> ready;
  std::vector<std::vector<uint16_t>> orders;  // shuffles of the block's threads to choose from
  std::vector<int> free_stacks;
  uint64_t random = 1;
  int live = 0, exited = 0, at_barrier = 0;
  abi::Barrier barrier_kind{};
  const char* barrier_file = nullptr;
  int barrier_line = 0, barrier_count = 0, barrier_result = 0;

  int unfenced_writers = 0;
  uint32_t clean_upto = 0;
  std::vector<uint32_t> block_first_interval;
  std::unordered_map<uintptr_t, SyncVariable> sync_variables;
  std::vector<Acquisition> acquired;

  std::vector<Site*> active_sites;  // with open requests in this block
  std::deque<Totals> totals_list;
  FaultReport report;
  Fault last_fault = Fault::kNone;  // of the launch before
  std::string last_error;
  cudaError_t last_status = cudaSuccess;
};
extern State g;

inline uint64_t next_random() {
  g.random ^= g.random << 13;
  g.random ^= g.random >> 7;
  g.random ^= g.random << 17;
  return g.random;
}

void create_stacks();
void run_block(uint3 index);
void suspend_current(Status status, const char* file, int line);
void check_race(Site& site, Region& region, uintptr_t address, size_t size, bool is_write,
                bool is_atomic);
void note_atomic(uintptr_t address);
void reset_order_between_blocks();

// Leaves the running kernel for good; the launch then throws what the report describes.
[[noreturn]] void fail(FaultReport report);
[[noreturn]] void leave_block();
std::string describe(const FaultReport& report);

// ---- symbols ------------------------------------------------------------------------------------

struct ModuleSymbol {
  uintptr_t value;  // offset from the load address; for thread-local ones from their segment
  size_t size;
  std::string name;
};
struct Module {
  std::string path;
  uintptr_t base = 0;
  std::vector<ModuleSymbol> functions, thread_locals;  // by value
  std::vector<std::pair<uintptr_t, uintptr_t>> read_only;
  std::pair<uintptr_t, uintptr_t> constants{0, 0};  // the section of __constant__ variables
};
Module& module_of(const void* code);
std::pair<uintptr_t, uintptr_t> thread_local_segment(const Module& module);
std::string function_name(const void* code);
std::string demangle(const std::string& name);
std::string source_line(const void* pc);

}  // namespace emu::internal
