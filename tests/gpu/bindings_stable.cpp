// Registers those of vLLM's stable-ABI operators whose units are built for the run on a GPU, under vLLM's own names and
// schemas; see kernels.py. Takes the place of csrc/libtorch_stable/torch_bindings.cpp.
#include "ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(_C, library) {
  library.def("silu_and_mul(Tensor! result, Tensor input) -> ()");
  library.def("gelu_tanh_and_mul(Tensor! out, Tensor input) -> ()");
  library.def("rms_norm(Tensor! result, Tensor input, Tensor weight, float epsilon) -> ()");
  library.def("fused_add_rms_norm(Tensor! input, Tensor! residual, Tensor weight, float epsilon) -> ()");
  library.def("dynamic_scaled_int8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor!? azp) -> ()");
  library.def("dynamic_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale) -> ()");
  library.def("dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(_C, CUDA, library) {
  library.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  library.impl("gelu_tanh_and_mul", TORCH_BOX(&gelu_tanh_and_mul));
  library.impl("rms_norm", TORCH_BOX(&rms_norm));
  library.impl("fused_add_rms_norm", TORCH_BOX(&fused_add_rms_norm));
  library.impl("dynamic_scaled_int8_quant", TORCH_BOX(&dynamic_scaled_int8_quant));
  library.impl("dynamic_scaled_fp8_quant", TORCH_BOX(&dynamic_scaled_fp8_quant));
  library.impl("dynamic_per_token_scaled_fp8_quant", TORCH_BOX(&dynamic_per_token_scaled_fp8_quant));
}
