// Data races: two accesses of one byte, at least one of them a write and not both atomic, that no
// barrier, warp barrier, end of launch or fence-and-atomic chain puts in an order.
//
// Within a block the interval between barriers decides, between lanes of a warp also __syncwarp.
// Between blocks of a launch the only order is the one of the last-block pattern: write, fence,
// atomic on one side; atomic on the same location, then read on the other.
#include <algorithm>

#include "state.h"

namespace emu::internal {
namespace {

uint32_t block_of(uint32_t interval) {
  const auto& first = g.block_first_interval;
  return static_cast<uint32_t>(std::upper_bound(first.begin(), first.end(), interval) -
                               first.begin() - 1);
}

bool is_visible(const Acquisition& acquisition) {
  return acquisition.thread == g.current->flat || acquisition.interval < g.interval;
}

bool released_to_us(const AccessRecord& prior) {
  const uint32_t block = block_of(prior.interval);
  for (const Acquisition& acquisition : g.acquired) {
    if (!is_visible(acquisition)) continue;
    const auto& releases = acquisition.variable->releases;
    const auto end = releases.begin() + static_cast<std::ptrdiff_t>(acquisition.count);
    auto it = std::lower_bound(releases.begin(), end, block,
                               [](const Release& r, uint32_t b) { return r.block < b; });
    for (; it != end && it->block == block; ++it) {
      if (prior.interval < it->upto) return true;
      if ((prior.thread & kThreadMask) == it->thread && prior.interval <= it->own_upto) return true;
    }
  }
  return false;
}

// Both in the running interval of one block. `prior` may stand for several reading lanes.
bool ordered_in_interval(const AccessRecord& prior) {
  const uint32_t self = g.current->flat;
  const uint32_t other = prior.thread & kThreadMask;
  if ((prior.thread & kManyInBlock) != 0) return false;
  if (self == other && (prior.thread & kManyInWarp) == 0) return true;
  if (self / kWarp != other / kWarp) return false;
  const Warp& warp = g.warps[self / kWarp];
  if (warp.full_sync > prior.warp_clock) return true;
  return (prior.thread & kManyInWarp) == 0 && warp.pair_sync &&
         warp.pair_sync[(self % kWarp) * kWarp + other % kWarp] > prior.warp_clock;
}

Fault conflict(const AccessRecord& prior, bool is_atomic, bool is_shared) {
  if (prior.interval < (is_shared ? g.block_base : g.launch_base)) return Fault::kNone;
  if (is_atomic && (prior.thread & kAtomic) != 0) return Fault::kNone;
  if (prior.interval >= g.block_base) {
    const bool passed = prior.interval < g.interval || ordered_in_interval(prior);
    if (!passed) return Fault::kRace;
    // Readers of other blocks that this block's own read has replaced in the record.
    if ((prior.thread & kOtherBlocks) == 0) return Fault::kNone;
    const bool acquired = std::any_of(g.acquired.begin(), g.acquired.end(), is_visible);
    return acquired ? Fault::kNone : Fault::kRaceBetweenBlocks;
  }
  return released_to_us(prior) ? Fault::kNone : Fault::kRaceBetweenBlocks;
}

void note_read(AccessRecord& read, AccessRecord mine, bool is_shared) {
  if (read.interval == g.interval) {
    const uint32_t other = read.thread & kThreadMask;
    uint16_t flags = read.thread & (kManyInWarp | kManyInBlock | kOtherBlocks);
    const uint32_t warp = g.current->flat / kWarp;
    // Readers that the whole warp has waited for come before all that it does from now on.
    const bool passed = other / kWarp == warp && (flags & kManyInBlock) == 0 &&
                        g.warps[warp].full_sync > read.warp_clock;
    if (passed) {
      flags &= kOtherBlocks;
    } else if (other != g.current->flat) {
      flags |= other / kWarp == g.current->flat / kWarp ? kManyInWarp : kManyInBlock;
    }
    mine.thread |= flags;
  } else if (!is_shared && read.interval >= g.launch_base) {
    if (read.interval < g.block_base || (read.thread & kOtherBlocks) != 0) {
      mine.thread |= kOtherBlocks;
    }
  }
  read = mine;
}

[[noreturn]] void report_race(Fault fault, const Site& site, Region& region, uintptr_t address,
                              size_t size, bool is_write, bool is_atomic, const AccessRecord& other,
                              bool other_was_write) {
  FaultReport report;
  report.fault = fault;
  report.address = address;
  report.size = size;
  report.is_write = is_write;
  report.is_atomic = is_atomic;
  report.pc = site.pc;
  report.region = &region;
  report.thread = g.current->flat;
  report.other = other;
  report.other_was_write = other_was_write;
  fail(report);
}

}  // namespace

void check_race(Site& site, Region& region, uintptr_t address, size_t size, bool is_write,
                bool is_atomic) {
  Shadow& shadow = region.shadow;
  const int alignment = __builtin_ctzll(address | size);
  if (EMU_UNLIKELY(alignment < shadow.shift)) shadow.refine(alignment);
  const bool is_shared = region.space == Space::kShared;
  const uint32_t self = g.current->flat;
  const AccessRecord mine{g.interval,
                          static_cast<uint16_t>(self | (is_atomic ? unsigned{kAtomic} : 0u)),
                          g.warps[self / kWarp].clock, site.id};
  ShadowCell* const begin = shadow.cells + ((address - shadow.base) >> shadow.shift);
  ShadowCell* const end = begin + (size >> shadow.shift);
  const uint32_t written_since = is_shared ? g.block_base : 1;
  bool any_written = is_write && !is_atomic;
  for (ShadowCell* cell = begin; cell != end; ++cell) {
    if (cell->write.interval >= g.launch_base) {
      const Fault fault = conflict(cell->write, is_atomic, is_shared);
      if (EMU_UNLIKELY(fault != Fault::kNone)) {
        report_race(fault, site, region, address, size, is_write, is_atomic, cell->write, true);
      }
    }
    any_written |= cell->write.interval >= written_since;
    if (!is_write) {
      note_read(cell->read, mine, is_shared);
      continue;
    }
    if (cell->read.interval >= g.launch_base) {
      const Fault fault = conflict(cell->read, false, is_shared);
      if (EMU_UNLIKELY(fault != Fault::kNone)) {
        report_race(fault, site, region, address, size, is_write, is_atomic, cell->read, false);
      }
    }
    cell->write = mine;
  }
  // Padding inside a structure is never written; a wholly unwritten access is no padding.
  if (EMU_UNLIKELY(!any_written) && (is_shared || region.tracks_initialization) &&
      g.check_uninitialized) {
    report_race(Fault::kUninitialized, site, region, address, size, is_write, is_atomic, {}, false);
  }
  if (is_write && !is_atomic && !is_shared && !g.current->unfenced_write) {
    g.current->unfenced_write = true;
    ++g.unfenced_writers;
  }
}

// An atomic operation on global memory by the running thread: it sees what earlier blocks have
// released there and, if the thread has fenced, releases what the block has written.
void note_atomic(uintptr_t address) {
  const Thread& self = *g.current;
  auto it = g.sync_variables.find(address);
  if (it != g.sync_variables.end() && !it->second.releases.empty()) {
    g.acquired.push_back(Acquisition{&it->second, it->second.releases.size(), g.interval,
                                     static_cast<uint16_t>(self.flat)});
  }
  if (self.fence_interval == 0) return;
  if (it == g.sync_variables.end()) it = g.sync_variables.try_emplace(address).first;
  it->second.releases.push_back(Release{static_cast<uint32_t>(g.block_first_interval.size() - 1),
                                        std::max(self.fence_interval, g.clean_upto),
                                        self.unfenced_write ? self.fence_interval : g.interval,
                                        static_cast<uint16_t>(self.flat)});
}

void reset_order_between_blocks() {
  g.block_first_interval.clear();
  g.sync_variables.clear();
  g.acquired.clear();
}

}  // namespace emu::internal

namespace emu::abi {

void fence() {
  using internal::g;
  internal::Thread& self = *g.current;
  self.fence_interval = g.interval;
  if (self.unfenced_write) {
    self.unfenced_write = false;
    --g.unfenced_writers;
  }
}

}  // namespace emu::abi
