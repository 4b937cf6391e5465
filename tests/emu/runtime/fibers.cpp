// The scheduler: CUDA threads of one block as fibers on stacks of their own.
//
// A stack runs one thread after another for as long as none of them has to wait, so a kernel
// without barriers needs no switch at all; a thread that waits keeps its stack and the next one is
// resumed, or started on another.
#include <sys/mman.h>

#include <cstring>

#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" {
void emu_switch_context(void** save, void* load);
// What kernels know as threadIdx, blockIdx, blockDim and gridDim.
__attribute__((visibility("hidden"))) uint3 emu_thread_idx, emu_block_idx, emu_block_dim,
    emu_grid_dim;
}

// Saves the callee-saved registers on the running stack and resumes from another one. The floating
// point control words are not switched: kernels do not change them.
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type emu_switch_context,@function
emu_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_context,.-emu_switch_context
)");
constexpr int kEntryWord = 6;
constexpr int kFrameWords = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.type emu_switch_context,%function
emu_switch_context:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch_context,.-emu_switch_context
)");
constexpr int kEntryWord = 11;
constexpr int kFrameWords = 20;
#else
#error "the emulator's fibers know x86-64 and AArch64 only"
#endif

namespace emu::internal {

State g;

namespace {

// The tops of the stacks are staggered: at equal offsets they would all share a few cache sets.
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 4096;
constexpr size_t kStagger = 192;

uintptr_t stack_low(int stack) { return g.stacks_begin + stack * kStackBytes + kGuardBytes; }
uintptr_t stack_high(int stack) { return g.stacks_begin + (stack + 1) * kStackBytes; }

// `leaving` ends the fiber that is switched away from.
void switch_context(void** save, void* load, uintptr_t low, uintptr_t high, bool leaving) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake_stack, reinterpret_cast<void*>(low),
                                 high - low);
  emu_switch_context(save, load);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  (void)low, (void)high, (void)leaving;
  emu_switch_context(save, load);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
const void* main_stack_low = nullptr;
size_t main_stack_size = 0;
#endif

void enter(Thread* thread) {
  g.current = thread;
  emu_thread_idx = thread->index;
  g.stack_low = stack_low(thread->stack);
  g.stack_high = stack_high(thread->stack);
}

Thread* next_ready() {
  if (EMU_UNLIKELY(g.ready.empty())) return nullptr;
  Thread* thread = g.ready.back();
  g.ready.pop_back();
  return thread;
}

void exit_thread(Thread& thread) {
  thread.status = Status::kExited;
  ++g.exited;
  Warp& warp = g.warps[thread.flat / kWarp];
  const uint32_t lane_bit = 1u << (thread.flat % kWarp);
  warp.exited |= lane_bit;
  if (EMU_UNLIKELY(g.at_barrier > 0)) {
    FaultReport report;
    report.fault = Fault::kDivergentBarrier;
    report.thread = thread.flat;
    report.detail = "it exits while other threads of the block wait at a barrier";
    fail(report);
  }
  for (int i = 0; i < warp.groups; ++i) {
    if (EMU_LIKELY((warp.group[i].mask & lane_bit) == 0)) continue;
    FaultReport report;
    report.fault = Fault::kBadMask;
    report.thread = thread.flat;
    report.detail = "it exits while other lanes wait for it: their mask names it";
    fail(report);
  }
}

[[noreturn]] void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  const void* low = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &low, &size);
  if (main_stack_low == nullptr) main_stack_low = low, main_stack_size = size;
#endif
  for (;;) {
    Thread* self = g.current;
    self->status = Status::kRunning;
    g.run_thread(g.arguments);
    exit_thread(*self);
    Thread* next = next_ready();
    if (next == nullptr) leave_block();
    const int stack = self->stack;
    self->stack = -1;
    if (next->status == Status::kFresh) {
      next->stack = stack;
      enter(next);
      continue;
    }
    g.free_stacks.push_back(stack);
    enter(next);
    void* unused;
    switch_context(&unused, next->context, g.stack_low, g.stack_high, true);
  }
}

void* fresh_context(Thread* thread) {
  thread->stack = g.free_stacks.back();
  g.free_stacks.pop_back();
  const uintptr_t top =
      (stack_high(thread->stack) - 64 - (thread->stack % 32) * kStagger) & ~uintptr_t{15};
  auto* frame = reinterpret_cast<uintptr_t*>(top) - kFrameWords;
  std::memset(frame, 0, kFrameWords * sizeof(uintptr_t));
  frame[kEntryWord] = reinterpret_cast<uintptr_t>(&run_fiber);
  return frame;
}

void suspend() {
  Thread* self = g.current;
  Thread* next = next_ready();
  if (EMU_UNLIKELY(next == nullptr)) {
    FaultReport report;
    report.fault = Fault::kDeadlock;
    report.thread = self->flat;
    fail(report);
  }
  if (next != self) {
    void* target = next->status == Status::kFresh ? fresh_context(next) : next->context;
    enter(next);
    switch_context(&self->context, target, g.stack_low, g.stack_high, false);
  }
  self->status = Status::kRunning;
}

void make_all_ready() {
  const std::vector<uint16_t>& order = g.orders[next_random() % g.orders.size()];
  g.ready.clear();
  for (uint16_t flat : order) g.ready.push_back(&g.threads[flat]);
}

void start_interval() {
  ++g.interval;
  if (g.unfenced_writers == 0) g.clean_upto = g.interval;
  for (int w = 0; w * kWarp < g.block_threads; ++w) {
    Warp& warp = g.warps[w];
    warp.clock = warp.full_sync = 0;
    warp.pair_sync.reset();
  }
}

void check_barrier_site(const Thread& self, abi::Barrier kind, const char* file, int line) {
  FaultReport report;
  report.fault = Fault::kDivergentBarrier;
  report.thread = self.flat;
  if (g.exited > 0) {
    report.detail = "it waits at " + std::string(file) + ":" + std::to_string(line) +
                    ", but other threads of the block have exited";
    fail(report);
  }
  if (g.at_barrier == 0) {
    g.barrier_kind = kind;
    g.barrier_file = file;
    g.barrier_line = line;
    g.barrier_count = 0;
  } else if (g.barrier_line != line || g.barrier_kind != kind ||
             (g.barrier_file != file && std::strcmp(g.barrier_file, file) != 0)) {
    report.detail = "it arrives at " + std::string(file) + ":" + std::to_string(line) +
                    ", other threads of the block wait at " + g.barrier_file + ":" +
                    std::to_string(g.barrier_line);
    fail(report);
  }
}

int barrier_value(abi::Barrier kind) {
  switch (kind) {
    case abi::Barrier::kCount:
      return g.barrier_count;
    case abi::Barrier::kAnd:
      return g.barrier_count == g.block_threads;
    case abi::Barrier::kOr:
      return g.barrier_count > 0;
    default:
      return 0;
  }
}

void reset_threads() {
  const uint3 dim = g.block_dim;
  uint32_t flat = 0;
  for (uint32_t z = 0; z < dim.z; ++z) {
    for (uint32_t y = 0; y < dim.y; ++y) {
      for (uint32_t x = 0; x < dim.x; ++x, ++flat) {
        Thread& thread = g.threads[flat];
        thread.index = uint3{x, y, z};
        thread.flat = flat;
        thread.status = Status::kFresh;
        thread.stack = -1;
        thread.unfenced_write = false;
        thread.fence_interval = 0;
      }
    }
  }
  for (int w = 0; w * kWarp < g.block_threads; ++w) {
    const int lanes = g.block_threads - w * kWarp;
    Warp& warp = g.warps[w];
    warp.existing = lanes >= kWarp ? ~0u : (1u << lanes) - 1;
    warp.exited = 0;
    warp.groups = 0;
  }
}

}  // namespace

void create_stacks() {
  if (g.stacks_begin == 0) {
    void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for thread stacks");
    g.stacks_begin = reinterpret_cast<uintptr_t>(memory);
    g.stacks_size = kMaxThreads * kStackBytes;
    for (int i = 0; i < kMaxThreads; ++i) {
      mprotect(reinterpret_cast<void*>(g.stacks_begin + i * kStackBytes), kGuardBytes, PROT_NONE);
    }
  }
#if defined(__SANITIZE_ADDRESS__)
  // A launch that failed has left frames behind.
  if (g.last_fault != Fault::kNone) {
    __asan_unpoison_memory_region(reinterpret_cast<void*>(g.stacks_begin), g.stacks_size);
  }
#endif
  g.free_stacks.clear();
  for (int i = kMaxThreads - 1; i >= 0; --i) g.free_stacks.push_back(i);
}

void run_block(uint3 index) {
  g.block_index = emu_block_idx = index;
  emu_block_dim = g.block_dim;
  emu_grid_dim = g.grid_dim;
  ++g.block_stamp;
  ++g.interval;
  g.block_base = g.interval;
  g.block_first_interval.push_back(g.interval);
  g.exited = g.at_barrier = 0;
  g.unfenced_writers = 0;
  g.clean_upto = g.interval;
  g.acquired.clear();
  reset_threads();
  start_interval();
  make_all_ready();
#if defined(__SANITIZE_ADDRESS__)
  main_stack_low = nullptr;
  fill_all_shared();
#endif
  Thread* first = next_ready();
  void* context = fresh_context(first);
  enter(first);
  switch_context(&g.main_context, context, g.stack_low, g.stack_high, false);
  finish_block_requests();
}

void leave_block() {
  if (g.report.fault == Fault::kNone && g.exited < g.block_threads) {
    g.report.fault = Fault::kDeadlock;
    g.report.thread = g.current->flat;
    g.report.block = g.block_index;
  }
  g.free_stacks.push_back(g.current->stack);
  void* unused;
#if defined(__SANITIZE_ADDRESS__)
  const auto low = reinterpret_cast<uintptr_t>(main_stack_low);
  switch_context(&unused, g.main_context, low, low + main_stack_size, true);
#else
  switch_context(&unused, g.main_context, 0, 0, true);
#endif
  __builtin_unreachable();
}

void fail(FaultReport report) {
  report.block = g.block_index;
  g.report = std::move(report);
  leave_block();
}

void suspend_current(Status status, const char* file, int line) {
  g.current->status = status;
  g.current->file = file;
  g.current->line = line;
  suspend();
}

}  // namespace emu::internal

namespace emu::abi {

using internal::g;
using internal::Thread;

int barrier(Barrier kind, int predicate, const char* file, int line) {
  Thread& self = *g.current;
  internal::check_barrier_site(self, kind, file, line);
  self.status = internal::Status::kBarrier;
  self.file = file;
  self.line = line;
  g.barrier_count += predicate != 0;
  if (++g.at_barrier == g.block_threads) {
    g.barrier_result = internal::barrier_value(kind);
    g.at_barrier = 0;
    ++g.totals->counters.barriers;
    internal::start_interval();
    internal::make_all_ready();
    for (Thread* thread : g.ready) thread->status = internal::Status::kReady;
  }
  internal::suspend();
  return g.barrier_result;
}

}  // namespace emu::abi
