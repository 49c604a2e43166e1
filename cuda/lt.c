/* SPDX-License-Identifier: MIT */
#include "library.h"
#include "lt.h"
#include "../src/base/base.h"
#include <string.h>

static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12", NULL };

int lt_open(struct lt *lt)
{
    memset(lt, 0, sizeof *lt);
    TRY(library_open(&lt->library, lt->path, sizeof lt->path, names, "nvidia-cublas"));
    const struct library_entry entries[] = {
        { &lt->create, "cublasLtCreate" },
        { &lt->destroy, "cublasLtDestroy" },
        { &lt->version, "cublasLtGetVersion" },
        { &lt->desc_create, "cublasLtMatmulDescCreate" },
        { &lt->desc_set, "cublasLtMatmulDescSetAttribute" },
        { &lt->desc_destroy, "cublasLtMatmulDescDestroy" },
        { &lt->layout_create, "cublasLtMatrixLayoutCreate" },
        { &lt->layout_destroy, "cublasLtMatrixLayoutDestroy" },
        { &lt->pref_create, "cublasLtMatmulPreferenceCreate" },
        { &lt->pref_set, "cublasLtMatmulPreferenceSetAttribute" },
        { &lt->pref_destroy, "cublasLtMatmulPreferenceDestroy" },
        { &lt->heuristic, "cublasLtMatmulAlgoGetHeuristic" },
        { &lt->matmul, "cublasLtMatmul" },
    };
    const int rc = library_entries(lt->library, lt->path, entries, COUNT_OF(entries));
    if (rc < 0) lt_close(lt);
    return rc;
}

void lt_close(struct lt *lt)
{
    library_close(lt->library);
    memset(lt, 0, sizeof *lt);
}
