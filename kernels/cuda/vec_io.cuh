// Vector memory access: V neighbouring elements in as few instructions as their size allows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../core/layout.h"

namespace fusedloss::cuda {

constexpr int kVectorBytes = 16;

// The machine word that moves N bytes.
template <int N>
struct WordOf;
template <>
struct WordOf<1> {
  using type = uint8_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

template <int V, class T>
struct Words {
  static constexpr int kBytes = V * static_cast<int>(sizeof(T));
  static constexpr int kWordBytes = kBytes < kVectorBytes ? kBytes : kVectorBytes;
  static constexpr int kCount = kBytes / kWordBytes;
  using type = typename WordOf<kWordBytes>::type;
};

// `from` must be aligned to Words<V, T>::kWordBytes. Read-only data: the non-coherent path is used.
template <int V, class T>
__device__ __forceinline__ void load_vector(const T* from, T (&out)[V]) {
  using W = Words<V, T>;
  typename W::type words[W::kCount];
#pragma unroll
  for (int i = 0; i < W::kCount; ++i)
    words[i] = __ldg(reinterpret_cast<const typename W::type*>(from) + i);
  memcpy(out, words, W::kBytes);
}

// The same for memory that the kernel also writes.
template <int V, class T>
__device__ __forceinline__ void load_vector_coherent(const T* from, T (&out)[V]) {
  using W = Words<V, T>;
  typename W::type words[W::kCount];
#pragma unroll
  for (int i = 0; i < W::kCount; ++i) words[i] = reinterpret_cast<const typename W::type*>(from)[i];
  memcpy(out, words, W::kBytes);
}

template <int V, class T>
__device__ __forceinline__ void store_vector(const T (&values)[V], T* to) {
  using W = Words<V, T>;
  typename W::type words[W::kCount];
  memcpy(words, values, W::kBytes);
#pragma unroll
  for (int i = 0; i < W::kCount; ++i) reinterpret_cast<typename W::type*>(to)[i] = words[i];
}

// V elements of any dtype, converted to T. The branch is uniform.
template <int V, class Stored, class T>
__device__ __forceinline__ void load_converted(const void* data, int64_t at, T (&out)[V]) {
  Stored raw[V];
  load_vector<V>(static_cast<const Stored*>(data) + at, raw);
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = to<T>(raw[j]);
}

template <int V, class T>
__device__ __forceinline__ void load_as(const void* data, DType dtype, int64_t at, T (&out)[V]) {
  switch (dtype) {
    case DType::kFloat32:
      return load_converted<V, float>(data, at, out);
    case DType::kFloat64:
      return load_converted<V, double>(data, at, out);
    case DType::kFloat16:
      return load_converted<V, Float16>(data, at, out);
    case DType::kBFloat16:
      return load_converted<V, BFloat16>(data, at, out);
    case DType::kInt64:
      return load_converted<V, int64_t>(data, at, out);
    case DType::kInt32:
      return load_converted<V, int32_t>(data, at, out);
    case DType::kInt16:
      return load_converted<V, int16_t>(data, at, out);
    case DType::kInt8:
      return load_converted<V, int8_t>(data, at, out);
    default:
      return load_converted<V, uint8_t>(data, at, out);  // uint8 and bool
  }
}

// One element of any dtype as T, without alignment needs beyond its own.
template <class T>
__device__ __forceinline__ T load_one(const void* data, DType dtype, int64_t at) {
  T out[1];
  load_as<1>(data, dtype, at, out);
  return out[0];
}

// One class index of any label dtype.
__device__ __forceinline__ int64_t load_label(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::kInt64:
      return static_cast<const int64_t*>(data)[at];
    case DType::kInt32:
      return static_cast<const int32_t*>(data)[at];
    case DType::kInt16:
      return static_cast<const int16_t*>(data)[at];
    default:
      return static_cast<const uint8_t*>(data)[at];
  }
}

}  // namespace fusedloss::cuda
