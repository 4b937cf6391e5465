// Launches: checks a configuration as the CUDA runtime does, runs the grid block by block, and
// keeps the totals. Also the public functions on configuration and counters.
#include <numeric>
#include <set>

#include "state.h"

namespace emu::internal {

size_t dynamic_shared_limit(const void* kernel);  // runtime_api.cpp
cudaError_t set_status(cudaError_t status);

namespace {

constexpr uint32_t kOrders = 8;

cudaError_t check_configuration(const cudaLaunchConfig_st& config, const void* kernel) {
  const uint3 grid = config.gridDim, block = config.blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 ||
      block.z > 64 || block.x * block.y * block.z > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > dynamic_shared_limit(kernel)) return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    const auto& cluster = attribute.val.clusterDim;
    if (attribute.id == cudaLaunchAttributeClusterDimension &&
        uint64_t{cluster.x} * cluster.y * cluster.z > 1) {
      return cudaErrorNotSupported;
    }
  }
  return cudaSuccess;
}

void seed_random(uint64_t seed) {
  g.random = (seed + 1) * 0x9E3779B97F4A7C15ull ^ (g.launch_stamp * 0xD1B54A32D192ED03ull);
  if (g.random == 0) g.random = 1;
}

void make_orders() {
  std::vector<uint16_t> order(g.block_threads);
  std::iota(order.begin(), order.end(), uint16_t{0});
  g.orders.clear();
  if (g.config.seed == 0) {
    // The list of ready threads is taken from its end.
    g.orders.emplace_back(order.rbegin(), order.rend());
    return;
  }
  for (uint32_t i = 0; i < kOrders; ++i) {
    for (size_t j = order.size(); j > 1; --j) std::swap(order[j - 1], order[next_random() % j]);
    g.orders.push_back(order);
  }
}

// Visits 0 .. count-1 in an order that needs no memory: steps of a length coprime to the count.
struct BlockOrder {
  uint64_t count, start = 0, step = 1;

  explicit BlockOrder(uint64_t blocks) : count(blocks) {
    if (g.config.seed == 0 || blocks < 3) {
      if (g.config.seed != 0 && blocks == 2) start = next_random() % 2;
      return;
    }
    start = next_random() % blocks;
    do {
      step = 1 + next_random() % (blocks - 1);
    } while (std::gcd(step, blocks) != 1);
  }
  uint64_t at(uint64_t i) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step + start) % count);
  }
};

void run_grid() {
  const uint3 grid = g.grid_dim;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const BlockOrder order(blocks);
  for (uint64_t i = 0; i < blocks && g.report.fault == Fault::kNone; ++i) {
    const uint64_t flat = order.at(i);
    run_block(uint3{static_cast<uint32_t>(flat % grid.x),
                    static_cast<uint32_t>(flat / grid.x % grid.y),
                    static_cast<uint32_t>(flat / grid.x / grid.y)});
  }
}

void begin_launch(const cudaLaunchConfig_st& config, const void* kernel) {
  ++g.launch_stamp;
  ++g.interval;
  g.launch_base = g.interval + 1;
  g.kernel = kernel;
  g.grid_dim = config.gridDim;
  g.block_dim = config.blockDim;
  g.block_threads = static_cast<int>(g.block_dim.x * g.block_dim.y * g.block_dim.z);
  g.static_bytes = 0;
  g.race_check = g.config.race_check;
  g.count = g.config.count;
  g.check_uninitialized = g.config.check_uninitialized;
  g.last_fault = g.report.fault;
  g.report = FaultReport{};
  g.last_error.clear();
  g.totals = &totals_for(kernel, nullptr);
  seed_random(g.config.seed);
  make_orders();
  create_stacks();
  reset_order_between_blocks();
  prepare_shared(kernel, config.dynamicSmemBytes);
}

void end_launch() {
  KernelCounters& counters = g.totals->counters;
  const uint64_t blocks = uint64_t{g.grid_dim.x} * g.grid_dim.y * g.grid_dim.z;
  ++counters.launches;
  counters.blocks += blocks;
  counters.threads += blocks * static_cast<uint64_t>(g.block_threads);
  counters.static_shared_bytes = std::max<uint64_t>(counters.static_shared_bytes, g.static_bytes);
  counters.dynamic_shared_bytes =
      std::max<uint64_t>(counters.dynamic_shared_bytes, g.dynamic_bytes);
}

const char* atomic_name(int op) {
  static const char* const names[] = {"atomicAdd", "atomicMin", "atomicMax",  "atomicAnd",
                                      "atomicOr",  "atomicXor", "atomicExch", "atomicCAS",
                                      "atomicInc", "atomicDec"};
  return names[op];
}

const char* type_name(int type) {
  static const char* const names[] = {"s32", "u32", "u64", "s64", "f32", "f64"};
  return names[type];
}

// "void a::b<c>(d)" -> "b"
std::string base_name(std::string signature) {
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at; (at = signature.find(anonymous)) != std::string::npos;) {
    signature.erase(at, anonymous.size());
  }
  const std::string head = signature.substr(0, signature.find_first_of("<("));
  const size_t start = head.find_last_of(": ");
  return start == std::string::npos ? head : head.substr(start + 1);
}

}  // namespace
}  // namespace emu::internal

namespace emu::abi {

int launch(const cudaLaunchConfig_st& config, const void* kernel, void (*run_thread)(void*),
           void* arguments, size_t argument_bytes) {
  using namespace internal;
  std::lock_guard<std::mutex> lock(g.mutex);
  if (const cudaError_t status = check_configuration(config, kernel); status != cudaSuccess) {
    return set_status(status);
  }
  begin_launch(config, kernel);
  g.run_thread = run_thread;
  g.arguments = arguments;
  g.argument_bytes = argument_bytes;
  g.running = true;
  run_grid();
  g.running = false;
  end_launch();
  if (g.report.fault != Fault::kNone) {
    g.last_error = describe(g.report);
    throw KernelError(g.last_error);
  }
  return cudaSuccess;
}

}  // namespace emu::abi

namespace emu {

using namespace internal;

void configure(const Config& config) { g.config = config; }
Config configuration() { return g.config; }
std::string last_error() { return g.last_error; }
void reset_counters() { g.totals_list.clear(); }

std::vector<KernelCounters> counters() {
  std::vector<KernelCounters> result;
  for (const Totals& totals : g.totals_list) {
    KernelCounters counters = totals.counters;
    if (totals.kernel != nullptr) {
      counters.signature = function_name(totals.kernel);
      counters.name = base_name(counters.signature);
    }
    for (int op = 0; op < 10; ++op) {
      for (int type = 0; type < 6; ++type) {
        const uint64_t count = totals.atomics[op][type];
        if (count == 0) continue;
        counters.atomics[std::string(atomic_name(op)) + "." + type_name(type)] = count;
        if (type >= 4) counters.float_atomics += count;
      }
    }
    result.push_back(std::move(counters));
  }
  return result;
}

}  // namespace emu
