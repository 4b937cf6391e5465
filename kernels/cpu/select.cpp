// Selection over marks on the CPU: see select.h.
#include "select.h"

#include <algorithm>
#include <vector>

#include "tasks.h"

namespace fusedloss::cpu {
namespace {

// Marks as signed integers: what is not negative is a candidate, -1 is left out. (Comparisons of
// unsigned integers take more instructions below AVX-512.)
template <class T>
struct SignedMark {
  using type = int32_t;
};
template <>
struct SignedMark<double> {
  using type = int64_t;
};
template <class T>
using Signed = typename SignedMark<T>::type;

template <class T>
Signed<T> as_signed(T mark) {
  return bit_cast<Signed<T>>(mark);
}

template <class T>
struct BlockCounts {
  Signed<T> always, candidates;
  T sum;
};

template <bool kHasValues, class T>
FUSEDLOSS_CPU_LEVELS BlockCounts<T> count_marks(const T* __restrict marks,
                                                const T* __restrict values, int64_t count) {
  Signed<T> always = 0, candidates = 0;
  T sum = T(0);
#pragma omp simd reduction(+ : always, candidates, sum)
  for (int64_t i = 0; i < count; ++i) {
    const Signed<T> mark = bit_cast<Signed<T>>(marks[i]);
    const bool is_always = mark < -1;
    always += is_always;
    candidates += mark >= 0;
    const T loss = kHasValues ? values[i] : loss_of<T>(bit_cast<Mark<T>>(marks[i]));
    sum += is_always ? loss : T(0);
  }
  return {always, candidates, sum};
}

// What a block's selected losses come to. Ones that are not selected may be anything.
template <bool kHasValues, class T>
FUSEDLOSS_CPU_LEVELS T sum_selected(const Selection<T> selection, const T* __restrict marks,
                                    const T* __restrict values, int64_t count) {
  T sum = T(0);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const Mark<T> mark = bit_cast<Mark<T>>(marks[i]);
    const T share = share_of(selection, mark);
    const T loss = kHasValues ? values[i] : loss_of<T>(mark);
    sum += share > T(0) ? share * loss : T(0);
  }
  return sum;
}

template <bool kHasValues, class T>
FUSEDLOSS_CPU_LEVELS void write_selected(const Selection<T> selection, const T* __restrict marks,
                                         const T* __restrict values, int64_t count,
                                         T* __restrict losses) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const Mark<T> mark = bit_cast<Mark<T>>(marks[i]);
    const T share = share_of(selection, mark);
    const T loss = kHasValues ? values[i] : loss_of<T>(mark);
    losses[i] = share > T(0) ? share * loss : T(0);
  }
}

// Who does a slice's tasks: the pool, or the thread at hand where slices share the pool.
constexpr Threads kThisThread{
    [](int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
      if (count > 0) body(0, count, context);
    }};

// One slice's marks, and what is selected of them.
template <class T>
class Slice {
 public:
  Slice(const SelectCall& call, int64_t index, const Threads& threads)
      : call_(call), size_(call.slice_size), threads_(threads) {
    const int64_t first = index * call.slice_size;
    marks_ = static_cast<const T*>(call.marks) + first;
    if (call.values != nullptr) values_ = static_cast<const T*>(call.values) + first;
    if (call.reduction == Reduction::kNone) losses_ = static_cast<T*>(call.loss) + first;
  }

  // What is selected: how much, and its sum where that is asked for.
  MarkTotals run(const MarkTotals* counted, Selection<T>* selection) {
    const MarkTotals totals = counted != nullptr ? *counted : count();
    const int64_t wanted = wanted_candidates(call_.rule, totals.always, totals.candidates);
    MarkTotals selected{totals.always, wanted, totals.sum};
    if (wanted == 0)
      *selection = no_candidates<T>();
    else if (wanted == totals.candidates)
      *selection = {T(0), T(1)};
    else
      *selection = narrow(wanted, selected.candidates);
    if (losses_ != nullptr)
      write(*selection);
    else if (wanted > 0)
      selected.sum = sum(*selection);
    return selected;
  }

 private:
  static constexpr int kDigit = 11;
  static constexpr int64_t kBins = int64_t{1} << kDigit;
  static constexpr int64_t kGroups = 16;  // at most so many threads count at once

  using Bins = std::vector<int32_t>;

  // Adds body(begin, count) of all blocks, by tasks.
  template <class Total, class Body>
  Total add_up(const Body& body) const {
    std::vector<Total> slots(num_tasks(size_));
    for_each_task(size_, threads_, [&](int64_t task, int64_t begin, int64_t end) {
      Total total{};
      for (int64_t at = begin; at < end; at += kMarkBlock)
        total += body(at, std::min(kMarkBlock, end - at));
      slots[task] = total;
    });
    Total total{};
    for (const Total& slot : slots) total += slot;
    return total;
  }

  const T* values_at(int64_t at) const { return values_ == nullptr ? nullptr : values_ + at; }

  MarkTotals count() const {
    return add_up<MarkTotals>(
        [&](int64_t at, int64_t n) { return count_block(marks_ + at, values_at(at), n); });
  }

  double sum(Selection<T> selection) const {
    const auto of_block = values_ != nullptr ? sum_selected<true, T> : sum_selected<false, T>;
    return add_up<double>([&](int64_t at, int64_t n) {
      return static_cast<double>(of_block(selection, marks_ + at, values_at(at), n));
    });
  }

  void write(Selection<T> selection) const {
    const auto of_block = values_ != nullptr ? write_selected<true, T> : write_selected<false, T>;
    for_each_task(size_, threads_, [&](int64_t, int64_t begin, int64_t end) {
      of_block(selection, marks_ + begin, values_at(begin), end - begin, losses_ + begin);
    });
  }

  // How many candidates that agree with the digits found have each next digit.
  std::vector<int64_t> histogram(Mark<T> found, int left, int digit) const {
    const int shift = left - digit;
    const Mark<T> mask = (Mark<T>(1) << digit) - 1;
    const int64_t tasks = num_tasks(size_);
    const int64_t groups = std::min(kGroups, tasks), per_group = (tasks + groups - 1) / groups;
    std::vector<Bins> bins(groups);
    threads_.run(groups, 1, [&](int64_t first, int64_t last) {
      for (int64_t group = first; group < last; ++group) {
        const int64_t begin = group * per_group * kTask;
        const int64_t end = std::min(size_, begin + per_group * kTask);
        bins[group].assign(kBins, 0);
        int32_t* counts = bins[group].data();
        for (int64_t i = begin; i < end; ++i) {
          const Mark<T> mark = bit_cast<Mark<T>>(marks_[i]);
          // The sign tells others than candidates apart.
          if (mark >> left == found) ++counts[(mark >> shift) & mask];
        }
      }
    });
    std::vector<int64_t> total(kBins);
    for (const Bins& of_group : bins)
      for (int64_t bin = 0; bin < kBins; ++bin) total[bin] += of_group[bin];
    return total;
  }

  // The selection of `wanted` candidates, more than none and less than all; and how many they are.
  Selection<T> narrow(int64_t wanted, int64_t& selected) const {
    Mark<T> found = 0;
    int64_t above = 0, tied = 0;
    for (int left = kMarkBits<T> - 1; left > 0;) {
      const int digit = std::min(kDigit, left), shift = left - digit;
      const std::vector<int64_t> counts = histogram(found, left, digit);
      int64_t bin = (int64_t{1} << digit) - 1;
      for (; above + counts[bin] < wanted; --bin) above += counts[bin];
      found = (found << digit) | static_cast<Mark<T>>(bin);
      tied = counts[bin];
      left = shift;
    }
    selected = call_.rule.whole_ties ? above + tied : wanted;
    return selection_at(call_.rule, bit_cast<T>(found), wanted, above, tied);
  }

  const SelectCall& call_;
  const int64_t size_;
  const Threads& threads_;
  const T *marks_ = nullptr, *values_ = nullptr;
  T* losses_ = nullptr;
};

}  // namespace

template <class T>
MarkTotals count_block(const T* marks, const T* values, int64_t count) {
  const BlockCounts<T> found = values != nullptr ? count_marks<true>(marks, values, count)
                                                 : count_marks<false>(marks, values, count);
  return {found.always, found.candidates, static_cast<double>(found.sum)};
}

template <class T>
void select(const SelectCall& call, const MarkTotals* counted, const Threads& threads) {
  constexpr int64_t kFewSlices = 4;  // fewer than this are selected from one after the other
  Selection<T>* selections = static_cast<Selection<T>*>(call.selection);
  std::vector<MarkTotals> slots(call.num_slices);
  const auto run = [&](int64_t slice, const Threads& team) {
    slots[slice] = Slice<T>(call, slice, team).run(counted, selections + slice);
  };
  if (call.num_slices < kFewSlices) {
    for (int64_t slice = 0; slice < call.num_slices; ++slice) run(slice, threads);
  } else {
    const int64_t grain = kTasksPerThread * kTask / std::max<int64_t>(call.slice_size, 1) + 1;
    threads.run(call.num_slices, grain, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice) run(slice, kThisThread);
    });
  }
  MarkTotals total;
  for (const MarkTotals& slot : slots) total += slot;

  const int64_t selected = total.always + total.candidates;
  const bool mean = call.reduction == Reduction::kMean, nothing = selected == 0;
  const double divisor = mean ? static_cast<double>(selected) + call.rule.epsilon : 1.0;
  if (call.reduction != Reduction::kNone)
    *static_cast<T*>(call.loss) = static_cast<T>(nothing ? 0.0 : total.sum / divisor);
  *static_cast<T*>(call.scale) = static_cast<T>(mean && nothing ? 0.0 : 1.0 / divisor);
}

template MarkTotals count_block(const float*, const float*, int64_t);
template MarkTotals count_block(const double*, const double*, int64_t);
template void select<float>(const SelectCall&, const MarkTotals*, const Threads&);
template void select<double>(const SelectCall&, const MarkTotals*, const Threads&);

}  // namespace fusedloss::cpu
