/* SPDX-License-Identifier: MIT
 * link.h - messages between the memories of the ranks' backends: comm.h's where memory is the host's, from device to device where the backend
 * can do that (net_open of ops.h), else through memory of the host that the device copies from. A link has NET_SLOTS slots; what is started
 * in one is under way until it is finished. Between two ranks messages meet in the order of their starts, so ranks start them in the same order. */
#ifndef BDPO_LINK_H
#define BDPO_LINK_H
#include "comm.h"
#include "dist.h"
#include "../ops/ops.h"

struct link_copy { /* a message by way of the host */
    struct net_message m;
    void *host;
};
struct link_slot {
    struct comm_list list;
    struct link_copy *copy; /* [n] */
    int64_t cap;
    int32_t n, tag;
    bool fetching; /* what is to be sent comes from the device */
    bool used;
};
struct link { /* valid when zeroed */
    struct dist *d;
    const struct backend *be;
    char *room; /* of the host, pinned: slot_bytes for each slot; NULL: not needed */
    int64_t slot_bytes;
    struct link_slot slot[NET_SLOTS];
};

/* How the ranks' devices reach each other: be->net_open, and a line on stderr. Called by all ranks after their backends are open; d->device_ranks is known
 * then. LINK_NCCL: ERR_INPUT where it cannot be from device to device. LINK_HOST: nothing is connected. */
enum link_way { LINK_AUTO, LINK_NCCL, LINK_HOST };
int link_choose(struct dist *d, struct backend *be, enum link_way way);
/* messages: the bytes of one slot's at most. d, be: borrowed. ERR_OOM, ERR_DEVICE. */
int link_open(struct link *l, struct dist *d, const struct backend *be, int64_t slot_bytes);
void link_close(struct link *l);
/* Start n messages in a slot that is free, after the kernels queued so far. tag: the same for the receiver. */
int link_start(struct link *l, int32_t slot, int32_t tag, const struct net_message *m, int32_t n);
/* The slot's messages are there for kernels from now on, which may also write over what was sent. A free slot: nothing. */
int link_finish(struct link *l, int32_t slot);
/* Let messages move on without waiting. */
int link_poke(struct link *l);
/* All slots are free; wait until that is so on the device too. */
int link_drain(struct link *l);
#endif
