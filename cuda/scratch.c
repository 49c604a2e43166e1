/* SPDX-License-Identifier: MIT
 * What the kernels take for themselves, by the sizes of a model. */
#include "cuda.h"

int64_t cuda_need(const struct op_sizes *s)
{
    int64_t need = cuda_bias_scratch(s);
    need = MAX(need, cuda_scatter_scratch(s));
    need = MAX(need, cuda_attention_scratch(s));
    return MAX(need, cuda_logp_scratch(s));
}
