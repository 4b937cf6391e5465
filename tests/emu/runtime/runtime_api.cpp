// The CUDA runtime functions beside the launch: statuses, attributes, asynchronous copies (carried
// out at once and counted like launches).
#include <cstring>

#include "state.h"

namespace emu::internal {

namespace {

std::unordered_map<const void*, size_t> opted_in;

// False where any part of the range lies outside the device's allocations.
Region* device_range(const void* address, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  Region* region = find_global(begin);
  return region != nullptr && begin + bytes <= region->end ? region : nullptr;
}

void count_copy(const char* name, uint64_t read, uint64_t written) {
  KernelCounters& counters = totals_for(nullptr, name).counters;
  ++counters.launches;
  counters.read.bytes += read;
  counters.write.bytes += written;
}

}  // namespace

size_t dynamic_shared_limit(const void* kernel) {
  auto it = opted_in.find(kernel);
  return it == opted_in.end() ? kDefaultSharedLimit : std::max(kDefaultSharedLimit, it->second);
}

cudaError_t set_status(cudaError_t status) {
  if (status != cudaSuccess) g.last_status = status;
  return status;
}

}  // namespace emu::internal

using namespace emu::internal;

cudaError_t cudaGetLastError() {
  const cudaError_t status = g.last_status;
  g.last_status = cudaSuccess;
  return status;
}

cudaError_t cudaPeekAtLastError() { return g.last_status; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "unknown error";
  }
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > kOptInSharedLimit) {
    return set_status(cudaErrorInvalidValue);
  }
  opted_in[function] = static_cast<size_t>(value);
  return cudaSuccess;
}

// Registers and launch bounds are unknown here; static shared memory is what launches have touched.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  std::memset(attributes, 0, sizeof(*attributes));
  attributes->maxThreadsPerBlock = kMaxThreads;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(dynamic_shared_limit(function));
  for (const Totals& totals : g.totals_list) {
    if (totals.kernel == function) {
      attributes->sharedSizeBytes = totals.counters.static_shared_bytes;
    }
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  if (bytes == 0) return cudaSuccess;
  Region* region = device_range(address, bytes);
  if (region == nullptr) return set_status(cudaErrorInvalidValue);
  std::memset(address, value, bytes);
  mark_written(*region, reinterpret_cast<uintptr_t>(address), bytes);
  count_copy("cudaMemsetAsync", 0, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  if (bytes == 0) return cudaSuccess;
  Region* target = device_range(to, bytes);
  const Region* source = device_range(from, bytes);
  const bool needs_target = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool needs_source = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((needs_target && target == nullptr) || (needs_source && source == nullptr)) {
    return set_status(cudaErrorInvalidValue);
  }
  std::memmove(to, from, bytes);
  if (target != nullptr) mark_written(*target, reinterpret_cast<uintptr_t>(to), bytes);
  count_copy("cudaMemcpyAsync", bytes, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  count_copy("cudaStreamSynchronize", 0, 0);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  count_copy("cudaDeviceSynchronize", 0, 0);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : set_status(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(kDefaultSharedLimit);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kOptInSharedLimit);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = kWarp;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = g.config.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return set_status(cudaErrorInvalidValue);
  }
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t dynamic_bytes) {
  if (threads < 1 || threads > kMaxThreads) return set_status(cudaErrorInvalidValue);
  const int by_threads = std::min(32, 2048 / ((threads + kWarp - 1) / kWarp * kWarp));
  const int by_memory = static_cast<int>(kOptInSharedLimit / (dynamic_bytes + 1024));
  *blocks = std::min(by_threads, by_memory);
  return cudaSuccess;
}
