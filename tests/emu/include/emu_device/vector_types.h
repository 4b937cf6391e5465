// The CUDA built-in vector types and dim3, with the sizes and alignments of the real ones: a
// 16-byte type is 16-byte aligned, so that one copy of it is one access of that width.
#pragma once

#include <cstdint>

#define EMU_DEVICE static inline __attribute__((always_inline))

// clang-format off
#define EMU_VECTOR_2(name, type, bytes)                                                  \
  struct __attribute__((aligned(bytes))) name##2 { type x, y; };                         \
  EMU_DEVICE name##2 make_##name##2(type x, type y) { return name##2{x, y}; }
#define EMU_VECTOR_3(name, type)                                                         \
  struct name##3 { type x, y, z; };                                                      \
  EMU_DEVICE name##3 make_##name##3(type x, type y, type z) { return name##3{x, y, z}; }
#define EMU_VECTOR_4(name, type, bytes)                                                  \
  struct __attribute__((aligned(bytes))) name##4 { type x, y, z, w; };                   \
  EMU_DEVICE name##4 make_##name##4(type x, type y, type z, type w) { return name##4{x, y, z, w}; }
// clang-format on

EMU_VECTOR_2(char, signed char, 2)
EMU_VECTOR_2(uchar, unsigned char, 2)
EMU_VECTOR_2(short, short, 4)
EMU_VECTOR_2(ushort, unsigned short, 4)
EMU_VECTOR_2(int, int, 8)
EMU_VECTOR_2(uint, unsigned int, 8)
EMU_VECTOR_2(float, float, 8)
EMU_VECTOR_2(longlong, long long, 16)
EMU_VECTOR_2(ulonglong, unsigned long long, 16)
EMU_VECTOR_2(double, double, 16)
EMU_VECTOR_3(int, int)
EMU_VECTOR_3(uint, unsigned int)
EMU_VECTOR_3(float, float)
EMU_VECTOR_3(double, double)
EMU_VECTOR_4(char, signed char, 4)
EMU_VECTOR_4(uchar, unsigned char, 4)
EMU_VECTOR_4(short, short, 8)
EMU_VECTOR_4(ushort, unsigned short, 8)
EMU_VECTOR_4(int, int, 16)
EMU_VECTOR_4(uint, unsigned int, 16)
EMU_VECTOR_4(float, float, 16)

#undef EMU_VECTOR_2
#undef EMU_VECTOR_3
#undef EMU_VECTOR_4

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1)
      : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return uint3{x, y, z}; }
};
