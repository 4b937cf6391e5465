// Staging: the CPU engines compute on short contiguous blocks that live in L1. A tensor that
// already is such a block of the wanted element type is used in place; anything else (another type,
// strides, broadcasts) is copied block by block. So a hot loop exists once per type of the logits,
// whatever the tensors look like.
#pragma once

#include <cstdint>

#include "../core/layout.h"

namespace fusedloss::cpu {

constexpr int64_t kBlock = 1024;  // elements; five float blocks and the outputs fit a 32 KiB L1

// Hot loops take whole vectors, of which nothing is used beyond the last element: a scalar tail is
// slow where blocks are small, and compilers contract it to other multiply-adds than the vectors,
// so that an element's last digit would depend on its place.
constexpr int64_t whole_vectors(int64_t count) { return (count + 15) / 16 * 16; }

// A stretch of the iteration space along its innermost dimension.
struct Run {
  int64_t offset_in_block;
  int64_t length;
  int64_t index[kMaxDims];  // coordinates of the first element
};

constexpr int64_t kShortRun = 16;  // fewer elements that lie together make no vector

// Calls visit(run) for the stretches that make up elements [begin, begin + count).
template <class Visit>
inline void for_each_run(const Shape& shape, int64_t begin, int64_t count, const Visit& visit) {
  Run run{};
  int64_t rest = begin;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    run.index[d] = rest % shape.sizes[d];
    rest /= shape.sizes[d];
  }
  const int last = shape.ndim - 1;
  for (int64_t done = 0; done < count;) {
    const int64_t left = shape.sizes[last] - run.index[last];
    run.offset_in_block = done;
    run.length = left < count - done ? left : count - done;
    visit(static_cast<const Run&>(run));
    done += run.length;
    run.index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      if (++run.index[d] < shape.sizes[d]) break;
      run.index[d] = 0;
    }
  }
}

inline int64_t offset_of(const Shape& shape, const TensorView& view, const int64_t* index) {
  int64_t offset = 0;
  for (int d = 0; d < shape.ndim; ++d) offset += index[d] * view.strides[d];
  return offset;
}

template <class From, class To>
FUSEDLOSS_CPU_LEVELS void convert_in(const From* __restrict source, int64_t stride, int64_t count,
                                     To* __restrict out) {
  if (stride == 1) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = cast<To>(source[i]);
  } else if (stride == 0) {
    const To value = cast<To>(source[0]);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = value;
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = cast<To>(source[i * stride]);
  }
}

template <class From, class To>
FUSEDLOSS_CPU_LEVELS void convert_out(const From* __restrict source, int64_t count,
                                      To* __restrict out, int64_t stride) {
  if (stride == 1) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = cast<To>(source[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i * stride] = cast<To>(source[i]);
  }
}

// The sum of a block. A loop of its own: inside a hot loop GCC 12 miscompiles it for 16-bit types.
// Four sums, because one would wait for its own last addition.
template <class T>
FUSEDLOSS_CPU_LEVELS T sum_block(const T* __restrict values, int64_t count) {
  T sum = T(0), second = T(0), third = T(0), fourth = T(0);
  const int64_t quarter = count / 4;
#pragma omp simd reduction(+ : sum, second, third, fourth)
  for (int64_t i = 0; i < quarter; ++i) {
    sum += values[i];
    second += values[i + quarter];
    third += values[i + 2 * quarter];
    fourth += values[i + 3 * quarter];
  }
  for (int64_t i = 4 * quarter; i < count; ++i) sum += values[i];
  return (sum + second) + (third + fourth);
}

// Calls f with a typed pointer to the view's elements.
template <class F>
inline void with_typed_data(const TensorView& view, const F& f) {
  switch (view.dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(view.data));
    case DType::kFloat64:
      return f(static_cast<double*>(view.data));
    case DType::kFloat16:
      return f(static_cast<Float16*>(view.data));
    case DType::kBFloat16:
      return f(static_cast<BFloat16*>(view.data));
    case DType::kInt64:
      return f(static_cast<int64_t*>(view.data));
    case DType::kInt32:
      return f(static_cast<int32_t*>(view.data));
    case DType::kInt16:
      return f(static_cast<int16_t*>(view.data));
    case DType::kUInt8:
      return f(static_cast<uint8_t*>(view.data));
    case DType::kInt8:
      return f(static_cast<int8_t*>(view.data));
    case DType::kBool:
      return f(static_cast<bool*>(view.data));
  }
}

// The same for class indices.
template <class F>
inline void with_typed_labels(const TensorView& view, const F& f) {
  switch (view.dtype) {
    case DType::kInt64:
      return f(static_cast<const int64_t*>(view.data));
    case DType::kInt32:
      return f(static_cast<const int32_t*>(view.data));
    case DType::kInt16:
      return f(static_cast<const int16_t*>(view.data));
    default:
      return f(static_cast<const uint8_t*>(view.data));
  }
}

template <class T>
inline void copy_in(const Shape& shape, const TensorView& view, bool linear, int64_t begin,
                    int64_t count, T* out) {
  with_typed_data(view, [&](const auto* data) {
    if (linear) return convert_in(data + begin, 1, count, out);
    const int64_t stride = view.strides[shape.ndim - 1];
    // A call for each run would cost more than its elements: weights of boxes are runs of four.
    const bool is_short = shape.sizes[shape.ndim - 1] < kShortRun;
    for_each_run(shape, begin, count, [&](const Run& run) {
      const auto* first = data + offset_of(shape, view, run.index);
      T* place = out + run.offset_in_block;
      if (!is_short) return convert_in(first, stride, run.length, place);
      for (int64_t i = 0; i < run.length; ++i) place[i] = cast<T>(first[i * stride]);
    });
  });
}

template <class T>
inline void copy_out(const Shape& shape, const TensorView& view, bool linear, int64_t begin,
                     int64_t count, const T* source) {
  with_typed_data(view, [&](auto* data) {
    if (linear) return convert_out(source, count, data + begin, int64_t{1});
    for_each_run(shape, begin, count, [&](const Run& run) {
      convert_out(source + run.offset_in_block, run.length,
                  data + offset_of(shape, view, run.index), view.strides[shape.ndim - 1]);
    });
  });
}

template <class T>
inline constexpr DType kDTypeOf = DType::kFloat32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kFloat64;
template <>
inline constexpr DType kDTypeOf<Float16> = DType::kFloat16;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBFloat16;

// An input operand as blocks of T, whole vectors of them: where it lies already right, the pointer
// itself.
template <class T>
class BlockReader {
 public:
  BlockReader(const Shape& shape, const TensorView& view, T constant)
      : shape_(shape), view_(view), constant_(constant) {
    if (view.data == nullptr) {
      kind_ = Kind::kConstant;
    } else if (is_constant(shape, view)) {
      kind_ = Kind::kConstant;
      with_typed_data(view, [&](const auto* data) { constant_ = cast<T>(*data); });
    } else {
      linear_ = is_linear(shape, view);
      kind_ = linear_ && view.dtype == kDTypeOf<T> ? Kind::kInPlace : Kind::kCopy;
    }
  }

  bool constant() const { return kind_ == Kind::kConstant; }
  T value() const { return constant_; }

  // `buffer` (kBlock values) belongs to this operand for the whole task; `fresh` is true on the
  // task's first block, or after someone wrote into the buffer.
  const T* read(int64_t begin, int64_t count, T* buffer, bool fresh) const {
    if (kind_ == Kind::kConstant) {
      if (fresh) std::fill_n(buffer, kBlock, constant_);
      return buffer;
    }
    const int64_t whole = whole_vectors(count);
    if (kind_ == Kind::kInPlace && count == whole) return static_cast<const T*>(view_.data) + begin;
    copy_in(shape_, view_, linear_, begin, count, buffer);
    std::fill_n(buffer + count, whole - count, T{});
    return buffer;
  }

 private:
  enum class Kind { kConstant, kInPlace, kCopy };
  const Shape& shape_;
  const TensorView view_;
  T constant_;
  Kind kind_;
  bool linear_ = false;
};

// An output operand: compute whole vectors into target(), then finish().
template <class T>
class BlockWriter {
 public:
  BlockWriter(const Shape& shape, const TensorView& view) : shape_(shape), view_(view) {
    linear_ = is_linear(shape, view);
    in_place_ = view.data != nullptr && linear_ && view.dtype == kDTypeOf<T>;
  }
  T* target(int64_t begin, int64_t count, T* buffer) const {
    return is_in_place(count) ? static_cast<T*>(view_.data) + begin : buffer;
  }
  void finish(int64_t begin, int64_t count, const T* buffer) const {
    if (view_.data != nullptr && !is_in_place(count))
      copy_out(shape_, view_, linear_, begin, count, buffer);
  }

 private:
  bool is_in_place(int64_t count) const { return in_place_ && count == whole_vectors(count); }

  const Shape& shape_;
  const TensorView view_;
  bool linear_, in_place_;
};

}  // namespace fusedloss::cpu
