// Scaling of a gradient that was computed in forward: schema, allocation, launch.
#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/scale.h"
#include "device.h"
#include "tensor_view.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/scale.h"
#endif

namespace fusedloss {
namespace {

template <class Context>
void scale_into(const Tensor& grad, const Tensor& grad_output, const Tensor& scale,
                const Tensor& out) {
  STD_TORCH_CHECK(grad_output.scalar_type() == accumulator_of(grad),
                  "scale_gradient: grad_output has not the dtype of the loss");
  check_same_device(grad, grad_output);
  const Context context(grad);
  ScaleCall call{};
  call.shape = shape_of(grad);
  call.grad = view_of(grad, call.shape);
  call.grad_output = view_of(grad_output, call.shape);
  call.out = view_of(out, call.shape);
  // The first number is the gradient's; an operator may have written more.
  STD_TORCH_CHECK(scale.numel() >= 1 && scale.scalar_type() == accumulator_of(grad),
                  "scale_gradient: scale must hold numbers of the loss's dtype");
  check_same_device(grad, scale);
  call.scale = scale.data_ptr();
  launch_scale_gradient(call, context.executor());
}

template <class Context>
Tensor scale_gradient(Tensor grad, Tensor grad_output, Tensor scale) {
  Tensor out = empty_as(grad, grad.scalar_type());
  scale_into<Context>(grad, grad_output, scale, out);
  return out;
}

template <class Context>
void scale_gradient_(Tensor grad, Tensor grad_output, Tensor scale) {
  scale_into<Context>(grad, grad_output, scale, grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def("scale_gradient(Tensor grad, Tensor grad_output, Tensor scale) -> Tensor");
  m.def("scale_gradient_(Tensor(a!) grad, Tensor grad_output, Tensor scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient<CpuContext>));
  m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient<CudaContext>));
  m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_<CudaContext>));
}
#endif

}  // namespace fusedloss
