/* SPDX-License-Identifier: MIT
 * Compiled where the toolkit's headers are: cuda/lt.h says what they say. */
#include "../../cuda/lt.h"
#include <cublasLt.h>

#define SAME(a, b) _Static_assert((int)(a) == (int)(b), #b)
SAME(LT_R_32F, CUDA_R_32F);
SAME(LT_R_16BF, CUDA_R_16BF);
SAME(LT_COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(LT_OP_N, CUBLAS_OP_N);
SAME(LT_OP_T, CUBLAS_OP_T);
SAME(LT_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(LT_DESC_TRANSB, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(LT_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(LT_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(LT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_DEFAULT);
SAME(LT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(LT_EPILOGUE_BGRADB, CUBLASLT_EPILOGUE_BGRADB);
SAME(LT_PREF_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(LT_PREF_ALIGN_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(LT_PREF_ALIGN_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(LT_PREF_ALIGN_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(LT_PREF_ALIGN_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(sizeof(struct lt_algo), sizeof(cublasLtMatmulAlgo_t));
SAME(sizeof(struct lt_heuristic), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(struct lt_heuristic, workspace),
     offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(struct lt_heuristic, status), offsetof(cublasLtMatmulHeuristicResult_t, state));

/* the functions take as many arguments, of the same sizes */
int lt_abi_calls(struct lt *lt);
int lt_abi_calls(struct lt *lt)
{
    cublasLtHandle_t h = 0;
    cublasLtMatmulDesc_t d = 0;
    cublasLtMatrixLayout_t l = 0;
    cublasLtMatmulPreference_t p = 0;
    cublasLtMatmulAlgo_t algo;
    cublasLtMatmulHeuristicResult_t r;
    int n = 0;
    SAME(sizeof(cublasLtMatmulAlgoGetHeuristic(h, d, l, l, l, l, p, n, &r, &n)),
         sizeof(lt->heuristic(h, d, l, l, l, l, p, n, 0, &n)));
    SAME(sizeof(cublasLtMatmul(h, d, &n, &n, l, &n, l, &n, &n, l, &n, l, &algo, &n, sizeof n,
                               (cudaStream_t)0)),
         sizeof(lt->matmul(h, d, &n, &n, l, &n, l, &n, &n, l, &n, l, 0, &n, sizeof n,
                           (cudaStream_t)0)));
    SAME(sizeof(cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, (uint64_t)1, (uint64_t)1, (int64_t)1)),
         sizeof(lt->layout_create(0, 0, 1, 1, 1)));
    return n;
}
