// What the C++ tests of the CUDA kernels share: device memory with exact bounds, the layouts of
// logits, and the comparison with what the CPU's kernels make of the same call.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/core/layout.h"
#include "../../kernels/core/scale.h"
#include "../../kernels/cpu/scale.h"
#include "../../kernels/cpu/stage.h"
#include "../../kernels/cuda/scale.h"
#include "../emu/emu.h"
#include "cpp_tests.h"

namespace fusedloss {

const cudaStream_t kStream = nullptr;
constexpr int64_t kIgnored = -100;

template <class X>
inline constexpr DType kTypeOf = cpu::kDTypeOf<X>;
template <>
inline constexpr DType kTypeOf<int64_t> = DType::kInt64;
template <>
inline constexpr DType kTypeOf<unsigned char> = DType::kUInt8;

// Numbers in the emulated device's memory, which ends with the last one: AddressSanitizer sees any
// access behind it. The first one lies `shift` numbers past an aligned address; what is before it
// must stay as it is. Not yet written, floats are NaN.
template <class X>
class Numbers {
 public:
  explicit Numbers(int64_t count, int64_t shift = 0)
      : count_(count),
        shift_(shift),
        base_(static_cast<X*>(
            emu::alloc(static_cast<size_t>(count + shift) * sizeof(X), "numbers"))) {}
  ~Numbers() {
    const auto* bytes = reinterpret_cast<const unsigned char*>(base_);
    for (size_t i = 0; i < static_cast<size_t>(shift_) * sizeof(X); ++i)
      expect(bytes[i] == 0xFF, "cuda: nothing is written before a tensor");
    emu::free(base_);
  }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;

  X* data() { return base_ + shift_; }
  int64_t size() const { return count_; }
  X& operator[](int64_t i) { return base_[shift_ + i]; }
  X* begin() { return data(); }
  X* end() { return data() + count_; }

  TensorView one() { return {data(), kTypeOf<X>, {}}; }

 private:
  int64_t count_, shift_;
  X* base_;
};

// How numbers [outer, classes, inner] lie: with the classes innermost (`last`), with a gap after
// each sample, past an aligned address.
struct Layout {
  int64_t outer, classes, inner;
  bool last = false;
  int64_t gap = 0, shift = 0;

  int64_t rows() const { return outer * inner; }
  int64_t sample() const { return classes * inner + gap; }
  int64_t size() const { return outer * sample() - gap; }
  int64_t at(int64_t o, int64_t c, int64_t i) const {
    return o * sample() + (last ? i * classes + c : c * inner + i);
  }
  Shape shape(int class_dim) const { return {3, class_dim, {outer, classes, inner}}; }
  template <class X>
  TensorView view(Numbers<X>& numbers) const {
    return {numbers.data(),
            kTypeOf<X>,
            {sample(), last ? int64_t{1} : inner, last ? classes : int64_t{1}}};
  }
  // Numbers [outer, inner].
  template <class X>
  TensorView by_row(Numbers<X>& numbers) const {
    return {numbers.data(), kTypeOf<X>, {inner, 0, 1}};
  }
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t i = 0; i < inner; ++i) visit(o, c, i);
  }
};

// Calls test(layout) for each layout, past an aligned address by each of the shifts.
template <class Test>
void for_each_shifted(std::initializer_list<Layout> layouts, std::initializer_list<int64_t> shifts,
                      const Test& test) {
  for (Layout how : layouts)
    for (const int64_t shift : shifts) {
      how.shift = shift;
      test(how);
    }
}

// Labels of which some are ignored, and logits that are NaN there.
template <class X>
struct Inputs {
  Layout layout;
  Numbers<X> logits;
  Numbers<int64_t> labels;

  Inputs(const Layout& how, float spread)
      : layout(how), logits(how.size(), how.shift), labels(how.rows()) {
    std::mt19937 random(static_cast<unsigned>(how.outer * 1000 + how.classes * 10 + how.inner));
    for (int64_t& label : labels)
      label = random() % 6 == 0
                  ? kIgnored
                  : static_cast<int64_t>(random() % static_cast<unsigned>(how.classes));
    if (how.rows() == 1) labels[0] = how.classes - 1;
    how.for_each([&](int64_t o, int64_t c, int64_t i) {
      const float x = std::normal_distribution<float>(0, spread)(random);
      const bool ignored = labels[o * how.inner + i] == kIgnored;
      logits[how.at(o, c, i)] = from<X>(ignored ? std::numeric_limits<float>::quiet_NaN() : x);
    });
  }
  // Where every logit counts.
  void replace_nan() {
    for (X& x : logits)
      if (std::isnan(to<float>(x))) x = from<X>(0.5f);
  }
};

// Losses and gradient of one call on one device.
struct Outcome {
  std::vector<double> loss, grad;

  // And sees that the gaps between samples are as they were, NaN.
  template <class X>
  void take(const Layout& layout, Numbers<float>& losses, Numbers<X>& grads) {
    loss.assign(losses.begin(), losses.end());
    layout.for_each([&](int64_t o, int64_t c, int64_t i) {
      grad.push_back(double{to<float>(grads[layout.at(o, c, i)])});
    });
    for (int64_t o = 0; o + 1 < layout.outer; ++o)
      for (int64_t i = 0; i < layout.gap; ++i)
        expect(std::isnan(to<float>(grads[(o + 1) * layout.sample() - 1 - i])),
               "cuda: nothing is written into a gap");
  }
};

// Within `tolerance` of the largest number; NaNs are the same.
inline void expect_near(const std::vector<double>& cuda, const std::vector<double>& cpu,
                        double tolerance, const std::string& what) {
  double largest = 0;
  for (const double x : cpu)
    if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < cpu.size(); ++i) {
    const bool same = cuda[i] == cpu[i] || (std::isnan(cuda[i]) && std::isnan(cpu[i])) ||
                      std::fabs(cuda[i] - cpu[i]) <= tolerance * largest;
    if (same) continue;
    std::printf("%zu: %.9g on CUDA, %.9g on the CPU\n", i, cuda[i], cpu[i]);
    return expect(false, what.c_str());
  }
}

template <class X>
void expect_same(const Outcome& cuda, const Outcome& cpu, const std::string& what) {
  expect(cuda.loss.size() == cpu.loss.size() && cuda.grad.size() == cpu.grad.size() &&
             !cpu.grad.empty(),
         "cuda: as many numbers");
  expect_near(cuda.loss, cpu.loss, 1e-5, what + ": loss");
  expect_near(cuda.grad, cpu.grad, sizeof(X) == 2 ? 1e-2 : 1e-5, what + ": gradient");
}

// Finishes a gradient that forward wrote, in place.
template <class X, class Executor>
void finish_gradient(const Layout& layout, Numbers<X>& grad, const TensorView& upstream,
                     const void* scale, const Executor& executor) {
  ScaleCall call{};
  call.shape = layout.shape(-1);
  call.grad = call.out = layout.view(grad);
  call.grad_output = upstream;
  call.scale = scale;
  launch_scale_gradient(call, executor);
}

// Its workspace, of at least one byte.
inline int64_t some(int64_t bytes) { return std::max<int64_t>(bytes, 1); }

}  // namespace fusedloss

void test_cuda_elements();
void test_cuda_rows();
void test_cuda_regions();
void test_cuda_mining();
