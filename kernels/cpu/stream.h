// Stores that go past the cache: memory that nobody reads soon is not fetched before it is
// overwritten, which is a third of what a loss with its gradient moves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fusedloss::cpu {

// Gradients from this size on are streamed. Smaller ones the next operator may find in the cache.
constexpr int64_t kStreamedBytes = 8 << 20;

// memcpy past the cache.
inline void stream_out(const void* from, void* to, int64_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  int64_t done = 0;
#if defined(__SSE2__)
  constexpr int64_t kLine = 64;
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kLine);
  done = std::min(past == 0 ? 0 : kLine - past, bytes);
  memcpy(out, source, static_cast<size_t>(done));
  for (; done + kLine <= bytes; done += kLine)
    for (int64_t part = done; part < done + kLine; part += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + part)));
#endif
  memcpy(out + done, source + done, static_cast<size_t>(bytes - done));
}

// Makes what was streamed visible like other stores.
inline void finish_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace fusedloss::cpu
