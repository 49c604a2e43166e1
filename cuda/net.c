/* SPDX-License-Identifier: MIT
 * net.c - what goes between the devices of several ranks, or to the host for them, on a stream of its own. */
#include "cuda.h"
#include "nccl.h"
#include "../src/base/mem.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct net {
    cudaStream_t stream;
    cudaEvent_t queued;          /* the kernels before a piece of work */
    cudaEvent_t done[NET_SLOTS]; /* a slot's last piece of work */
    struct nccl nccl;
    nccl_comm comm; /* NULL: none */
    bool failed;    /* it cannot be closed in an orderly way */
};
enum { ROUND = 256 << 20, CLOSE_SECONDS = 10, PAUSE = 20000 /* ns */ };

static void pause_a_little(void)
{
    const struct timespec t = { 0, PAUSE };
    nanosleep(&t, NULL);
}

static int net_of(struct ctx *cx, struct net **out)
{
    if (!cx->net) {
        TRY(MEM_NEW(&cx->net, 1));
        CUDA_TRY(cudaStreamCreateWithFlags(&cx->net->stream, cudaStreamNonBlocking));
        CUDA_TRY(cudaEventCreateWithFlags(&cx->net->queued, cudaEventDisableTiming));
        for (int i = 0; i < NET_SLOTS; i++)
            CUDA_TRY(cudaEventCreateWithFlags(&cx->net->done[i], cudaEventDisableTiming));
    }
    *out = cx->net;
    return 0;
}

static int after_kernels(struct ctx *cx, struct net *n)
{
    CUDA_TRY(cudaEventRecord(n->queued, cx->stream));
    CUDA_TRY(cudaStreamWaitEvent(n->stream, n->queued, 0));
    return 0;
}

static int net_where(struct ctx *cx, char out[NET_WHERE])
{
    CUDA_TRY(cudaDeviceGetPCIBusId(out, NET_WHERE, cx->device));
    return 0;
}

/* --- through the host ------------------------------------------------------------------------------------------------------ */
static int net_pin(struct ctx *cx, void **out, int64_t bytes)
{
    (void)cx;
    CUDA_TRY(cudaMallocHost(out, (size_t)MAX(bytes, (int64_t)1)));
    return 0;
}

static void net_unpin(struct ctx *cx, void *p)
{
    (void)cx;
    (void)cudaFreeHost(p);
}

static int net_fetch(struct ctx *cx, int32_t slot, void *host, const void *src, int64_t bytes)
{
    struct net *n;
    TRY(net_of(cx, &n));
    TRY(after_kernels(cx, n));
    CUDA_TRY(cudaMemcpyAsync(host, src, (size_t)bytes, cudaMemcpyDeviceToHost, n->stream));
    CUDA_TRY(cudaEventRecord(n->done[slot], n->stream));
    return 0;
}

static int has_happened(cudaEvent_t e, bool *done)
{
    const cudaError_t rc = cudaEventQuery(e);
    *done = rc == cudaSuccess;
    return rc == cudaSuccess || rc == cudaErrorNotReady ? 0 : cuda_failed(rc, "cudaEventQuery");
}

static int net_fetched(struct ctx *cx, int32_t slot, bool wait, bool *done)
{
    struct net *n;
    TRY(net_of(cx, &n));
    if (wait) CUDA_TRY(cudaEventSynchronize(n->done[slot]));
    return has_happened(n->done[slot], done);
}

/* --- from device to device --------------------------------------------------------------------------------------------------- */
static int nccl_failed(struct net *n, int error, const char *what)
{
    n->failed = true;
    return err_set(ERR_COMM, "NCCL: %s: %s (NCCL_DEBUG=WARN in the environment says more)", what,
                   n->nccl.error_text(error));
}

/* The calls do not wait for other ranks; what they began is over when this returns. seconds 0: as long as it takes. */
static int settle(struct net *n, int rc, const char *what, int seconds)
{
    const time_t end = time(NULL) + seconds;
    while (rc == NCCL_IN_PROGRESS) {
        int state;
        rc = n->nccl.async_error(n->comm, &state);
        if (rc == NCCL_OK) rc = state;
        if (rc != NCCL_IN_PROGRESS) break;
        if (seconds && time(NULL) > end) return err_set(ERR_COMM, "NCCL: %s takes too long", what);
        pause_a_little();
    }
    return rc == NCCL_OK ? 0 : nccl_failed(n, rc, what);
}

static int load_nccl(struct ctx *cx, struct net **n)
{
    TRY(net_of(cx, n));
    return (*n)->nccl.library ? 0 : nccl_open(&(*n)->nccl);
}

static int net_ticket(struct ctx *cx, void *ticket)
{
    struct net *n;
    TRY(load_nccl(cx, &n));
    if (!ticket) return 0;
    _Static_assert(sizeof(struct nccl_id) == NET_TICKET, "a ticket is NCCL's id");
    const int rc = n->nccl.unique_id(ticket);
    return rc == NCCL_OK ? 0 : nccl_failed(n, rc, "ncclGetUniqueId");
}

static int net_start(struct ctx *cx, int32_t slot, const struct net_message *m, int32_t count)
{
    struct net *n = cx->net;
    const struct nccl *l = &n->nccl;
    TRY(after_kernels(cx, n));
    int rc = count ? l->group_start() : NCCL_OK;
    for (int32_t i = 0; i < count && (rc == NCCL_OK || rc == NCCL_IN_PROGRESS); i++)
        rc = m[i].send
                 ? l->send(m[i].data, (size_t)m[i].bytes, NCCL_BYTE, m[i].rank, n->comm, n->stream)
                 : l->recv(m[i].data, (size_t)m[i].bytes, NCCL_BYTE, m[i].rank, n->comm, n->stream);
    if (rc != NCCL_OK && rc != NCCL_IN_PROGRESS) return nccl_failed(n, rc, "ncclSend, ncclRecv");
    if (count) TRY(settle(n, l->group_end(), "ncclGroupEnd", 0));
    CUDA_TRY(cudaEventRecord(n->done[slot], n->stream));
    return 0;
}

/* The library connects two ranks at their first message, and takes memory for that: here, before memory is looked at. */
static int greet(struct ctx *cx, int32_t rank, int32_t size)
{
    struct net_message *m;
    int32_t count = 0;
    TRY(MEM_NEW(&m, 2 * size));
    for (int32_t r = 0; r < size; r++) {
        if (r == rank) continue;
        m[count++] = (struct net_message){ cx->partial, sizeof *cx->partial, r, true };
        m[count++] = (struct net_message){ cx->partial + 1 + r % SUMSQ_BLOCKS, sizeof *cx->partial,
                                           r, false };
    }
    const int rc = net_start(cx, 0, m, count);
    free(m);
    TRY(rc);
    CUDA_TRY(cudaStreamSynchronize(cx->net->stream));
    return 0;
}

static int net_open(struct ctx *cx, const void *ticket, int32_t rank, int32_t size)
{
    struct nccl_config config = NCCL_CONFIG;
    struct nccl_id id;
    struct net *n;
    size_t before, after, total;
    TRY(load_nccl(cx, &n));
    memcpy(&id, ticket, sizeof id);
    CUDA_TRY(cudaMemGetInfo(&before, &total));
    TRY(settle(n, n->nccl.init(&n->comm, size, id, rank, &config), "ncclCommInitRankConfig", 0));
    TRY(greet(cx, rank, size));
    CUDA_TRY(cudaMemGetInfo(&after, &total));
    cx->net_bytes = before > after ? (int64_t)(before - after) : 0;
    cx->free_at_open -= cx->net_bytes;
    cx->net_bytes = round_up(cx->net_bytes, ROUND); /* so that runs have the same memory left */
    return 0;
}

static int net_join(struct ctx *cx, int32_t slot)
{
    CUDA_TRY(cudaStreamWaitEvent(cx->stream, cx->net->done[slot], 0));
    return 0;
}

static int net_drain(struct ctx *cx)
{
    struct net *n = cx->net;
    for (int i = 0; i < NET_SLOTS;) {
        int state = NCCL_OK;
        bool done;
        const int rc = n->nccl.async_error(n->comm, &state);
        if (rc != NCCL_OK || (state != NCCL_OK && state != NCCL_IN_PROGRESS))
            return nccl_failed(n, rc != NCCL_OK ? rc : state, "a message between ranks");
        TRY(has_happened(n->done[i], &done));
        if (done)
            i++;
        else
            pause_a_little();
    }
    return 0;
}

/* All ranks come here after an orderly end; after another one, and where a rank does not come, messages are given up. */
static void leave(struct net *n)
{
    if (!n->failed &&
        settle(n, n->nccl.finalize(n->comm), "ncclCommFinalize", CLOSE_SECONDS) == 0) {
        (void)n->nccl.destroy(n->comm);
        return;
    }
    (void)n->nccl.abort(n->comm);
}

static void net_close(struct ctx *cx)
{
    struct net *n = cx->net;
    if (!n) return;
    if (n->comm) leave(n);
    for (int i = 0; i < NET_SLOTS; i++)
        if (n->done[i]) (void)cudaEventDestroy(n->done[i]);
    if (n->queued) (void)cudaEventDestroy(n->queued);
    if (n->stream) (void)cudaStreamDestroy(n->stream);
    free(n);
    cx->net = NULL;
}

const struct netops cuda_net = {
    .where = net_where,
    .pin = net_pin,
    .unpin = net_unpin,
    .fetch = net_fetch,
    .fetched = net_fetched,
    .ticket = net_ticket,
    .open = net_open,
    .start = net_start,
    .join = net_join,
    .drain = net_drain,
    .close = net_close,
};
