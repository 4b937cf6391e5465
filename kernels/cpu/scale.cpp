// Scaling of a finished gradient on the CPU.
#include "scale.h"

#include "stage.h"
#include "tasks.h"

namespace fusedloss {
namespace {

template <class X, class T>
FUSEDLOSS_CPU_LEVELS void multiply(const X* grad, const T* factor, T scale, int64_t count, X* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = from<X>(to<T>(grad[i]) * (factor[i] * scale));
}

template <class X>
void scale_gradient(ScaleCall call, const cpu::Threads& threads) {
  using T = Accumulator<X>;
  TensorView* views[] = {&call.out, &call.grad, &call.grad_output};
  simplify(call.shape, views, 3);
  const T scale = *static_cast<const T*>(call.scale);
  const cpu::BlockReader<T> factor(call.shape, call.grad_output, T(1));
  const bool untouched =
      call.out.data == call.grad.data && factor.constant() && factor.value() * scale == T(1);
  if (untouched) return;
  const cpu::BlockReader<X> grad(call.shape, call.grad, X{});
  const cpu::BlockWriter<X> out(call.shape, call.out);
  cpu::for_each_task(call.shape.numel(), threads, [&](int64_t, int64_t begin, int64_t end) {
    alignas(64) X grads[cpu::kBlock], results[cpu::kBlock];
    alignas(64) T factors[cpu::kBlock];
    for (int64_t at = begin; at < end; at += cpu::kBlock) {
      const int64_t count = end - at < cpu::kBlock ? end - at : cpu::kBlock;
      X* target = out.target(at, count, results);
      multiply(grad.read(at, count, grads, true), factor.read(at, count, factors, at == begin),
               scale, cpu::whole_vectors(count), target);
      out.finish(at, count, target);
    }
  });
}

}  // namespace

void launch_scale_gradient(const ScaleCall& call, const cpu::Threads& threads) {
  with_logit_type(call.grad.dtype,
                  [&](auto zero) { scale_gradient<decltype(zero)>(call, threads); });
}

}  // namespace fusedloss
