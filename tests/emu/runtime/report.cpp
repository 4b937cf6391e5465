// The text of an error: what happened, in which kernel, block and thread, where in memory and in
// the source.
#include <cstring>

#include "state.h"

namespace emu::internal {
namespace {

std::string index_text(uint3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ")";
}

std::string hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string headline(const FaultReport& report) {
  const std::string access = std::string(report.is_atomic  ? "atomic operation"
                                         : report.is_write ? "write"
                                                           : "read") +
                             " of " + std::to_string(report.size) + " bytes";
  switch (report.fault) {
    case Fault::kOutOfBounds:
      return "out-of-bounds " + access;
    case Fault::kMisaligned:
      return "misaligned access: the address is no multiple of " + std::to_string(report.size);
    case Fault::kOtherStack:
      return access + " in another thread's local memory";
    case Fault::kUninitialized:
      return access + " that nothing has written (uninitialised)";
    case Fault::kRace:
      return "data race within a block: " + access;
    case Fault::kRaceBetweenBlocks:
      return "data race between blocks: " + access;
    case Fault::kDivergentBarrier:
      return "divergent __syncthreads: " + report.detail;
    case Fault::kBadMask:
      return "warp operation can not complete: " + report.detail;
    case Fault::kCollectiveMismatch:
      return "warp operation mismatch: " + report.detail;
    case Fault::kDeadlock:
      return "deadlock: no thread of the block can go on";
    case Fault::kStaticShared:
      return "too much shared memory: " + report.detail;
    default:
      return report.detail;
  }
}

std::string place(const FaultReport& report) {
  std::string text = "  address " + hex(report.address);
  const Region* region = report.region;
  if (region == nullptr) return text + ", in no device allocation (host memory?)";
  const std::string name = "'" + region->name + "' (" +
                           std::to_string(region->end - region->begin) + " bytes" +
                           (region->space == Space::kShared ? ", shared)" : ")");
  if (report.address >= region->end) {
    return text + ", " + std::to_string(report.address - region->end) + " bytes past the end of " +
           name;
  }
  if (report.address < region->begin) {
    return text + ", " + std::to_string(region->begin - report.address) + " bytes before " + name;
  }
  return text + ", at byte " + std::to_string(report.address - region->begin) + " of " + name;
}

std::string other_access(const FaultReport& report) {
  const Site* site = site_by_id(report.other.site);
  const uint32_t thread = report.other.thread & kThreadMask;
  const bool is_many = (report.other.thread & (kManyInWarp | kManyInBlock)) != 0;
  std::string text = "  conflicts with an earlier ";
  text += report.other_was_write ? "write" : "read";
  if ((report.other.thread & kAtomic) != 0) text += " (atomic)";
  text += " by thread " + index_text(g.threads[thread].index);
  if (is_many) text += " and others";
  if (report.fault == Fault::kRaceBetweenBlocks) text += " of another block";
  return text + "\n    at " + source_line(site != nullptr ? site->pc : nullptr);
}

// Where the threads of the block are, at most a few places.
std::string waiting_threads() {
  std::map<std::string, int> places;
  for (int i = 0; i < g.block_threads; ++i) {
    const Thread& thread = g.threads[i];
    std::string where;
    if (thread.status == Status::kExited) {
      where = "exited";
    } else if (thread.status == Status::kBarrier || thread.status == Status::kCollective) {
      where = thread.status == Status::kBarrier ? "at a block barrier, " : "at a warp operation, ";
      where += std::string(thread.file) + ":" + std::to_string(thread.line);
      if (thread.status == Status::kCollective) where += ", mask " + hex(thread.mask);
    } else {
      continue;
    }
    ++places[where];
  }
  std::string text;
  for (const auto& [where, count] : places) {
    text += "\n  " + std::to_string(count) + " threads " + where;
  }
  return text;
}

}  // namespace

std::string describe(const FaultReport& report) {
  std::string text = "emulated CUDA: " + headline(report) + "\n  kernel " +
                     function_name(g.kernel) + ", block " + index_text(report.block) + ", thread " +
                     index_text(g.threads[report.thread].index);
  if (report.address != 0) text += "\n" + place(report);
  if (report.fault == Fault::kMisaligned && !report.detail.empty()) {
    text += "\n    at " + report.detail;
  }
  if (report.pc != nullptr) text += "\n    at " + source_line(report.pc);
  if (report.fault == Fault::kRace || report.fault == Fault::kRaceBetweenBlocks) {
    text += "\n" + other_access(report);
  }
  if (report.fault == Fault::kDeadlock || report.fault == Fault::kDivergentBarrier ||
      report.fault == Fault::kBadMask || report.fault == Fault::kCollectiveMismatch) {
    text += waiting_threads();
  }
  return text;
}

}  // namespace emu::internal
