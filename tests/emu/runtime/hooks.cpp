// The functions that -fsanitize=thread,alignment makes instrumented code call: one before each load
// and store, one where a pointer is less aligned than its type wants. They have the names that
// libtsan's and libubsan's would have; those libraries are not linked.
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace emu::internal {
namespace {

[[noreturn]] __attribute__((noinline)) void fail_access(Fault fault, uintptr_t address, size_t size,
                                                        bool is_write, void* pc, Region* region) {
  FaultReport report;
  report.fault = fault;
  report.address = address;
  report.size = size;
  report.is_write = is_write;
  report.pc = pc;
  report.region = region;
  report.thread = g.current->flat;
  fail(report);
}

// The region of an access, or nullptr where the access is legal but of no interest.
__attribute__((noinline)) Region* locate(uintptr_t address, size_t size, bool is_write, void* pc) {
  Region* region = find_global(address);
  if (region == nullptr) region = find_shared(address);
  if (region == nullptr && !is_write && is_readable_constant(address, size)) return nullptr;
  if (region == nullptr && refresh_shared()) region = find_shared(address);
  if (region != nullptr && address + size <= region->end) return region;
  fail_access(Fault::kOutOfBounds, address, size, is_write, pc,
              region != nullptr ? region : nearest_region(address));
}

// Shared memory holds anything at the start of a block, of which this is the first known access.
// Under AddressSanitizer only atomic operations are known, and come after others: see run_block.
__attribute__((noinline)) void poison_shared(Region& region) {
  region.block_stamp = g.block_stamp;
#if !defined(__SANITIZE_ADDRESS__)
  fill_shared(region);
#endif
  if (region.launch_stamp == g.launch_stamp) return;
  region.launch_stamp = g.launch_stamp;
  if (region.begin + g.dynamic_bytes != region.end || region.name.rfind("dynamic shared", 0) != 0) {
    g.static_bytes += region.end - region.begin;
  }
  const size_t total = g.static_bytes + g.dynamic_bytes;
  if (g.static_bytes > kDefaultSharedLimit || total > kOptInSharedLimit ||
      (total > kDefaultSharedLimit && g.dynamic_bytes <= kDefaultSharedLimit)) {
    FaultReport report;
    report.fault = Fault::kStaticShared;
    report.thread = g.current->flat;
    report.detail = std::to_string(g.static_bytes) + " bytes static and " +
                    std::to_string(g.dynamic_bytes) + " dynamic";
    fail(report);
  }
}

}  // namespace

[[noreturn]] void fail_alignment(uintptr_t address, size_t alignment, const std::string& place) {
  FaultReport report;
  report.fault = Fault::kMisaligned;
  report.address = address;
  report.size = alignment;
  report.thread = g.current->flat;
  report.detail = place;
  report.region = nearest_region(address);
  fail(report);
}

Region* on_access(uintptr_t address, size_t size, bool is_write, bool is_atomic, void* pc) {
  if (EMU_LIKELY(address - g.stacks_begin < g.stacks_size)) {
    if (EMU_LIKELY(address >= g.stack_low && address + size <= g.stack_high)) return nullptr;
    fail_access(Fault::kOtherStack, address, size, is_write, pc, nullptr);
  }
  // Each thread's call copies the kernel's arguments from here.
  if (address - reinterpret_cast<uintptr_t>(g.arguments) < g.argument_bytes) return nullptr;
  Site* site = find_site(pc);
  Region* region = site->region;
  if (EMU_UNLIKELY(region == nullptr || site->region_version != g.region_version ||
                   address < region->begin || address + size > region->end)) {
    region = locate(address, size, is_write, pc);
    if (region == nullptr) return nullptr;
    site->region = region;
    site->region_version = g.region_version;
  }
  if (EMU_UNLIKELY(is_atomic && (address & (size - 1)) != 0)) {
    fail_access(Fault::kMisaligned, address, size, is_write, pc, region);
  }
  const bool is_shared = region->space == Space::kShared;
  if (is_shared && EMU_UNLIKELY(region->block_stamp != g.block_stamp)) poison_shared(*region);
  if (g.race_check) check_race(*site, *region, address, size, is_write, is_atomic);
  if (!g.count || is_atomic) return region;
  if (is_shared) {
    KernelCounters& counters = g.totals->counters;
    (is_write ? counters.shared_written_bytes : counters.shared_read_bytes) += size;
  } else {
    count_global(*site, *region, address, size, is_write);
  }
  return region;
}

}  // namespace emu::internal

using emu::internal::g;
using emu::internal::on_access;

#define EMU_HOOK(name, size, is_write)                                     \
  void __tsan_##name(void* address) {                                      \
    if (EMU_LIKELY(!g.running)) return;                                    \
    on_access(reinterpret_cast<uintptr_t>(address), size, is_write, false, \
              __builtin_return_address(0));                                \
  }
#define EMU_RANGE_HOOK(name, is_write)                                     \
  void __tsan_##name(void* address, size_t size) {                         \
    if (EMU_LIKELY(!g.running) || size == 0) return;                       \
    on_access(reinterpret_cast<uintptr_t>(address), size, is_write, false, \
              __builtin_return_address(0));                                \
  }

// An AddressSanitizer build instruments for that instead, and refuses these definitions.
#if !defined(__SANITIZE_ADDRESS__)

extern "C" {

// What libubsan is told about a misaligned pointer.
struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
  if (EMU_LIKELY(!g.running)) return;
  emu::internal::fail_alignment(address, size_t{1} << data->log_alignment,
                                std::string(data->file) + ":" + std::to_string(data->line));
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
EMU_HOOK(read1, 1, false)
EMU_HOOK(read2, 2, false)
EMU_HOOK(read4, 4, false)
EMU_HOOK(read8, 8, false)
EMU_HOOK(read16, 16, false)
EMU_HOOK(write1, 1, true)
EMU_HOOK(write2, 2, true)
EMU_HOOK(write4, 4, true)
EMU_HOOK(write8, 8, true)
EMU_HOOK(write16, 16, true)
EMU_HOOK(unaligned_read2, 2, false)
EMU_HOOK(unaligned_read4, 4, false)
EMU_HOOK(unaligned_read8, 8, false)
EMU_HOOK(unaligned_read16, 16, false)
EMU_HOOK(unaligned_write2, 2, true)
EMU_HOOK(unaligned_write4, 4, true)
EMU_HOOK(unaligned_write8, 8, true)
EMU_HOOK(unaligned_write16, 16, true)
EMU_RANGE_HOOK(read_range, false)
EMU_RANGE_HOOK(write_range, true)

// Standard C++ atomics in instrumented code are replaced by these. Only host code has them: kernels
// use the CUDA functions.
#define EMU_HOST_ATOMICS(bits, type)                                                        \
  type __tsan_atomic##bits##_load(const type* a, int) {                                     \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                            \
  }                                                                                         \
  void __tsan_atomic##bits##_store(type* a, type v, int) {                                  \
    __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                               \
  }                                                                                         \
  type __tsan_atomic##bits##_exchange(type* a, type v, int) {                               \
    return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                     \
  }                                                                                         \
  type __tsan_atomic##bits##_fetch_add(type* a, type v, int) {                              \
    return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST);                                      \
  }                                                                                         \
  type __tsan_atomic##bits##_fetch_sub(type* a, type v, int) {                              \
    return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST);                                      \
  }                                                                                         \
  type __tsan_atomic##bits##_fetch_and(type* a, type v, int) {                              \
    return __atomic_fetch_and(a, v, __ATOMIC_SEQ_CST);                                      \
  }                                                                                         \
  type __tsan_atomic##bits##_fetch_or(type* a, type v, int) {                               \
    return __atomic_fetch_or(a, v, __ATOMIC_SEQ_CST);                                       \
  }                                                                                         \
  type __tsan_atomic##bits##_fetch_xor(type* a, type v, int) {                              \
    return __atomic_fetch_xor(a, v, __ATOMIC_SEQ_CST);                                      \
  }                                                                                         \
  bool __tsan_atomic##bits##_compare_exchange_strong(type* a, type* c, type v, int, int) {  \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                         \
  bool __tsan_atomic##bits##_compare_exchange_weak(type* a, type* c, type v, int, int) {    \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }
EMU_HOST_ATOMICS(8, uint8_t)
EMU_HOST_ATOMICS(16, uint16_t)
EMU_HOST_ATOMICS(32, uint32_t)
EMU_HOST_ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"

#endif
