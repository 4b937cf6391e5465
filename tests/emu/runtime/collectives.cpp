// Warp-wide operations. The lanes named by a mask meet: each leaves its operand and waits, the last
// to arrive computes every lane's result.
#include "state.h"

namespace emu::internal {
namespace {

using abi::Collective;

[[noreturn]] void bad_mask(const Thread& self, uint32_t mask, const std::string& why) {
  char text[32];
  std::snprintf(text, sizeof(text), "mask 0x%08x ", mask);
  FaultReport report;
  report.fault = Fault::kBadMask;
  report.thread = self.flat;
  report.detail = text + why;
  fail(report);
}

int shuffle_source(Collective op, int lane, int argument, int width) {
  const int segment = lane & ~(width - 1);
  const int last = segment + width - 1;
  switch (op) {
    case Collective::kShuffle:
      return segment + (argument & (width - 1));
    case Collective::kShuffleUp:
      return lane - argument >= segment ? lane - argument : lane;
    case Collective::kShuffleDown:
      return lane + argument <= last ? lane + argument : lane;
    default:
      return (lane ^ argument) <= last ? lane ^ argument : lane;
  }
}

template <class Combine>
uint64_t fold(const Thread* lanes, uint32_t mask, uint64_t start, Combine combine) {
  uint64_t total = start;
  bool first = true;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const uint64_t value = lanes[__builtin_ctz(rest)].value;
    total = first ? value : combine(total, value);
    first = false;
  }
  return total;
}

uint64_t reduce(Collective op, const Thread* lanes, uint32_t mask) {
  auto s = [](uint64_t v) { return static_cast<int32_t>(v); };
  auto u = [](uint64_t v) { return static_cast<uint32_t>(v); };
  switch (op) {
    case Collective::kReduceAddU32:
      return fold(lanes, mask, 0, [&](uint64_t a, uint64_t b) { return uint64_t{u(a + b)}; });
    case Collective::kReduceMinS32:
      return fold(lanes, mask, 0, [&](uint64_t a, uint64_t b) { return s(b) < s(a) ? b : a; });
    case Collective::kReduceMaxS32:
      return fold(lanes, mask, 0, [&](uint64_t a, uint64_t b) { return s(b) > s(a) ? b : a; });
    case Collective::kReduceMinU32:
      return fold(lanes, mask, 0, [&](uint64_t a, uint64_t b) { return u(b) < u(a) ? b : a; });
    case Collective::kReduceMaxU32:
      return fold(lanes, mask, 0, [&](uint64_t a, uint64_t b) { return u(b) > u(a) ? b : a; });
    case Collective::kReduceAnd:
      return fold(lanes, mask, 0, [](uint64_t a, uint64_t b) { return a & b; });
    case Collective::kReduceOr:
      return fold(lanes, mask, 0, [](uint64_t a, uint64_t b) { return a | b; });
    default:
      return fold(lanes, mask, 0, [](uint64_t a, uint64_t b) { return a ^ b; });
  }
}

uint64_t ballot(const Thread* lanes, uint32_t mask, uint64_t wanted) {
  uint32_t votes = 0;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (lanes[lane].value == wanted) votes |= 1u << lane;
  }
  return votes;
}

void note_warp_barrier(Warp& warp, uint32_t mask) {
  ++warp.clock;
  if (mask == (warp.existing & ~warp.exited)) {
    warp.full_sync = warp.clock;
    return;
  }
  if (!warp.pair_sync) warp.pair_sync = std::make_unique<uint16_t[]>(kWarp * kWarp);
  for (uint32_t a = mask; a != 0; a &= a - 1) {
    uint16_t* row = &warp.pair_sync[__builtin_ctz(a) * kWarp];
    for (uint32_t b = mask; b != 0; b &= b - 1) row[__builtin_ctz(b)] = warp.clock;
  }
}

// Sets the result of every lane in the mask.
void complete(Collective op, Warp& warp, Thread* lanes, uint32_t mask) {
  uint64_t common = 0;
  switch (op) {
    case Collective::kSync:
      note_warp_barrier(warp, mask);
      return;
    case Collective::kShuffle:
    case Collective::kShuffleUp:
    case Collective::kShuffleDown:
    case Collective::kShuffleXor:
      for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        const int source = shuffle_source(op, lane, lanes[lane].argument, lanes[lane].width);
        // A lane outside the mask has no defined value to give; all ones is a NaN where it matters.
        lanes[lane].result = (mask >> source & 1) != 0 ? lanes[source].value : ~uint64_t{0};
      }
      return;
    case Collective::kMatchAny:
      for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        lanes[lane].result = ballot(lanes, mask, lanes[lane].value);
      }
      return;
    case Collective::kBallot:
      common = ballot(lanes, mask, 1);
      break;
    default:
      common = reduce(op, lanes, mask);
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    lanes[__builtin_ctz(rest)].result = common;
  }
}

Group& join_group(Warp& warp, const Thread& self, Collective op, uint32_t mask) {
  for (int i = 0; i < warp.groups; ++i) {
    Group& group = warp.group[i];
    if (group.mask != mask) continue;
    if (group.op != op) {
      FaultReport report;
      report.fault = Fault::kCollectiveMismatch;
      report.thread = self.flat;
      report.detail = "lanes of one mask meet in different warp operations";
      fail(report);
    }
    return group;
  }
  Group& group = warp.group[warp.groups++];
  group = Group{mask, 0, op};
  return group;
}

}  // namespace
}  // namespace emu::internal

namespace emu::abi {

using namespace emu::internal;

uint64_t collective(Collective op, unsigned mask, uint64_t value, int argument, int width,
                    const char* file, int line) {
  Thread& self = *g.current;
  Warp& warp = g.warps[self.flat / kWarp];
  Thread* lanes = &g.threads[self.flat - self.flat % kWarp];
  const uint32_t lane_bit = 1u << (self.flat % kWarp);
  self.file = file;
  self.line = line;
  if (EMU_UNLIKELY((mask & lane_bit) == 0)) bad_mask(self, mask, "does not name the calling lane");
  if (EMU_UNLIKELY((mask & ~warp.existing) != 0)) {
    bad_mask(self, mask, "names lanes that the block does not have");
  }
  if (EMU_UNLIKELY((mask & warp.exited) != 0)) bad_mask(self, mask, "names lanes that have exited");
  if (EMU_UNLIKELY(width < 1 || width > kWarp || (width & (width - 1)) != 0)) {
    trap("a shuffle's width must be a power of two of at most 32", file, line);
  }
  self.value = value;
  self.argument = argument;
  self.width = width;
  self.mask = mask;
  Group& group = join_group(warp, self, op, mask);
  group.arrived |= lane_bit;
  if (group.arrived != mask) {
    suspend_current(Status::kCollective, file, line);
    return self.result;
  }
  group = warp.group[--warp.groups];
  complete(op, warp, lanes, mask);
  ++g.totals->counters.warp_collectives;
  for (uint32_t rest = mask & ~lane_bit; rest != 0; rest &= rest - 1) {
    Thread& lane = lanes[__builtin_ctz(rest)];
    lane.status = Status::kReady;
    g.ready.push_back(&lane);
  }
  return self.result;
}

unsigned active_mask() {
  const Warp& warp = g.warps[g.current->flat / kWarp];
  return warp.existing & ~warp.exited;
}

void trap(const char* what, const char* file, int line) {
  FaultReport report;
  report.fault = Fault::kTrap;
  report.thread = g.current->flat;
  report.detail = std::string(what) + " at " + file + ":" + std::to_string(line);
  fail(report);
}

}  // namespace emu::abi
