// Counting of global memory traffic in warp requests of 32-byte sectors.
//
// Lanes run one after another, so the k-th execution of an access instruction by each lane is
// collected until all lanes of the warp have made it, or the block ends.
#include <algorithm>

#include "state.h"

namespace emu::internal {
namespace {

constexpr uintptr_t kSector = 32;

std::unordered_map<void*, std::unique_ptr<Site>> all_sites;
std::vector<Site*> sites_by_id{nullptr};  // id 0 means unknown

struct CacheEntry {
  void* pc = nullptr;
  Site* site = nullptr;
};
constexpr size_t kCacheEntries = 4096;
CacheEntry site_cache[kCacheEntries];

int width_index(size_t size) {
  switch (size) {
    case 1:
      return kWidth1;
    case 2:
      return kWidth2;
    case 4:
      return kWidth4;
    case 8:
      return kWidth8;
    case 16:
      return kWidth16;
    default:
      return kWidthOther;
  }
}

uint32_t bytes_mask(uintptr_t first, uintptr_t last) {  // of one sector, both included
  return (~0u >> (31 - (last - first))) << first;
}

// The bytes of a sector that belong to the allocation.
uint32_t valid_mask(uintptr_t sector, const Region& region) {
  const uintptr_t begin = sector * kSector;
  const uintptr_t first = std::max(begin, region.begin) - begin;
  const uintptr_t last = std::min(begin + kSector, region.end) - 1 - begin;
  return first < kSector && last < kSector && first <= last ? bytes_mask(first, last) : ~0u;
}

struct SectorUse {
  uintptr_t sector;
  uint32_t mask;
};

// All (sector, bytes) pairs of a request, one for each lane and sector.
void collect(const Request& request, std::vector<SectorUse>& uses) {
  uses.clear();
  for (uint32_t lane = 0; lane < request.lanes; ++lane) {
    uintptr_t begin = request.address[lane];
    const uintptr_t end = begin + request.size;
    while (begin < end) {
      const uintptr_t sector = begin / kSector;
      const uintptr_t stop = std::min(end, (sector + 1) * kSector);
      uses.push_back({sector, bytes_mask(begin % kSector, (stop - 1) % kSector)});
      begin = stop;
    }
  }
}

void add_sector(Traffic& traffic, const Region& region, uintptr_t sector, uint32_t mask) {
  ++traffic.sectors;
  traffic.used_bytes += static_cast<uint64_t>(__builtin_popcount(mask));
  const uint32_t valid = mask == ~0u ? mask : valid_mask(sector, region);
  traffic.full_sectors += (mask & valid) == valid;
}

void finish_request(const Site& site, const Request& request) {
  static std::vector<SectorUse> uses;
  Traffic& traffic = site.is_write ? g.totals->counters.write : g.totals->counters.read;
  ++traffic.requests;
  traffic.bytes += uint64_t{request.size} * request.lanes;
  traffic.accesses_by_width[width_index(request.size)] += request.lanes;
  collect(request, uses);
  uintptr_t low = ~uintptr_t{0}, high = 0;
  for (const SectorUse& use : uses) {
    low = std::min(low, use.sector);
    high = std::max(high, use.sector);
  }
  constexpr uintptr_t kWindow = 64;
  if (high - low < kWindow) {
    uint32_t masks[kWindow] = {};
    for (const SectorUse& use : uses) masks[use.sector - low] |= use.mask;
    for (uintptr_t i = 0; i <= high - low; ++i) {
      if (masks[i] != 0) add_sector(traffic, *site.region, low + i, masks[i]);
    }
    return;
  }
  std::sort(uses.begin(), uses.end(),
            [](const SectorUse& a, const SectorUse& b) { return a.sector < b.sector; });
  for (size_t i = 0; i < uses.size();) {
    const uintptr_t sector = uses[i].sector;
    uint32_t mask = 0;
    for (; i < uses.size() && uses[i].sector == sector; ++i) mask |= uses[i].mask;
    add_sector(traffic, *site.region, sector, mask);
  }
}

void mark_sectors(Region& region, uintptr_t address, size_t size, bool is_write) {
  if (EMU_UNLIKELY(region.launch_stamp != g.launch_stamp)) {
    region.launch_stamp = g.launch_stamp;
    const size_t sectors = (region.end + kSector - 1) / kSector - region.begin / kSector;
    region.read_sectors.assign(sectors / 64 + 1, 0);
    region.written_sectors.assign(sectors / 64 + 1, 0);
  }
  auto& bits = is_write ? region.written_sectors : region.read_sectors;
  Traffic& traffic = is_write ? g.totals->counters.write : g.totals->counters.read;
  const uintptr_t origin = region.begin / kSector;
  for (uintptr_t s = address / kSector; s <= (address + size - 1) / kSector; ++s) {
    uint64_t& word = bits[(s - origin) / 64];
    const uint64_t bit = uint64_t{1} << ((s - origin) % 64);
    traffic.unique_sectors += (word & bit) == 0;
    word |= bit;
  }
}

void open_site(Site& site, bool is_write) {
  site.block_stamp = g.block_stamp;
  site.is_write = is_write;
  site.executions.assign(g.block_threads, 0);
  site.warps.resize(kMaxThreads / kWarp);
  for (WarpRequests& warp : site.warps) {
    warp.first = warp.done = 0;
    warp.requests.clear();
  }
  g.active_sites.push_back(&site);
}

}  // namespace

Site* find_site(void* pc) {
  const auto key = reinterpret_cast<uintptr_t>(pc);
  CacheEntry& entry = site_cache[(key ^ (key >> 12)) % kCacheEntries];
  if (EMU_LIKELY(entry.pc == pc)) return entry.site;
  std::unique_ptr<Site>& site = all_sites[pc];
  if (!site) {
    site = std::make_unique<Site>();
    site->pc = pc;
    site->id = static_cast<uint32_t>(sites_by_id.size());
    sites_by_id.push_back(site.get());
  }
  entry = {pc, site.get()};
  return site.get();
}

Site* site_by_id(uint32_t id) { return id < sites_by_id.size() ? sites_by_id[id] : nullptr; }

void count_global(Site& site, Region& region, uintptr_t address, size_t size, bool is_write) {
  if (EMU_UNLIKELY(site.block_stamp != g.block_stamp)) open_site(site, is_write);
  mark_sectors(region, address, size, is_write);
  const uint32_t flat = g.current->flat;
  const uint32_t execution = site.executions[flat]++;
  WarpRequests& warp = site.warps[flat / kWarp];
  const uint32_t index = execution - warp.first;
  if (index >= warp.requests.size()) warp.requests.resize(index + 1);
  Request& request = warp.requests[index];
  request.size = static_cast<uint32_t>(size);
  request.address[request.lanes++] = address;
  const uint32_t existing = g.warps[flat / kWarp].existing;
  if (request.lanes != static_cast<uint32_t>(__builtin_popcount(existing))) return;
  finish_request(site, request);
  request.lanes = 0;
  // Requests complete in order, as each lane makes them in order.
  if (++warp.done == warp.requests.size()) {
    warp.first += warp.done;
    warp.done = 0;
    warp.requests.clear();
  }
}

void finish_block_requests() {
  for (Site* site : g.active_sites) {
    for (WarpRequests& warp : site->warps) {
      for (const Request& request : warp.requests) {
        if (request.lanes > 0) finish_request(*site, request);
      }
      warp.requests.clear();
    }
  }
  g.active_sites.clear();
}

Totals& totals_for(const void* kernel, const char* name) {
  for (Totals& totals : g.totals_list) {
    if (kernel != nullptr ? totals.kernel == kernel : totals.counters.name == name) return totals;
  }
  Totals& totals = g.totals_list.emplace_back();
  totals.kernel = kernel;
  if (name != nullptr) totals.counters.name = totals.counters.signature = name;
  return totals;
}

}  // namespace emu::internal
