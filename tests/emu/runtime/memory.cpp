// The memory map of the emulated device: allocations with exact bounds, shared memory, and the
// shadow records of the race checks.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emu::internal {
namespace {

constexpr size_t kRedZone = 64 * 1024;
constexpr char kDynamicPrefix[] = "emu_dynamic_shared";

using RegionMap = std::map<uintptr_t, std::unique_ptr<Region>>;
RegionMap global_regions;
RegionMap shared_regions;  // rebuilt where the module or the host thread changes
std::vector<Region*> dynamic_regions;
const Module* shared_module = nullptr;
std::pair<uintptr_t, uintptr_t> shared_segment{0, 0};

Region* find_in(const RegionMap& regions, uintptr_t address) {
  auto it = regions.upper_bound(address);
  if (it == regions.begin()) return nullptr;
  Region* region = std::prev(it)->second.get();
  return address < region->end ? region : nullptr;
}

Region& insert_global(uintptr_t begin, size_t bytes, const std::string& name) {
  auto next = global_regions.lower_bound(begin);
  const bool hits_next = next != global_regions.end() && next->first < begin + bytes;
  const bool hits_previous = next != global_regions.begin() && std::prev(next)->second->end > begin;
  if (hits_next || hits_previous) {
    const Region& other = hits_previous ? *std::prev(next)->second : *next->second;
    throw std::invalid_argument("emulator: '" + name + "' overlaps '" + other.name +
                                "'; register the memory that holds both once");
  }
  auto region = std::make_unique<Region>();
  region->begin = begin;
  region->end = begin + bytes;
  region->name = name;
  region->shadow.create(region->begin, region->end);
  ++g.region_version;
  return *(global_regions[begin] = std::move(region));
}

Region& insert_shared(uintptr_t begin, size_t bytes, size_t shadow_bytes, std::string name) {
  auto region = std::make_unique<Region>();
  region->begin = begin;
  region->end = begin + bytes;
  region->space = Space::kShared;
  region->name = std::move(name);
  region->shadow.create(begin, begin + shadow_bytes);
  return *(shared_regions[begin] = std::move(region));
}

void build_shared(const Module& module) {
  shared_regions.clear();
  dynamic_regions.clear();
  ++g.region_version;
  const uintptr_t base = shared_segment.first;
  if (base == 0) return;
  std::vector<const ModuleSymbol*> storages;
  for (const ModuleSymbol& symbol : module.thread_locals) {
    if (symbol.name.rfind(kDynamicPrefix, 0) != 0) continue;
    storages.push_back(&symbol);
    dynamic_regions.push_back(
        &insert_shared(base + symbol.value, 0, symbol.size, "dynamic shared memory"));
  }
  for (const ModuleSymbol& symbol : module.thread_locals) {
    bool is_alias = symbol.size == 0;  // a kernel's own name for the dynamic memory
    for (const ModuleSymbol* storage : storages) {
      is_alias |= symbol.value - storage->value < storage->size;
    }
    if (is_alias) continue;
    const std::string name = demangle(symbol.name);  // "kernel(arguments)::variable"
    const size_t separator = name.rfind("::");
    insert_shared(base + symbol.value, symbol.size, symbol.size,
                  separator == std::string::npos ? name : name.substr(separator + 2));
  }
}

void set_dynamic_bytes() {
  for (Region* region : dynamic_regions) {
    region->end = region->begin + g.dynamic_bytes;
#if defined(__SANITIZE_ADDRESS__)
    auto* memory = reinterpret_cast<char*>(region->begin);
    __asan_unpoison_memory_region(memory, kOptInSharedLimit);
    __asan_poison_memory_region(memory + g.dynamic_bytes, kOptInSharedLimit - g.dynamic_bytes);
#endif
  }
}

}  // namespace

void Shadow::create(uintptr_t begin, uintptr_t end) {
  destroy();
  base = begin & ~uintptr_t{15};
  count = ((end - base) >> shift) + 1;
  void* memory = mmap(nullptr, count * sizeof(ShadowCell), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for race records");
  cells = static_cast<ShadowCell*>(memory);
}

void Shadow::refine(int finer_shift) {
  Shadow finer;
  finer.shift = finer_shift;
  const int factor_shift = shift - finer_shift;
  finer.create(base, base + (count << shift));
  for (size_t i = 0; i < count; ++i) {
    if (cells[i].write.interval == 0 && cells[i].read.interval == 0) continue;
    for (size_t j = 0; j < size_t{1} << factor_shift; ++j) {
      finer.cells[(i << factor_shift) + j] = cells[i];
    }
  }
  destroy();
  *this = finer;
}

void Shadow::destroy() {
  if (cells != nullptr) munmap(cells, count * sizeof(ShadowCell));
  cells = nullptr;
}

Region* find_global(uintptr_t address) { return find_in(global_regions, address); }
Region* find_shared(uintptr_t address) { return find_in(shared_regions, address); }

Region* nearest_region(uintptr_t address) {
  Region* best = nullptr;
  uintptr_t best_distance = 1 << 20;
  for (const RegionMap* regions : {&global_regions, &shared_regions}) {
    auto it = regions->upper_bound(address);
    if (it != regions->end() && it->first - address < best_distance) {
      best_distance = it->first - address;
      best = it->second.get();
    }
    if (it == regions->begin()) continue;
    Region* before = std::prev(it)->second.get();
    const uintptr_t distance = address < before->end ? 0 : address - before->end;
    if (distance < best_distance) {
      best_distance = distance;
      best = before;
    }
  }
  return best;
}

bool is_readable_constant(uintptr_t address, size_t size) {
  if (shared_module == nullptr) return false;
  const auto constants = shared_module->constants;
  if (address >= constants.first && address + size <= constants.second) return true;
  for (const auto& [begin, end] : shared_module->read_only) {
    if (address >= begin && address + size <= end) return true;
  }
  return false;
}

void prepare_shared(const void* kernel, size_t dynamic_bytes) {
  const Module& module = module_of(kernel);
  const auto segment = thread_local_segment(module);
  g.dynamic_bytes = dynamic_bytes;
  if (&module != shared_module || segment != shared_segment) {
    shared_module = &module;
    shared_segment = segment;
    build_shared(module);
  }
  set_dynamic_bytes();
}

void fill_shared(Region& region) {
  std::memset(reinterpret_cast<void*>(region.begin), 0xFF, region.end - region.begin);
}

void fill_all_shared() {
  for (const auto& [begin, region] : shared_regions) fill_shared(*region);
}

bool refresh_shared() {
  if (shared_module == nullptr) return false;
  const auto segment = thread_local_segment(*shared_module);
  if (segment == shared_segment) return false;
  shared_segment = segment;
  build_shared(*shared_module);
  set_dynamic_bytes();
  return true;
}

void mark_written(Region& region, uintptr_t address, size_t bytes) {
  if (bytes == 0) return;
  Shadow& shadow = region.shadow;
  const size_t first = (address - shadow.base) >> shadow.shift;
  const size_t last = (address + bytes - 1 - shadow.base) >> shadow.shift;
  for (size_t i = first; i <= last; ++i) {
    shadow.cells[i] = ShadowCell{};
    shadow.cells[i].write.interval = 1;
  }
}

}  // namespace emu::internal

namespace emu {

using namespace internal;

namespace {

// Page-aligned memory between inaccessible red zones. Under AddressSanitizer it comes from its own
// allocator, which then knows the exact bounds.
struct Mapping {
  void* memory;
  size_t bytes;
  char* begin;
};

#if defined(__SANITIZE_ADDRESS__)
Mapping map_device_memory(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) return {nullptr, 0, nullptr};
  return {memory, bytes, static_cast<char*>(memory)};
}
void unmap_device_memory(void* memory, size_t) { std::free(memory); }
#else
Mapping map_device_memory(size_t bytes) {
  const size_t usable = (bytes + 4095) & ~size_t{4095};
  const size_t mapped = usable + 2 * kRedZone;
  void* memory =
      mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return {nullptr, 0, nullptr};
  char* begin = static_cast<char*>(memory) + kRedZone;
  if (usable > 0 && mprotect(begin, usable, PROT_READ | PROT_WRITE) != 0) {
    munmap(memory, mapped);
    return {nullptr, 0, nullptr};
  }
  return {memory, mapped, begin};
}
void unmap_device_memory(void* memory, size_t bytes) { munmap(memory, bytes); }
#endif

}  // namespace

void* alloc(size_t bytes, const std::string& name) {
  const Mapping mapping = map_device_memory(bytes);
  if (mapping.memory == nullptr) {
    throw std::runtime_error("emulator: out of memory for '" + name + "'");
  }
  std::memset(mapping.begin, 0xFF, bytes);
  Region& region = insert_global(reinterpret_cast<uintptr_t>(mapping.begin), bytes, name);
  region.mapping = mapping.memory;
  region.mapping_bytes = mapping.bytes;
  region.tracks_initialization = true;
  return mapping.begin;
}

void free(void* address) {
  if (address == nullptr) return;
  auto it = global_regions.find(reinterpret_cast<uintptr_t>(address));
  if (it == global_regions.end() || it->second->mapping == nullptr) {
    throw std::invalid_argument("emulator: free() of an address that alloc() did not return");
  }
  unmap_device_memory(it->second->mapping, it->second->mapping_bytes);
  global_regions.erase(it);
  ++g.region_version;
}

void mark_initialized(void* address, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  Region* region = find_global(begin);
  if (bytes == 0) return;
  if (region == nullptr || begin + bytes > region->end) {
    throw std::invalid_argument("emulator: mark_initialized() outside any allocation");
  }
  mark_written(*region, begin, bytes);
}

void register_range(void* address, size_t bytes, const std::string& name, bool initialized) {
  if (bytes == 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  auto it = global_regions.find(begin);
  if (it != global_regions.end() && it->second->end == begin + bytes) {
    ++it->second->registrations;
    return;
  }
  insert_global(begin, bytes, name).tracks_initialization = !initialized;
}

void unregister_range(void* address) {
  auto it = global_regions.find(reinterpret_cast<uintptr_t>(address));
  if (it == global_regions.end()) return;  // an empty range was never entered
  if (it->second->mapping != nullptr) {
    throw std::invalid_argument("emulator: unregister_range() of memory from alloc()");
  }
  if (--it->second->registrations > 0) return;
  global_regions.erase(it);
  ++g.region_version;
}

}  // namespace emu
