/* SPDX-License-Identifier: MIT
 * Compiled where NCCL's header is: cuda/nccl.h says what it says. */
#include "../../cuda/nccl.h"
#include <nccl.h>

#define SAME(a, b) _Static_assert((long long)(a) == (long long)(b), #b)
SAME(NCCL_OK, ncclSuccess);
SAME(NCCL_IN_PROGRESS, ncclInProgress);
SAME(NCCL_BYTE, ncclUint8);
SAME(sizeof(struct nccl_id), sizeof(ncclUniqueId));
SAME(offsetof(struct nccl_config, size), offsetof(ncclConfig_t, size));
SAME(offsetof(struct nccl_config, magic), offsetof(ncclConfig_t, magic));
SAME(offsetof(struct nccl_config, version), offsetof(ncclConfig_t, version));
SAME(offsetof(struct nccl_config, blocking), offsetof(ncclConfig_t, blocking));

/* the functions take as many arguments, of the same sizes; the magic number is the header's */
int nccl_abi_calls(struct nccl *n);
int nccl_abi_calls(struct nccl *n)
{
    const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
    const struct nccl_config ours = NCCL_CONFIG;
    ncclUniqueId id;
    struct nccl_id own;
    ncclComm_t c = 0;
    int v = 0;
    SAME(sizeof(ncclCommInitRankConfig(&c, v, id, v, (ncclConfig_t *)0)),
         sizeof(n->init((nccl_comm *)&c, v, own, v, 0)));
    SAME(sizeof(ncclSend(&v, sizeof v, ncclUint8, v, c, (cudaStream_t)0)),
         sizeof(n->send(&v, sizeof v, NCCL_BYTE, v, c, (cudaStream_t)0)));
    SAME(sizeof(ncclRecv(&v, sizeof v, ncclUint8, v, c, (cudaStream_t)0)),
         sizeof(n->recv(&v, sizeof v, NCCL_BYTE, v, c, (cudaStream_t)0)));
    return theirs.magic != ours.magic;
}
