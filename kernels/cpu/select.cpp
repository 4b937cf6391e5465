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
  static constexpr int kFirstShift = kMarkBits<T> - kDigit;

  using Bins = std::vector<int64_t>;

  // The candidates of one group of tasks that are still in question.
  using Group = std::vector<Mark<T>>;

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

  // Calls body(group, begin, end) for groups of whole tasks, not more than kGroups of them.
  template <class Body>
  void for_each_group(const Body& body) const {
    const int64_t tasks = num_tasks(size_), groups = num_groups();
    const int64_t each = (tasks + groups - 1) / groups * kTask;
    threads_.run(groups, 1, [&](int64_t first, int64_t last) {
      for (int64_t group = first; group < last; ++group)
        body(group, std::min(size_, group * each), std::min(size_, (group + 1) * each));
    });
  }
  int64_t num_groups() const { return std::min(kGroups, num_tasks(size_)); }

  // The counts of a group's first digits: the sign, which tells candidates apart, and what follows.
  // Two tables, as a count waits for the one before of the same digit.
  void count_first(int64_t begin, int64_t end, int32_t* bins) const {
    int32_t second[kBins] = {};
    int64_t i = begin;
    for (; i + 1 < end; i += 2) {
      ++bins[bit_cast<Mark<T>>(marks_[i]) >> kFirstShift];
      ++second[bit_cast<Mark<T>>(marks_[i + 1]) >> kFirstShift];
    }
    if (i < end) ++bins[bit_cast<Mark<T>>(marks_[i]) >> kFirstShift];
    for (int64_t bin = 0; bin < kBins; ++bin) bins[bin] += second[bin];
  }

  // The next digit of the k-th largest, from how many candidates have each: the bin where those
  // above it are less than wanted and with its own are not.
  struct Digit {
    int64_t above, tied;
    Mark<T> bin;
  };
  static Digit find_digit(const Bins& bins, int64_t above, int64_t wanted) {
    int64_t bin = static_cast<int64_t>(bins.size()) - 1;
    for (; above + bins[bin] < wanted; --bin) above += bins[bin];
    return {above, bins[bin], static_cast<Mark<T>>(bin)};
  }

  // The first digit, and the candidates that have it.
  Digit find_first(int64_t wanted, std::vector<Group>& left) const {
    std::vector<std::vector<int32_t>> counts(num_groups());
    for_each_group([&](int64_t group, int64_t begin, int64_t end) {
      counts[group].assign(kBins, 0);
      count_first(begin, end, counts[group].data());
    });
    Bins total(kBins / 2);  // without a sign
    for (const std::vector<int32_t>& of_group : counts)
      for (size_t bin = 0; bin < total.size(); ++bin) total[bin] += of_group[bin];
    const Digit first = find_digit(total, 0, wanted);
    for_each_group([&](int64_t group, int64_t begin, int64_t end) {
      Group& kept = left[group];
      kept.resize(counts[group][first.bin] + 1);  // every mark is written, most of them over
      int64_t many = 0;
      for (int64_t i = begin; i < end; ++i) {
        const Mark<T> mark = bit_cast<Mark<T>>(marks_[i]);
        kept[many] = mark;
        many += mark >> kFirstShift == first.bin;
      }
      kept.resize(many);
    });
    return first;
  }

  // The selection of `wanted` candidates, more than none and less than all; and how many they are.
  Selection<T> narrow(int64_t wanted, int64_t& selected) const {
    std::vector<Group> left(num_groups());
    Digit digit = find_first(wanted, left);
    Mark<T> found = digit.bin;
    for (int bits = kFirstShift; bits > 0;) {
      const int length = std::min(kDigit, bits), shift = bits - length;
      const Mark<T> mask = (Mark<T>(1) << length) - 1;
      std::vector<Bins> counts(left.size());
      threads_.run(static_cast<int64_t>(left.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t group = first; group < last; ++group) {
          counts[group].assign(mask + 1, 0);
          for (const Mark<T> mark : left[group])
            if (mark >> bits == found) ++counts[group][mark >> shift & mask];
        }
      });
      Bins total(mask + 1);
      for (const Bins& of_group : counts)
        for (size_t bin = 0; bin < total.size(); ++bin) total[bin] += of_group[bin];
      digit = find_digit(total, digit.above, wanted);
      found = found << length | digit.bin;
      bits = shift;
    }
    selected = call_.rule.whole_ties ? digit.above + digit.tied : wanted;
    return selection_at(call_.rule, bit_cast<T>(found), wanted, digit.above, digit.tied);
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
