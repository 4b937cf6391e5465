// Vector memory access: V neighbouring elements in as few instructions as their size allows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../core/layout.h"
#include "../core/loss_call.h"

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

// Whether `view`, walked element by element from `head` on, allows vectors of V elements.
inline bool is_aligned(const TensorView& view, int64_t head, int vector) {
  const int64_t size = size_of(view.dtype);
  const int64_t word = size * vector < kVectorBytes ? size * vector : kVectorBytes;
  return (reinterpret_cast<uintptr_t>(view.data) + head * size) % word == 0;
}

// V arithmetic values as elements: halves by pairs, for which there is one instruction.
template <class X, int V, class T>
__device__ __forceinline__ void convert_all(const T (&values)[V], X (&out)[V]) {
  constexpr bool kPairs = V % 2 == 0 && std::is_same_v<T, float>;
  if constexpr (kPairs && (std::is_same_v<X, BFloat16> || std::is_same_v<X, Float16>)) {
#pragma unroll
    for (int k = 0; k < V; k += 2) {
      if constexpr (std::is_same_v<X, BFloat16>) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[k], values[k + 1]);
        memcpy(out + k, &pair, sizeof(pair));
      } else {
        const __half2 pair = __floats2half2_rn(values[k], values[k + 1]);
        memcpy(out + k, &pair, sizeof(pair));
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) out[k] = from<X>(values[k]);
  }
}

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

// Logits: the gradient may be the same memory.
template <Pass kPass, int V, class X>
__device__ __forceinline__ void load_logits(const X* from, X (&out)[V]) {
  if constexpr (kPass != Pass::kLoss)
    load_vector_coherent<V>(from, out);
  else
    load_vector<V>(from, out);
}

template <int V, class T>
__device__ __forceinline__ void store_vector(const T (&values)[V], T* to) {
  using W = Words<V, T>;
  if constexpr (W::kCount == 1) {  // an array of one word came to lie in memory
    typename W::type word;
    memcpy(&word, values, W::kBytes);
    *reinterpret_cast<typename W::type*>(to) = word;
    return;
  }
  typename W::type words[W::kCount];
  memcpy(words, values, W::kBytes);
#pragma unroll
  for (int i = 0; i < W::kCount; ++i) reinterpret_cast<typename W::type*>(to)[i] = words[i];
}

// One 16-byte store to global memory, where the compiler would make single words of store_vector's
// (it does beside loads from shared memory). It keeps its place among other accesses.
template <int V, class T>
__device__ __forceinline__ void store_whole(const T (&values)[V], T* to) {
  static_assert(Words<V, T>::kBytes == kVectorBytes, "a whole vector");
  uint4 word;
  memcpy(&word, values, kVectorBytes);
  __stwb(reinterpret_cast<uint4*>(to), word);
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

// Whether N numbers that are `step` apart can be moved as a vector.
template <int N, class T>
__device__ __forceinline__ bool is_vector(const T* data, int64_t step) {
  return N > 1 && step == 1 && reinterpret_cast<uintptr_t>(data) % Words<N, T>::kWordBytes == 0;
}

// N elements of any float dtype, `step` apart, as T; a vector where they lie so.
template <int N, class Stored, class T>
__device__ __forceinline__ void load_floats_of(const void* data, int64_t at, int64_t step,
                                               T (&out)[N]) {
  const Stored* from = static_cast<const Stored*>(data) + at;
  if (is_vector<N>(from, step)) return load_converted<N, Stored>(data, at, out);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = to<T>(from[k * step]);
}

template <int N, class T>
__device__ __forceinline__ void load_floats(const void* data, DType dtype, int64_t at, int64_t step,
                                            T (&out)[N]) {
  switch (dtype) {
    case DType::kFloat64:
      return load_floats_of<N, double>(data, at, step, out);
    case DType::kFloat16:
      return load_floats_of<N, Float16>(data, at, step, out);
    case DType::kBFloat16:
      return load_floats_of<N, BFloat16>(data, at, step, out);
    default:
      return load_floats_of<N, float>(data, at, step, out);
  }
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

template <int N, class Stored>
__device__ __forceinline__ void load_labels_of(const void* data, int64_t at, int64_t step,
                                               int64_t (&out)[N]) {
  const Stored* from = static_cast<const Stored*>(data) + at;
  if (is_vector<N>(from, step)) return load_converted<N, Stored>(data, at, out);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = from[k * step];
}

// N of them, `step` apart.
template <int N>
__device__ __forceinline__ void load_labels(const void* data, DType dtype, int64_t at, int64_t step,
                                            int64_t (&out)[N]) {
  switch (dtype) {
    case DType::kInt64:
      return load_labels_of<N, int64_t>(data, at, step, out);
    case DType::kInt32:
      return load_labels_of<N, int32_t>(data, at, step, out);
    case DType::kInt16:
      return load_labels_of<N, int16_t>(data, at, step, out);
    default:
      return load_labels_of<N, uint8_t>(data, at, step, out);
  }
}

template <int N, class T>
__device__ __forceinline__ void load_apart(const T* from, int64_t step, T (&out)[N]) {
  if (is_vector<N>(from, step)) return load_vector<N>(from, out);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = from[k * step];
}

template <int N, class T>
__device__ __forceinline__ void store_apart(const T (&values)[N], T* to, int64_t step) {
  if (is_vector<N>(to, step)) return store_vector<N>(values, to);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k * step] = values[k];
}

}  // namespace fusedloss::cuda
