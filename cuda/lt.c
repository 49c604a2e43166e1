/* SPDX-License-Identifier: MIT */
#include "lt.h"
#include "../src/base/base.h"
#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12" };

/* Patterns of folders, after those of the loader itself. %s: the value of the variable, left out where that is not set. */
static const struct {
    const char *variable, *pattern;
} places[] = {
    { "BDPO_CUDA_LIBRARIES", "%s" },
    { "CUDA_HOME", "%s/lib64" },
    { "CUDA_PATH", "%s/lib64" },
    { NULL, "/usr/local/cuda/lib64" },
    { NULL, "/usr/local/cuda-*/lib64" },
    { NULL, "/usr/lib/x86_64-linux-gnu" },
    /* pip's nvidia-cublas (cu13) and nvidia-cublas-cu12 (cublas) */
    { "VIRTUAL_ENV", "%s/lib/python3*/site-packages/nvidia/c*/lib" },
    { "CONDA_PREFIX", "%s/lib/python3*/site-packages/nvidia/c*/lib" },
    { "CONDA_PREFIX", "%s/lib" },
    { "HOME", "%s/.local/lib/python3*/site-packages/nvidia/c*/lib" },
    { NULL, "/usr/local/lib/python3*/dist-packages/nvidia/c*/lib" },
    { NULL, "/usr/local/lib/python3*/site-packages/nvidia/c*/lib" },
    { NULL, "/usr/lib/python3*/dist-packages/nvidia/c*/lib" },
};

static bool load(struct lt *lt, const char *folder, const char *name)
{
    const int n = snprintf(lt->path, sizeof lt->path, "%s%s%s", folder, folder[0] ? "/" : "", name);
    if (n < 0 || (size_t)n >= sizeof lt->path) return false;
    lt->library = dlopen(lt->path, RTLD_NOW | RTLD_LOCAL);
    return lt->library != NULL;
}

static bool search(struct lt *lt, const char *pattern, const char *name)
{
    glob_t found;
    bool ok = false;
    if (glob(pattern, 0, NULL, &found) != 0) return false;
    for (size_t i = 0; i < found.gl_pathc && !ok; i++)
        ok = load(lt, found.gl_pathv[i], name);
    globfree(&found);
    return ok;
}

static bool find(struct lt *lt, const char *name)
{
    char pattern[1024];
    if (load(lt, "", name)) return true;
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        const char *value = places[i].variable ? getenv(places[i].variable) : "";
        const char *rest = places[i].pattern + (places[i].variable ? 2 : 0);
        if (!value || (places[i].variable && !value[0])) continue;
        const int n = snprintf(pattern, sizeof pattern, "%s%s", value, rest);
        if (n > 0 && (size_t)n < sizeof pattern && search(lt, pattern, name)) return true;
    }
    return false;
}

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
    bool there = false;
    memset(lt, 0, sizeof *lt);
    for (size_t i = 0; i < COUNT_OF(names) && !there; i++)
        there = find(lt, names[i]);
    if (!there) {
        lt->path[0] = 0;
        return err_set(ERR_INPUT,
                       "neither %s nor %s was found, in the loader's path, the toolkit's "
                       "folders or Python's nvidia packages; install one of them (pip "
                       "install nvidia-cublas) or name its folder in BDPO_CUDA_LIBRARIES",
                       names[0], names[1]);
    }
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
    if (lt->library) dlclose(lt->library);
    memset(lt, 0, sizeof *lt);
}
