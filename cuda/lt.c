/* SPDX-License-Identifier: MIT */
#include "library.h"
#include "lt.h"
#include "../src/base/base.h"
#include <dlfcn.h>
#include <string.h>

static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12", NULL };

/* *(void **): how POSIX turns an object's address into a function's */
static bool entry(const struct lt *lt, void *slot, const char *name)
{
    void *p = dlsym(lt->library, name);
    memcpy(slot, &p, sizeof p);
    if (!p) err_set(ERR_INPUT, "%s has no %s", lt->path, name);
    return p != NULL;
}

int lt_open(struct lt *lt)
{
    memset(lt, 0, sizeof *lt);
    TRY(library_open(&lt->library, lt->path, sizeof lt->path, names, "nvidia-cublas"));
    const bool ok = entry(lt, &lt->create, "cublasLtCreate") &&
                    entry(lt, &lt->destroy, "cublasLtDestroy") &&
                    entry(lt, &lt->version, "cublasLtGetVersion") &&
                    entry(lt, &lt->desc_create, "cublasLtMatmulDescCreate") &&
                    entry(lt, &lt->desc_set, "cublasLtMatmulDescSetAttribute") &&
                    entry(lt, &lt->desc_destroy, "cublasLtMatmulDescDestroy") &&
                    entry(lt, &lt->layout_create, "cublasLtMatrixLayoutCreate") &&
                    entry(lt, &lt->layout_destroy, "cublasLtMatrixLayoutDestroy") &&
                    entry(lt, &lt->pref_create, "cublasLtMatmulPreferenceCreate") &&
                    entry(lt, &lt->pref_set, "cublasLtMatmulPreferenceSetAttribute") &&
                    entry(lt, &lt->pref_destroy, "cublasLtMatmulPreferenceDestroy") &&
                    entry(lt, &lt->heuristic, "cublasLtMatmulAlgoGetHeuristic") &&
                    entry(lt, &lt->matmul, "cublasLtMatmul");
    if (ok) return 0;
    lt_close(lt);
    return ERR_INPUT;
}

void lt_close(struct lt *lt)
{
    library_close(lt->library);
    memset(lt, 0, sizeof *lt);
}
