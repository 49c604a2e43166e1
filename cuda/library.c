/* SPDX-License-Identifier: MIT */
#include "library.h"
#include "../src/base/base.h"
#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    /* pip's nvidia-cublas (cu13), nvidia-cublas-cu12 (cublas) and nvidia-nccl (nccl) */
    { "VIRTUAL_ENV", "%s/lib/python3*/site-packages/nvidia/*/lib" },
    { "CONDA_PREFIX", "%s/lib/python3*/site-packages/nvidia/*/lib" },
    { "CONDA_PREFIX", "%s/lib" },
    { "HOME", "%s/.local/lib/python3*/site-packages/nvidia/*/lib" },
    { NULL, "/usr/local/lib/python3*/dist-packages/nvidia/*/lib" },
    { NULL, "/usr/local/lib/python3*/site-packages/nvidia/*/lib" },
    { NULL, "/usr/lib/python3*/dist-packages/nvidia/*/lib" },
};

struct search { /* the handle, once found, and where that was */
    void *library;
    char *path;
    size_t size;
};

static bool load(struct search *s, const char *folder, const char *name)
{
    const int n = snprintf(s->path, s->size, "%s%s%s", folder, folder[0] ? "/" : "", name);
    if (n < 0 || (size_t)n >= s->size) return false;
    s->library = dlopen(s->path, RTLD_NOW | RTLD_LOCAL);
    return s->library != NULL;
}

static bool look_in(struct search *s, const char *pattern, const char *name)
{
    glob_t found;
    bool ok = false;
    if (glob(pattern, 0, NULL, &found) != 0) return false;
    for (size_t i = 0; i < found.gl_pathc && !ok; i++)
        ok = load(s, found.gl_pathv[i], name);
    globfree(&found);
    return ok;
}

static bool find(struct search *s, const char *name)
{
    char pattern[1024];
    if (load(s, "", name)) return true;
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        const char *value = places[i].variable ? getenv(places[i].variable) : "";
        const char *rest = places[i].pattern + (places[i].variable ? 2 : 0);
        if (!value || (places[i].variable && !value[0])) continue;
        const int n = snprintf(pattern, sizeof pattern, "%s%s", value, rest);
        if (n > 0 && (size_t)n < sizeof pattern && look_in(s, pattern, name)) return true;
    }
    return false;
}

int library_open(void **library, char *path, size_t size, const char *const *names,
                 const char *package)
{
    struct search s = { NULL, path, size };
    for (const char *const *name = names; *name && !s.library; name++)
        (void)find(&s, *name);
    *library = s.library;
    if (s.library) return 0;
    path[0] = 0;
    return err_set(ERR_INPUT,
                   "%s%s%s was not found, in the loader's path, the toolkit's folders or Python's "
                   "nvidia packages; install one (pip install %s) or name its folder in "
                   "BDPO_CUDA_LIBRARIES",
                   names[0], names[1] ? " or " : "", names[1] ? names[1] : "", package);
}

/* memcpy: how an object's address becomes a function's */
int library_entries(void *library, const char *path, const struct library_entry *e, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        void *p = dlsym(library, e[i].name);
        memcpy(e[i].slot, &p, sizeof p);
        if (!p) return err_set(ERR_INPUT, "%s has no %s", path, e[i].name);
    }
    return 0;
}

void library_close(void *library)
{
    if (library) dlclose(library);
}
