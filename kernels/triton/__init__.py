"""The losses as Triton kernels: the engines, the losses, and the operators that launch them.

Like the CUDA kernels these read the logits once forward and once backward, keep a few numbers a row and
never wait for the device. A loss is a file of ``@triton.jit`` functions in ``loss/``; the engines take
them as constexpr arguments and know none of them.
"""
