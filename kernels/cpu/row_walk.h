// The row-softmax engine's walk over the logits of one block: statistics and exponentials, then the
// gradient from them. Along the rows (segmentation, few classes) or along the classes of one row
// after the other. Logits that already lie right are read in place, others through a buffer.
#pragma once

#include <memory>

#include "row_plan.h"

namespace fusedloss::cpu {

// The buffers of one thread, and one block's walk over the logits.
template <class X, class T>
class BlockWalk {
 public:
  explicit BlockWalk(const RowPlan& plan)
      : plan_(plan),
        classes_(plan.call.num_classes),
        step_(plan.along_rows ? plan.block_rows : 1),
        row_step_(plan.along_rows ? 1 : classes_),
        exp_of_(static_cast<T>(plan.logit_scale)),
        exps_(allocate<T>(plan.block_rows * classes_)) {
    if (!plan.call.indexed()) units_ = allocate<T>(plan.block_rows * classes_);
  }

  // The u_j that the loops read: class weights, or what probability targets make.
  const T* units(int64_t begin, int64_t count) {
    const RowSoftmaxCall& call = plan_.call;
    const T* weights = static_cast<const T*>(call.class_weight);
    if (call.indexed()) return weights;
    copy_block_in(plan_, plan_.target, begin, count, units_.get(), step_, row_step_);
    const T one = T(1);
    const auto convert = [&](T* line, int64_t length, const T* factors, int64_t step) {
      NumberLoops<T>::to_units(line, length, static_cast<T>(call.target_share),
                               static_cast<T>(call.uniform_share),
                               weights == nullptr ? &one : factors, weights == nullptr ? 0 : step);
    };
    if (plan_.along_rows)
      for (int64_t c = 0; c < classes_; ++c)
        convert(units_.get() + c * step_, count, weights + c, 0);
    else
      for (int64_t i = 0; i < count; ++i)
        convert(units_.get() + i * classes_, classes_, weights, 1);
    return units_.get();
  }

  // Exponentials e^(s (x - max)) in the buffer, sums in `rows`. The maximum is that of all classes,
  // which is as good as that of the others and cheaper, unless the loss changes the target's logit.
  template <Terms kTerms, bool kChangesTarget>
  void sums(int64_t begin, int64_t count, const T* units, bool keep_exps, RowArrays<T>& rows) {
    if (plan_.along_rows)
      sums_along_rows<kTerms, kChangesTarget>(begin, count, units, keep_exps, rows);
    else
      sums_along_classes<kTerms, kChangesTarget>(begin, count, units, rows);
    // No others: their maximum was taken for 0 lest -inf be subtracted from -inf.
    for (int64_t i = 0; kChangesTarget && i < count; ++i)
      if (rows.others[i] == T(0)) rows.max[i] = -std::numeric_limits<T>::infinity();
  }

  // The same exponentials from rows.max.
  void exps(int64_t begin, int64_t count, const RowArrays<T>& rows) {
    T* out = exps_.get();
    const bool drops = plan_.call.has_ceiling;
    if (plan_.along_rows)
      return with_block(begin, count, [&](const NextBlock& next, const auto* x, int64_t x_step) {
        using From = std::remove_cv_t<std::remove_pointer_t<decltype(x)>>;
        LogitLoops<From>::pixels_exps(next, exp_of_, x, x_step, classes_, count, rows.max, out,
                                      step_);
      });
    for (int64_t i = 0; i < count; ++i) {
      T* exps = out + i * classes_;
      const T* x = drops ? kept_row(begin + i, kNoClass, exps) : row(begin + i, exps);
      NumberLoops<T>::row_exps(exp_of_, x, rows.max[i], classes_, exps);
    }
  }

  // Calls make(next, logits, step) with a block's logits in a walk along the rows: as they lie in
  // memory, or as T in the buffer that the exponentials go to.
  template <class Make>
  void with_block(int64_t begin, int64_t count, const Make& make) {
    const bool drops = plan_.call.has_ceiling;
    const X* direct = drops ? nullptr : in_place(plan_.logits, begin, count);
    if (direct != nullptr)
      return make(next_block(begin + count), direct, plan_.logits.class_stride);
    T* out = exps_.get();
    copy_block_in(plan_, plan_.logits, begin, count, out, step_, row_step_);
    if (drops) NumberLoops<T>::drop_above(ceiling(), classes_ * step_, out);
    make(NextBlock{}, static_cast<const T*>(out), step_);
  }

  // Calls make(logits, step) where a block's logits lie in memory as they are read.
  template <class Make>
  void with_direct(int64_t begin, int64_t count, const Make& make) {
    const X* direct = in_place(plan_.logits, begin, count);
    if (direct != nullptr) make(direct, plan_.logits.class_stride);
  }

  // The label's logit of every row, for backward.
  void gather_logits(int64_t begin, int64_t count, RowArrays<T>& rows) const {
    const X* data = static_cast<const X*>(plan_.logits.rows.data);
    const int64_t stride = plan_.logits.rows.strides[plan_.rows.ndim - 1];
    for_each_run(plan_.rows, begin, count, [&](const Run& run) {
      const X* first = data + offset_of(plan_.rows, plan_.logits.rows, run.index);
      for (int64_t i = 0; i < run.length; ++i) {
        const int64_t at = run.offset_in_block + i;
        const int64_t label = rows.label[at];
        const int64_t this_class = label < 0 ? 0 : label;
        rows.logit[at] = to<T>(first[i * stride + this_class * plan_.logits.class_stride]);
      }
    });
  }

  template <Terms kTerms>
  void gradient(int64_t begin, int64_t count, const T* units, bool any_ignored,
                const RowArrays<T>& rows) {
    if (plan_.along_rows)
      gradient_along_rows<kTerms>(begin, count, units, any_ignored, rows);
    else
      gradient_along_classes<kTerms>(begin, count, units, rows);
  }

  // Calls write(exps, out, out_step) to make a block's gradient from its exponentials, in a walk
  // along the rows. With clear_ignored, rows without a class become 0 thereafter.
  template <class Write>
  void write_along_rows(int64_t begin, int64_t count, bool clear_ignored, const RowArrays<T>& rows,
                        const Write& write) {
    X* direct = in_place(plan_.grad, begin, count);
    if (direct == nullptr && grads_ == nullptr) grads_ = allocate<X>(plan_.block_rows * classes_);
    X* out = direct != nullptr ? direct : grads_.get();
    const int64_t step = direct != nullptr ? plan_.grad.class_stride : step_;
    write(static_cast<const T*>(exps_.get()), out, step);
    if (clear_ignored) pixels_clear_ignored<X, T>(rows.label, classes_, count, out, step);
    if (direct == nullptr) copy_block_out(plan_, plan_.grad, begin, count, out, step_, row_step_);
  }

  // The same along the classes: write(i, exps, out) for every row that has a class. `out` may be
  // the exponentials' place.
  template <class Write>
  void write_along_classes(int64_t begin, int64_t count, const RowArrays<T>& rows,
                           const Write& write) {
    const bool contiguous = plan_.grad.class_stride == 1;
    if (!contiguous && grads_ == nullptr) grads_ = allocate<X>(classes_);
    for (int64_t i = 0; i < count; ++i) {
      X* memory = static_cast<X*>(plan_.grad.rows.data) +
                  offset_of_row(plan_.rows, plan_.grad.rows, begin + i);
      T* exps = exps_.get() + i * classes_;
      // The exponentials' place takes the gradient before it is streamed.
      X* in_stead = plan_.streams ? reinterpret_cast<X*>(exps) : grads_.get();
      X* out = contiguous && !plan_.streams ? memory : in_stead;
      if (plan_.call.indexed() && rows.label[i] < 0)
        std::fill_n(out, classes_, X{});
      else
        write(i, static_cast<const T*>(exps), out);
      if (plan_.streams) stream_out(out, memory, classes_ * kSize);
      if (!contiguous) convert_out(out, classes_, memory, plan_.grad.class_stride);
    }
  }

  // The block's exponentials: class c of row i at c * step() + i * row_step().
  T* exps() { return exps_.get(); }
  int64_t step() const { return step_; }
  int64_t row_step() const { return row_step_; }

 private:
  // Elements of a row that are summed at once: float sums this short lose nothing, and what is
  // fetched meanwhile fits the queue to memory.
  static constexpr int64_t kChunk = 512;

  static constexpr int64_t kSize = sizeof(X);

  template <class U>
  static std::unique_ptr<U[]> allocate(int64_t count) {
    return std::unique_ptr<U[]>(new U[static_cast<size_t>(count)]);
  }

  // The tensor's own memory where a block of it needs no staging, else nullptr.
  X* in_place(const ClassView& view, int64_t begin, int64_t count) const {
    const int64_t stride = view.rows.strides[plan_.rows.ndim - 1];
    const bool together = plan_.along_rows
                              ? (stride == 1 || count == 1) && is_one_run(plan_.rows, begin, count)
                              : view.class_stride == 1;
    if (!together) return nullptr;
    return static_cast<X*>(view.rows.data) + offset_of_row(plan_.rows, view.rows, begin);
  }

  NextBlock next_block(int64_t begin) const {
    const int64_t left = plan_.num_rows - begin;
    if (left <= 0) return {};
    const int64_t rows = left < plan_.block_rows ? left : plan_.block_rows;
    return {reinterpret_cast<const char*>(in_place(plan_.logits, begin, rows)),
            plan_.logits.class_stride * kSize, rows * kSize};
  }

  static T to_subtract(T max) { return max == -std::numeric_limits<T>::infinity() ? T(0) : max; }

  template <Terms kTerms, bool kChangesTarget>
  void sums_along_rows(int64_t begin, int64_t count, const T* units, bool keep_exps,
                       RowArrays<T>& rows) {
    T* block = exps_.get();
    if (const X* direct = in_place(plan_.logits, begin, count)) {
      LogitLoops<X>::pixels_max(direct, plan_.logits.class_stride, classes_, count, block, step_,
                                rows.max);
    } else {
      copy_block_in(plan_, plan_.logits, begin, count, block, step_, row_step_);
      LogitLoops<T>::pixels_max(block, step_, classes_, count, block, step_, rows.max);
    }
    if constexpr (kChangesTarget) {
      if (plan_.call.has_ceiling) drop_above_ceiling(begin, count, rows);
      NumberLoops<T>::pixels_max_of_others(block, step_, classes_, count, rows.label, rows.max);
      for (int64_t i = 0; i < count; ++i) rows.max[i] = to_subtract(rows.max[i]);
    }
    const NextBlock next = next_block(begin + count);
    if constexpr (kTerms == Terms::kProbabilities)
      NumberLoops<T>::probability_pixels(next, exp_of_, block, step_, classes_, count, units,
                                         rows.max, keep_exps, rows.others, rows.terms, rows.sum_u);
    else
      SumLoops<T, kTerms>::pixels(next, exp_of_, block, step_, classes_, count, rows.label, units,
                                  rows.max, keep_exps, rows.others, rows.terms, rows.logit);
  }

  // Row `index` as T: the tensor's memory, or `buffer` after a copy.
  const T* row(int64_t index, T* buffer) const {
    if constexpr (std::is_same_v<X, T>) {
      if (const T* direct = in_place(plan_.logits, index, 1)) return direct;
    }
    const X* first = static_cast<const X*>(plan_.logits.rows.data) +
                     offset_of_row(plan_.rows, plan_.logits.rows, index);
    convert_in(first, plan_.logits.class_stride, classes_, buffer);
    return buffer;
  }

  T ceiling() const { return static_cast<T>(plan_.call.ceiling); }

  // Row `index` in `buffer` without what the call leaves out.
  const T* kept_row(int64_t index, int64_t label, T* buffer) const {
    const T* x = row(index, buffer);
    const T own = x[label < 0 ? 0 : label];
    if (x != buffer) std::copy_n(x, classes_, buffer);
    NumberLoops<T>::drop_above(ceiling(), classes_, buffer);
    if (label >= 0) buffer[label] = own;
    return buffer;
  }

  // The same of a block along rows.
  void drop_above_ceiling(int64_t begin, int64_t count, RowArrays<T>& rows) {
    gather_logits(begin, count, rows);
    NumberLoops<T>::drop_above(ceiling(), classes_ * step_, exps_.get());
    for (int64_t i = 0; i < count; ++i)
      if (rows.label[i] >= 0) exps_[rows.label[i] * step_ + i] = rows.logit[i];
  }

  template <Terms kTerms, bool kChangesTarget>
  void sums_along_classes(int64_t begin, int64_t count, const T* units, RowArrays<T>& rows) {
    for (int64_t i = 0; i < count; ++i) {
      T* out = exps_.get() + i * classes_;
      const int64_t label = rows.label[i];
      if (plan_.skips_ignored && label < 0) continue;
      const T* x = kChangesTarget && plan_.call.has_ceiling ? kept_row(begin + i, label, out)
                                                            : row(begin + i, out);
      T max = NumberLoops<T>::row_max(x, classes_);
      if (kChangesTarget && label >= 0 && !(x[label] < max)) {
        const T before = NumberLoops<T>::row_max(x, label);
        const T after = NumberLoops<T>::row_max(x + label + 1, classes_ - label - 1);
        max = to_subtract(before > after ? before : after);
      }
      rows.logit[i] = x[label < 0 ? 0 : label];
      const T* u = kTerms == Terms::kProbabilities ? units + i * classes_ : units;
      double others = 0.0, terms = 0.0, sum_u = 0.0;
      const char* next = next_block(begin + i + 1).logits;
      const bool fetch_grad = plan_.grad.rows.data != nullptr && !plan_.streams;
      const char* grad =
          fetch_grad ? reinterpret_cast<const char*>(in_place(plan_.grad, begin + i, 1)) : nullptr;
      for (int64_t at = 0; at < classes_; at += kChunk) {
        const int64_t length = classes_ - at < kChunk ? classes_ - at : kChunk;
        if (next != nullptr) prefetch(next + at * kSize, length * kSize);
        if (grad != nullptr) prefetch_to_write(grad + at * kSize, length * kSize);
        const ChunkSums<T> chunk = SumLoops<T, kTerms>::row(
            exp_of_, x + at, max, length, static_cast<Label<T>>(label - at),
            u == nullptr ? nullptr : u + at, out + at);
        others += static_cast<double>(chunk.others);
        terms += static_cast<double>(chunk.terms);
        sum_u += static_cast<double>(chunk.sum_u);
      }
      rows.max[i] = max;
      rows.others[i] = static_cast<T>(others);
      rows.terms[i] = static_cast<T>(terms);
      rows.sum_u[i] = static_cast<T>(sum_u);
    }
  }

  template <Terms kTerms>
  void gradient_along_rows(int64_t begin, int64_t count, const T* units, bool any_ignored,
                           const RowArrays<T>& rows) {
    const bool clear = any_ignored && any_ignored_nan(rows.label, rows.rest, count);
    write_along_rows(begin, count, clear, rows, [&](const T* exps, X* out, int64_t out_step) {
      GradientLoops<X, kTerms>::pixels(exps, step_, classes_, count, rows.label, units, step_,
                                       rows.softmax, rows.slope, rows.target, out, out_step);
    });
  }

  template <Terms kTerms>
  void gradient_along_classes(int64_t begin, int64_t count, const T* units,
                              const RowArrays<T>& rows) {
    write_along_classes(begin, count, rows, [&](int64_t i, const T* exps, X* out) {
      const T* u = kTerms == Terms::kProbabilities ? units + i * classes_ : units;
      GradientLoops<X, kTerms>::row(exps, classes_, u, rows.softmax[i], rows.slope[i], out);
      if (plan_.call.indexed()) out[rows.label[i]] = from<X>(rows.target[i]);
    });
  }

  const RowPlan& plan_;
  const int64_t classes_;
  const int64_t step_, row_step_;  // of the buffers, along classes and rows
  const ScaledExp<T> exp_of_;
  std::unique_ptr<T[]> exps_, units_;
  std::unique_ptr<X[]> grads_;
};

}  // namespace fusedloss::cpu
