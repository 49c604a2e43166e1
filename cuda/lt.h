/* SPDX-License-Identifier: MIT
 * lt.h - of cuBLASLt, what gemm.c calls: its types and numbers as the library's documentation gives them (test/cuda_emu/lt_abi.c
 * holds them against the toolkit's header). The library is looked for when the backend opens, so that a binary runs where there
 * is none. */
#ifndef BDPO_CUDA_LT_H
#define BDPO_CUDA_LT_H
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef void *lt_handle, *lt_desc, *lt_layout, *lt_preference; /* opaque, owned by the library */
struct lt_algo {
    uint64_t data[8];
};
struct lt_heuristic {
    struct lt_algo algo;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};
enum { LT_R_32F = 0, LT_R_16BF = 14, LT_COMPUTE_32F = 68, LT_OP_N = 0, LT_OP_T = 1 };
enum { LT_DESC_TRANSA = 3, LT_DESC_TRANSB = 4, LT_DESC_EPILOGUE = 7, LT_DESC_BIAS_POINTER = 8 };
enum { LT_EPILOGUE_DEFAULT = 1, LT_EPILOGUE_BIAS = 4, LT_EPILOGUE_BGRADB = 512 };
enum { LT_PREF_WORKSPACE = 1, LT_PREF_ALIGN_A = 5, LT_PREF_ALIGN_B, LT_PREF_ALIGN_C, LT_PREF_ALIGN_D };

struct lt { /* 0 is success everywhere */
    void *library;
    char path[512]; /* where it was found */
    int (*create)(lt_handle *h);
    int (*destroy)(lt_handle h);
    size_t (*version)(void);
    int (*desc_create)(lt_desc *d, int compute, int scale_type);
    int (*desc_set)(lt_desc d, int attribute, const void *value, size_t bytes);
    int (*desc_destroy)(lt_desc d);
    int (*layout_create)(lt_layout *l, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_destroy)(lt_layout l);
    int (*pref_create)(lt_preference *p);
    int (*pref_set)(lt_preference p, int attribute, const void *value, size_t bytes);
    int (*pref_destroy)(lt_preference p);
    int (*heuristic)(lt_handle h, lt_desc d, lt_layout a, lt_layout b, lt_layout c, lt_layout y, lt_preference p, int wanted,
                     struct lt_heuristic *found, int *n_found);
    int (*matmul)(lt_handle h, lt_desc d, const void *alpha, const void *a, lt_layout la, const void *b, lt_layout lb, const void *beta,
                  const void *c, lt_layout lc, void *y, lt_layout ly, const struct lt_algo *algo, void *workspace, size_t bytes,
                  cudaStream_t s);
};
/* Find and load the library. ERR_INPUT: it is not there; says where it was looked for and how to mend it. */
int lt_open(struct lt *lt);
void lt_close(struct lt *lt);
#ifdef __cplusplus
}
#endif
#endif
