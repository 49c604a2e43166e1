/* SPDX-License-Identifier: MIT */
#include "link.h"
#include "../base/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

/* --- the way ------------------------------------------------------------------------------------------------------ */

struct place { /* of a rank's device */
    char machine[DIST_MACHINE], device[NET_WHERE];
};

/* Ranks on this rank's device, and the most on any. */
static int count_shares(struct dist *d, const struct backend *be, int32_t *most)
{
    struct place mine, *all = NULL;
    int rc;
    memset(&mine, 0, sizeof mine);
    dist_machine(mine.machine);
    rc = be->net->where(be->cx, mine.device);
    TRY(dist_agree(d, rc));
    TRY_OUT(MEM_NEW(&all, d->size));
    TRY_OUT(dist_gather(d, &mine, all, sizeof mine));
    *most = 0;
    for (int32_t a = 0; a < d->size; a++) {
        int32_t n = 0;
        for (int32_t b = 0; b < d->size; b++)
            n += memcmp(&all[a], &all[b], sizeof mine) == 0;
        if (a == d->rank) d->device_ranks = n;
        *most = MAX(*most, n);
    }
out:
    free(all);
    return rc;
}

/* Called by all ranks: one that fails tells the others before they wait for it. */
static int connect_devices(struct dist *d, struct backend *be)
{
    char ticket[NET_TICKET] = { 0 };
    TRY(dist_agree(d, be->net->ticket(be->cx, d->rank == 0 ? ticket : NULL)));
    TRY(dist_bcast(d, ticket, sizeof ticket));
    const double since = dist_enter("connecting the devices", 1);
    const int rc = be->net->open(be->cx, ticket, d->rank, d->size);
    dist_leave(d, since);
    return dist_agree(d, rc);
}

int link_choose(struct dist *d, struct backend *be, enum link_way way)
{
    int32_t most;
    if (dist_size(d) == 1 || !d->comm || !be->net) return 0;
    TRY(count_shares(d, be, &most));
    if (way == LINK_HOST) return 0;
    if (most > 1) {
        if (way == LINK_NCCL)
            return err_set(ERR_INPUT,
                           "dist.transport: \"nccl\" takes a device for each rank, and %d share "
                           "one; start fewer ranks, or set \"auto\"",
                           most);
        fprintf(stderr, "ranks: %d share a device; gradients and weights go through the host\n",
                most);
        return 0;
    }
    const int rc = connect_devices(d, be);
    be->net_open = rc == 0;
    if (rc == 0) {
        fprintf(stderr,
                "ranks: a device each; gradients and weights go from device to device (NCCL)\n");
        return 0;
    }
    if (way == LINK_NCCL || rc != ERR_INPUT)
        return err_note(rc, "dist.transport (\"host\" does without NCCL)");
    fprintf(stderr, "ranks: warning: gradients and weights go through the host: %s\n", err_msg());
    dist_recover(d);
    return 0;
}

/* --- messages ----------------------------------------------------------------------------------------------------- */

int link_open(struct link *l, struct dist *d, const struct backend *be, int64_t slot_bytes)
{
    memset(l, 0, sizeof *l);
    l->d = d;
    l->be = be;
    l->slot_bytes = slot_bytes;
    if (dist_size(d) == 1 || !be->net || be->net_open) return 0;
    return be->net->pin(be->cx, (void **)&l->room, NET_SLOTS * slot_bytes);
}

void link_close(struct link *l)
{
    for (int32_t s = 0; s < NET_SLOTS; s++) {
        comm_list_release(&l->slot[s].list);
        free(l->slot[s].copy);
    }
    if (l->room) l->be->net->unpin(l->be->cx, l->room);
    memset(l, 0, sizeof *l);
}

static int post(struct link *l, struct link_slot *s, const struct net_message *m, void *data)
{
    return m->send ? comm_send(l->d->comm, &s->list, data, m->bytes, m->rank, s->tag)
                   : comm_recv(l->d->comm, &s->list, data, m->bytes, m->rank, s->tag);
}

/* What is to be sent is copied to the host first, what arrives has its place there. */
static int start_copies(struct link *l, int32_t at, const struct net_message *m, int32_t n)
{
    struct link_slot *s = &l->slot[at];
    int64_t used = 0;
    TRY(MEM_GROW(&s->copy, &s->cap, n));
    s->n = n;
    s->fetching = false;
    for (int32_t i = 0; i < n; i++) {
        void *host = l->room + at * l->slot_bytes + used;
        s->copy[i] = (struct link_copy){ m[i], host };
        used += round_up(m[i].bytes, ALIGN);
        BUG_IF(used > l->slot_bytes);
        if (!m[i].send) {
            TRY(post(l, s, &m[i], host));
            continue;
        }
        TRY(l->be->net->fetch(l->be->cx, at, host, m[i].data, m[i].bytes));
        s->fetching = true;
    }
    return 0;
}

/* Send what has come from the device; wait: wait until it has. */
static int send_fetched(struct link *l, int32_t at, bool wait)
{
    struct link_slot *s = &l->slot[at];
    bool done;
    if (!s->fetching) return 0;
    TRY(l->be->net->fetched(l->be->cx, at, wait, &done));
    if (!done) return 0;
    s->fetching = false;
    for (int32_t i = 0; i < s->n; i++)
        if (s->copy[i].m.send) TRY(post(l, s, &s->copy[i].m, s->copy[i].host));
    return 0;
}

int link_start(struct link *l, int32_t slot, int32_t tag, const struct net_message *m, int32_t n)
{
    struct link_slot *s = &l->slot[slot];
    BUG_IF(s->used);
    s->used = true;
    s->tag = tag;
    if (l->be->net_open) return l->be->net->start(l->be->cx, slot, m, n);
    if (l->room) {
        TRY(start_copies(l, slot, m, n));
        return link_poke(l);
    }
    for (int32_t i = 0; i < n; i++)
        TRY(post(l, s, &m[i], m[i].data));
    return 0;
}

int link_finish(struct link *l, int32_t slot)
{
    struct link_slot *s = &l->slot[slot];
    const struct backend *be = l->be;
    if (!s->used) return 0;
    s->used = false;
    if (be->net_open) return be->net->join(be->cx, slot);
    if (l->room) TRY(send_fetched(l, slot, true));
    TRY(comm_wait(l->d->comm, &s->list));
    for (int32_t i = 0; i < s->n && l->room; i++)
        if (!s->copy[i].m.send)
            TRY(be->mem->to_device(be->cx, s->copy[i].m.data, s->copy[i].host, s->copy[i].m.bytes));
    return 0;
}

int link_poke(struct link *l)
{
    for (int32_t s = 0; s < NET_SLOTS; s++) {
        if (!l->slot[s].used || l->be->net_open) continue;
        if (l->room) TRY(send_fetched(l, s, false));
        TRY(comm_poke(l->d->comm, &l->slot[s].list));
    }
    return 0;
}

int link_drain(struct link *l)
{
    for (int32_t s = 0; s < NET_SLOTS; s++)
        TRY(link_finish(l, s));
    return l->be->net_open ? l->be->net->drain(l->be->cx) : 0;
}
