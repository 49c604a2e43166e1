/* SPDX-License-Identifier: MIT
 * nccl.h - of NCCL, what net.c calls: its types and numbers as the library's documentation gives them (test/cuda_emu/nccl_abi.c
 * holds them against its header). The library is looked for when several ranks with a device each begin. */
#ifndef BDPO_CUDA_NCCL_H
#define BDPO_CUDA_NCCL_H
#include <cuda_runtime_api.h>
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef void *nccl_comm; /* opaque, owned by the library */
struct nccl_id {
    char text[128];
};
struct nccl_config { /* the fields of version 2.14, which later ones take as such */
    size_t size;
    unsigned magic, version;
    int blocking;
};
enum { NCCL_OK = 0, NCCL_IN_PROGRESS = 7, NCCL_BYTE = 1 };
#define NCCL_CONFIG { sizeof(struct nccl_config), 0xcafebeefu, 21403, 0 }

struct nccl { /* calls return NCCL_OK, NCCL_IN_PROGRESS (ask async_error until it says something else) or an error */
    void *library;
    char path[512]; /* where it was found */
    int (*unique_id)(struct nccl_id *id);
    int (*init)(nccl_comm *c, int size, struct nccl_id id, int rank, struct nccl_config *config);
    int (*finalize)(nccl_comm c);
    int (*destroy)(nccl_comm c);
    int (*abort)(nccl_comm c);
    int (*async_error)(nccl_comm c, int *error);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *data, size_t n, int type, int peer, nccl_comm c, cudaStream_t s);
    int (*recv)(void *data, size_t n, int type, int peer, nccl_comm c, cudaStream_t s);
    const char *(*error_text)(int error);
};
/* Find and load the library, for the rest of the process: threads of it may run. ERR_INPUT: it is not there; says where it was looked for and
 * how to mend it. */
int nccl_open(struct nccl *n);
#ifdef __cplusplus
}
#endif
#endif
