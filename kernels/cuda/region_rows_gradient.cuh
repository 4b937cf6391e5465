// The gradient of regions over the rows of a softmax, the second pass of the region engine, and of
// what is joined. With h_j = dL/dI_j t_j + dL/dP_j (1 or 2 p_j) and dot = sum_k p_k h_k:
//
//   dL/dx_j = p_j (h_j - dot) + (the joined loss's)     for j != t, with e_j = e^(x_j - max):
//           = e_j (share h_j + base) + terms u_j        base = softmax - share dot
//   dL/dx_t = p_t (h_t - dot) + target                  h_t - dot = q h_t - sum over k != t of p_k
//   h_k
//
// The last form does not cancel where the target dominates. A tile is walked twice, for `dot` and
// for the gradient, the second time from the cache and in reverse. Tiles themselves are taken in
// the reverse of the first pass's order, as the cache still has the last of them.
#pragma once

#include "region_rows.cuh"

namespace fusedloss::cuda {

// Classes that a thread loads ahead; targets beside the logits leave room for half as many.
template <class X, bool kSoft>
constexpr int kGradientClasses =
    kSoft && kPixelClasses<X> > 1 ? kPixelClasses<X> / 2 : kPixelClasses<X>;

// A group's slopes times the incoming gradient: in shared memory, padded for vectors, or (kFar)
// read one by one where there are too many.
template <class Number, bool kFar>
struct GroupSlopes {
  using T = Number;
  const RegionCall& region;
  int64_t group;
  int classes, padded;
  T* numbers;  // by overlap, then by mass

  __device__ __forceinline__ GroupSlopes(const RegionCall& call, const RegionRowPlan& plan,
                                         int64_t which, void* storage)
      : region(call),
        group(which),
        classes(plan.classes),
        padded((plan.classes + 3) / 4 * 4),
        numbers(static_cast<T*>(storage)) {}

  __device__ __forceinline__ RegionSlope<T> from_memory(int c) const {
    const int64_t from_first = c - region.first_class;
    if (c >= classes || from_first < 0) return {T(0), T(0)};
    const RegionSlope<T> slope =
        static_cast<const RegionSlope<T>*>(region.slopes)[group * classes + c];
    const T upstream =
        static_cast<const T*>(region.upstream)[group * region.upstream_group_stride +
                                               from_first * region.upstream_class_stride];
    return {slope.overlap * upstream, slope.mass * upstream};
  }

  __device__ __forceinline__ void load() const {
    for (int c = threadIdx.x; !kFar && c < padded; c += kRowThreads) {
      const RegionSlope<T> slope = from_memory(c);
      numbers[c] = slope.overlap;
      numbers[padded + c] = slope.mass;
    }
  }

  __device__ __forceinline__ RegionSlope<T> of(int c) const {
    if constexpr (kFar) return from_memory(c);
    return {numbers[c], numbers[padded + c]};
  }

  template <int U>
  __device__ __forceinline__ void masses(int j, T (&out)[U]) const {
    if constexpr (kFar) {
      for (int u = 0; u < U; ++u) out[u] = from_memory(j + u).mass;
    } else {
      load_vector_coherent<U>(numbers + padded + j, out);
    }
  }

  template <int U>
  __device__ __forceinline__ void overlaps(int j, T (&out)[U]) const {
    if constexpr (kFar) {
      for (int u = 0; u < U; ++u) out[u] = from_memory(j + u).overlap;
    } else {
      load_vector_coherent<U>(numbers + j, out);
    }
  }
};

// V rows as the walks over their classes see them.
template <int V, class T>
struct RegionGradient {
  T max[V], share[V];
  int label[V];
  T base[V], terms[V], own[V];  // see the head of this file
  T softmax[V];  // of soft targets, where it must cancel with the terms: not in `base`

  // h_j of a class, without t's part.
  template <bool kSquared>
  static __device__ __forceinline__ T part(T mass, T p) {
    return kSquared ? T(2) * mass * p : mass;
  }
};

// The soft targets of U classes of V rows times their slopes.
template <int U, int V, class Slopes, class T>
__device__ __forceinline__ void soft_parts(const RowSoftmaxCall& call, const RegionRowPlan& plan,
                                           int64_t target_at, int j, const Slopes& slopes,
                                           T (&out)[U][V]) {
  T overlap[U];
  slopes.overlaps(j, overlap);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    T t[V] = {};
    if (j + u < plan.classes)
      load_floats<V>(call.target.data, call.target.dtype,
                     target_at + (j + u) * plan.rows.target_step,
                     call.target.strides[call.shape.ndim - 1], t);
#pragma unroll
    for (int v = 0; v < V; ++v) out[u][v] = overlap[u] * t[v];
  }
}

// sum of p_k h_k over the classes but the label's.
template <bool kSoft, bool kSquared, int V, class X, class Slopes, class T>
__device__ __forceinline__ void region_dots(const RowSoftmaxCall& call, const RegionRowPlan& plan,
                                            const Slopes& slopes, const X* pixels,
                                            int64_t target_at, const RegionGradient<V, T>& rows,
                                            T (&dots)[V]) {
  constexpr int U = kGradientClasses<X, kSoft>;
  T linear[V] = {}, squares[V] = {};
  const int64_t step = plan.rows.logits_step;
  const X* logits = pixels;
#pragma unroll 1
  for (int j = 0; j < plan.classes; j += U) {
    alignas(sizeof(X) * V) X raw[U][V];
    load_chunk<Pass::kGrad>(logits, step, plan.classes - j, raw);
    logits += U * step;
    T mass[U], soft[U][V];
    slopes.masses(j, mass);
    if constexpr (kSoft) soft_parts(call, plan, target_at, j, slopes, soft);
    T e[U][V];
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) e[u][v] = exp_nonpositive(to<T>(raw[u][v]) - rows.max[v]);
    if (!kSoft && any_among<U>(rows.label, j)) {
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (j + u == rows.label[v]) e[u][v] = T(0);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (kSquared) squares[v] += mass[u] * e[u][v] * e[u][v];
        if constexpr (kSoft)
          linear[v] += (kSquared ? soft[u][v] : mass[u] + soft[u][v]) * e[u][v];
        else if (!kSquared)
          linear[v] += mass[u] * e[u][v];
      }
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    dots[v] = rows.share[v] * (linear[v] + (kSquared ? T(2) * rows.share[v] * squares[v] : T(0)));
}

template <bool kSoft, bool kSquared, bool kWithTerms, int V, class X, class Slopes, class T>
__device__ __forceinline__ void write_gradients(const RowSoftmaxCall& call,
                                                const RegionRowPlan& plan, const Slopes& slopes,
                                                const X* pixels, int64_t target_at,
                                                const RegionGradient<V, T>& rows, X* grads) {
  constexpr int U = kGradientClasses<X, kSoft>;
  bool any_ignored = false;
  T factor[V];  // of mass, or of mass e_j
#pragma unroll
  for (int v = 0; v < V; ++v)
    factor[v] = kSquared ? T(2) * rows.share[v] * rows.share[v] : rows.share[v];
#pragma unroll
  for (int v = 0; v < V; ++v) any_ignored = any_ignored || rows.label[v] == kIgnored;
  const int64_t step = plan.rows.logits_step, grad_step = plan.rows.grad_step;
  int j = (plan.classes - 1) / U * U;
  const X* logits = pixels + j * step;
  X* into = grads + j * grad_step;
#pragma unroll 1
  for (; j >= 0; j -= U) {
    alignas(sizeof(X) * V) X raw[U][V];
    load_chunk<Pass::kGrad>(logits, step, plan.classes - j, raw);
    logits -= U * step;
    T mass[U], soft[U][V] = {}, g[U][V];
    slopes.masses(j, mass);
    if constexpr (kSoft) soft_parts(call, plan, target_at, j, slopes, soft);
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const T e = exp_nonpositive(to<T>(raw[u][v]) - rows.max[v]);
        if constexpr (kSoft) {  // as the dots were made: they may cancel
          const T h = (kSquared ? T(2) * rows.share[v] * (mass[u] * e) : mass[u]) + soft[u][v];
          g[u][v] = e * (h * rows.share[v] + rows.base[v]);
          soft[u][v] = rows.softmax[v] * e;
        } else {
          g[u][v] = e * ((kSquared ? mass[u] * e : mass[u]) * factor[v] + rows.base[v]);
        }
      }
    }
    if (kWithTerms && call.terms != Terms::kNone) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (j + u >= plan.classes) break;
        T units[V];
        pixel_units(call, plan.rows, target_at, j + u, units);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const T term = rows.terms[v] * units[v];
          g[u][v] += kSoft ? soft[u][v] + term : term;
        }
      }
    }
    if (any_ignored || (!kSoft && any_among<U>(rows.label, j))) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (!kSoft && j + u == rows.label[v]) g[u][v] = rows.own[v];
          if (rows.label[v] == kIgnored) g[u][v] = T(0);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      convert_all(g[u], raw[u]);
      if (u < plan.classes - j) store_vector<V>(raw[u], into + u * grad_step);
    }
    into -= U * grad_step;
  }
}

// Both walks over a tile's rows, of which a thread has V.
template <bool kSoft, bool kSquared, int V, class X, class Loss, class Slopes>
__device__ __forceinline__ void gradient_rows(const RowSoftmaxCall& call, const RegionRowPlan& plan,
                                              const Loss& loss, const Slopes& slopes,
                                              const RowOffsets& at,
                                              RowScale<typename Loss::value_type> scale) {
  using T = typename Loss::value_type;
  const X* pixels = static_cast<const X*>(call.logits.data) + at.logits;
  RegionGradient<V, T> rows;
  load_classes(call, at.target, rows.label);
  T logits[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (rows.label[v] >= 0) logits[v] = to<T>(pixels[v + rows.label[v] * plan.rows.logits_step]);
  RowState<T> states[V];
  restore_rows(call, loss, rows.label, logits, at.saved, states);
  T p[V], q[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    p[v] = states[v].p;
    q[v] = states[v].q;
    rows.max[v] = states[v].max;
    rows.share[v] =
        rows.label[v] == kBadLabel ? std::numeric_limits<T>::quiet_NaN() : states[v].inverse;
    rows.base[v] = rows.terms[v] = rows.own[v] = rows.softmax[v] = T(0);
    if constexpr (!kNothingJoined<Loss>) {
      const RowGradient<T> joined = loss.gradient(states[v], scale);
      (kSoft ? rows.softmax : rows.base)[v] = joined.softmax * states[v].inverse;
      rows.terms[v] = joined.terms;
      rows.own[v] = joined.target;
    }
  }
  T dots[V];
  region_dots<kSoft, kSquared>(call, plan, slopes, pixels, at.target, rows, dots);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!kSoft && rows.label[v] >= 0) {
      const RegionSlope<T> own = slopes.of(rows.label[v]);
      const T h = own.overlap + RegionGradient<V, T>::template part<kSquared>(own.mass, p[v]);
      rows.own[v] += p[v] * (q[v] * h - dots[v]);
      dots[v] += p[v] * h;
    }
    rows.base[v] -= rows.share[v] * dots[v];
  }
  write_gradients<kSoft, kSquared, !kNothingJoined<Loss>>(
      call, plan, slopes, pixels, at.target, rows, static_cast<X*>(call.grad.data) + at.grad);
}

template <int V, bool kFar, class X, class Loss>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerMultiprocessor<X>)
    region_rows_gradient_kernel(const __grid_constant__ RowSoftmaxCall call,
                                const __grid_constant__ RegionCall region,
                                const __grid_constant__ RegionRowPlan plan, const Loss loss) {
  using T = typename Loss::value_type;
  extern __shared__ __align__(16) unsigned char region_slopes_storage[];
  const int64_t index = static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x;
  const int64_t group = index / plan.parts, part = index % plan.parts;
  const GroupSlopes<T, kFar> slopes(region, plan, group, region_slopes_storage);
  slopes.load();
  RowScale<T> scale{T(0), T(0)};
  if constexpr (!kNothingJoined<Loss>) {
    const T upstream = *static_cast<const T*>(region.upstream);
    scale = row_scale<Pass::kGrad, T>(call, plan.rows, upstream);
  }
  __syncthreads();
#pragma unroll 1
  for (int64_t tile = part + (plan.tiles - 1 - part) / plan.parts * plan.parts; tile >= 0;
       tile -= plan.parts) {
    const int64_t row = tile * (kRowThreads * V) + static_cast<int64_t>(threadIdx.x) * V;
    if (row >= plan.rows.rows) continue;
    const RowOffsets at = locate_group_row(call, plan, group, row);
    if constexpr (kTakesSoft<Loss>) {
      if (!call.indexed() && region.squared)
        gradient_rows<true, true, V, X>(call, plan, loss, slopes, at, scale);
      else if (!call.indexed())
        gradient_rows<true, false, V, X>(call, plan, loss, slopes, at, scale);
      if (!call.indexed()) continue;
    }
    if (region.squared)
      gradient_rows<false, true, V, X>(call, plan, loss, slopes, at, scale);
    else
      gradient_rows<false, false, V, X>(call, plan, loss, slopes, at, scale);
  }
}

}  // namespace fusedloss::cuda
