/* SPDX-License-Identifier: MIT
 * library.h - NVIDIA's libraries are loaded when a backend opens, so that a binary runs where there are none. Private to cuda/. */
#ifndef BDPO_CUDA_LIBRARY_H
#define BDPO_CUDA_LIBRARY_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Load the first of names (up to two, ended by NULL) that the loader, the toolkit's folders, or Python's nvidia packages have; path[size]
 * gets where it was. ERR_INPUT: none is there, and that `package` (of the Python index) would bring it. */
int library_open(void **library, char *path, size_t size, const char *const *names, const char *package);
/* Functions of a library: `slot` points at a pointer to one. ERR_INPUT: it has no such function. */
struct library_entry {
    void *slot;
    const char *name;
};
int library_entries(void *library, const char *path, const struct library_entry *e, size_t n);
/* NULL: nothing. */
void library_close(void *library);
#ifdef __cplusplus
}
#endif
#endif
