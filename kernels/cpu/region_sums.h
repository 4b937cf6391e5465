// Sums of regions on the CPU: what a task collects, and the finish.
#pragma once

#include <unordered_map>
#include <vector>

#include "../loss/overlap.h"

namespace fusedloss::cpu {

// The sums of one task, for the regions that it meets: records of `width` neighbouring regions, the
// classes of a group or a single one. Tasks' records are added in the order of tasks, so any number
// of threads gives the same bits.
class RegionRecords {
 public:
  explicit RegionRecords(int64_t width = 1) : width_(width) {}

  // The record whose first region is `first`; valid until the next call.
  RegionSums* at(int64_t first) {
    if (firsts_.empty() || firsts_[last_] != first) {
      const auto [place, is_new] = places_.try_emplace(first, firsts_.size());
      last_ = place->second;
      if (is_new) {
        firsts_.push_back(first);
        sums_.resize(sums_.size() + static_cast<size_t>(width_), RegionSums{0.0, 0.0, 0.0});
      }
    }
    return sums_.data() + last_ * static_cast<size_t>(width_);
  }

  void add_to(std::vector<RegionSums>& totals) const {
    const RegionSums* from = sums_.data();
    for (const int64_t first : firsts_) {
      for (int64_t c = 0; c < width_; ++c, ++from) {
        RegionSums& total = totals[static_cast<size_t>(first + c)];
        total.overlap += from->overlap;
        total.mass += from->mass;
        total.truth += from->truth;
      }
    }
  }

 private:
  int64_t width_;
  size_t last_ = 0;
  std::vector<int64_t> firsts_;
  std::vector<RegionSums> sums_;
  std::unordered_map<int64_t, size_t> places_;
};

inline std::vector<RegionSums> add_up(const RegionCall& call,
                                      const std::vector<RegionRecords>& tasks) {
  std::vector<RegionSums> totals(static_cast<size_t>(call.num_regions()),
                                 RegionSums{0.0, 0.0, 0.0});
  for (const RegionRecords& task : tasks) task.add_to(totals);
  return totals;
}

// From the sums to the call's loss and slopes. `joined` is the joined loss, reduced.
template <class T>
void finish_regions(const RegionCall& call, const std::vector<RegionSums>& totals, double joined) {
  const auto sums = [&](int64_t region) { return totals[static_cast<size_t>(region)]; };
  T* out = static_cast<T*>(call.loss);
  double total = 0.0;
  int64_t left = 0;
  for (int64_t unit = 0; unit < num_units(call); ++unit) {
    const UnitLoss value = unit_loss<T>(call, sums, unit);
    total += value.loss;
    left += value.left;
    const int64_t at = unit_output(call, unit);
    if (call.reduction == Reduction::kNone && at >= 0)
      out[at] = static_cast<T>(call.factor * value.loss);
  }
  const double scale = unit_scale(call, left);
  if (call.reduction != Reduction::kNone) {
    const double regions = left > 0 ? scale * total : 0.0;
    *out = static_cast<T>(call.joined ? regions + call.joined_factor * joined : regions);
  }
  for (int64_t unit = 0; unit < num_units(call); ++unit) store_slopes<T>(call, sums, unit, scale);
}

// The slopes of `width` neighbouring regions times the incoming gradient, as
// h = overlap t + linear + quadratic p.
template <class T>
class SlopeTable {
 public:
  SlopeTable(const RegionCall& call, int64_t width)
      : call_(call), width_(width), numbers_(static_cast<size_t>(3 * width)) {}

  void load(int64_t first) {
    if (first == first_) return;
    first_ = first;
    finite_ = true;
    for (int64_t c = 0; c < width_; ++c) {
      const RegionSlope<T> slope = incoming_slope<T>(call_, first + c);
      T* out = numbers_.data() + c;
      out[0] = slope.overlap;
      out[width_] = call_.squared ? T(0) : slope.mass;
      out[2 * width_] = call_.squared ? T(2) * slope.mass : T(0);
      const T sum = slope.overlap + slope.mass;
      finite_ = finite_ && sum - sum == T(0);
    }
  }

  const T* overlap() const { return numbers_.data(); }
  const T* linear() const { return numbers_.data() + width_; }
  const T* quadratic() const { return numbers_.data() + 2 * width_; }
  bool finite() const { return finite_; }

 private:
  const RegionCall& call_;
  int64_t width_, first_ = -1;
  bool finite_ = true;
  std::vector<T> numbers_;
};

}  // namespace fusedloss::cpu
