/* SPDX-License-Identifier: MIT */
#include "nccl.h"
#include "library.h"
#include "../src/base/base.h"
#include <string.h>

int nccl_open(struct nccl *n)
{
    static const char *const names[] = { "libnccl.so.2", NULL };
    memset(n, 0, sizeof *n);
    TRY(library_open(&n->library, n->path, sizeof n->path, names, "nvidia-nccl-cu13"));
    const struct library_entry entries[] = {
        { &n->unique_id, "ncclGetUniqueId" },
        { &n->init, "ncclCommInitRankConfig" },
        { &n->finalize, "ncclCommFinalize" },
        { &n->destroy, "ncclCommDestroy" },
        { &n->abort, "ncclCommAbort" },
        { &n->async_error, "ncclCommGetAsyncError" },
        { &n->group_start, "ncclGroupStart" },
        { &n->group_end, "ncclGroupEnd" },
        { &n->send, "ncclSend" },
        { &n->recv, "ncclRecv" },
        { &n->error_text, "ncclGetErrorString" },
    };
    const int rc = library_entries(n->library, n->path, entries, COUNT_OF(entries));
    if (rc == 0) return 0;
    library_close(n->library);
    memset(n, 0, sizeof *n);
    return rc;
}
