/* SPDX-License-Identifier: MIT
 * gemm.h - matrix products: the library's handle and plans, in ctx. Private to cuda/. */
#ifndef BDPO_CUDA_GEMM_H
#define BDPO_CUDA_GEMM_H
#include "cuda.h"
#include "lt.h"

/* ERR_INPUT: cuBLASLt is not found, or does not start. */
int gemm_open(struct ctx *cx);
void gemm_close(struct ctx *cx);
int64_t gemm_bytes(void); /* of device memory, taken by gemm_open */
int64_t gemm_version(const struct ctx *cx); /* of cuBLASLt: 130002 is 13.0.2 */
#endif
