// Stand-in for CUDA's header of this name: lets an unchanged .cu file compile as C++ for the
// emulator. No CUDA toolkit is needed.
#pragma once

#if defined(__CUDACC__)
#error "tests/emu/include is for the host compiler only; remove it from nvcc's include path"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ __attribute__((section("emu_constant")))
// Static in a block, one copy shared by all fibers of the (single) host thread that runs a launch;
// its own symbol in the module, by which the runtime knows each variable's bounds.
#define __shared__ thread_local
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __maxnreg__(count)
#define __cluster_dims__(...)

#include "emu_device/atomics.h"
#include "emu_device/math.h"
#include "emu_device/runtime_api.h"
#include "emu_device/vector_types.h"
#include "emu_device/warp.h"
