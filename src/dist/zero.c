/* SPDX-License-Identifier: MIT */
#include "zero.h"
#include "../base/mem.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GRAIN = 1024, BUCKET = 1 << 22 };

/* --- the map ------------------------------------------------------------------------------------------------------ */

int zero_init(struct zero *z, struct dist *d, const struct backend *be, int64_t n_flat)
{
    memset(z, 0, sizeof *z);
    z->d = d;
    z->be = be;
    z->n_flat = n_flat;
    for (int i = 0; i < ZERO_SLOTS; i++)
        z->slot[i].bucket = -1;
    return 0;
}

void zero_release(struct zero *z)
{
    link_close(&z->link);
    free(z->message);
    free(z->group);
    free(z->bucket);
    free(z->part);
    memset(z, 0, sizeof *z);
}

int zero_add_group(struct zero *z, int64_t begin, int64_t end)
{
    BUG_IF(begin < 0 || end <= begin || end > z->n_flat || z->part);
    TRY(MEM_GROW(&z->group, &z->group_cap, z->n_groups + 1));
    z->group[z->n_groups++] = (struct zero_group){ begin, end, 0, 0 };
    return 0;
}

/* The group that begins at element `at`. */
static struct zero_group *group_at(const struct zero *z, int64_t at)
{
    for (int32_t g = 0; g < z->n_groups; g++)
        if (z->group[g].begin == at) return &z->group[g];
    bug(__FILE__, __LINE__, "the groups do not cover the flat parameters");
}

static int split_group(struct zero *z, struct zero_group *g)
{
    g->first = z->n_buckets;
    for (int64_t at = g->begin; at < g->end; at += BUCKET) {
        const int64_t n = MIN((int64_t)BUCKET, g->end - at);
        const int64_t part = round_up(div_up(n, dist_size(z->d)), GRAIN);
        TRY(MEM_GROW(&z->bucket, &z->bucket_cap, z->n_buckets + 1));
        z->bucket[z->n_buckets++] = (struct zero_bucket){ at, at + n, part, z->n_blocks };
        z->n_blocks += div_up(n, GRAIN);
        z->part_max = MAX(z->part_max, part);
    }
    g->n = z->n_buckets - g->first;
    return 0;
}

struct flat_part zero_part(const struct zero *z, int32_t b, int32_t r)
{
    const struct zero_bucket *k = &z->bucket[b];
    const int32_t size = dist_size(z->d), place = (r + size - b % size) % size;
    const int64_t begin = MIN(k->begin + place * k->part, k->end);
    return (struct flat_part){ begin, MIN(begin + k->part, k->end), 0 };
}

int zero_split(struct zero *z)
{
    for (int64_t at = 0; at < z->n_flat;) {
        struct zero_group *g = group_at(z, at);
        TRY(split_group(z, g));
        at = g->end;
    }
    TRY(MEM_NEW(&z->part, z->n_buckets));
    for (int32_t b = 0; b < z->n_buckets; b++) {
        z->part[b] = zero_part(z, b, dist_rank(z->d));
        z->part[b].at = z->n_shard;
        z->n_shard += z->part[b].end - z->part[b].begin;
    }
    return 0;
}

int zero_plan(struct zero *z, struct plan *p, const struct tensor *grads, bool rounds, bool windows)
{
    const int64_t others = dist_size(z->d) - 1;
    BUG_IF(!z->part || (windows && !rounds));
    z->grads = grads;
    z->rounds = rounds;
    z->windows = windows;
    if (rounds) TRY(plan_book(p, PLAN_GRADIENTS, &z->sum, DT_F32, z->n_shard, 1, 1, 1));
    if (others == 0) return 0;
    return plan_book(p, PLAN_COMM, &z->stage, DT_F32, ZERO_SLOTS * others, z->part_max, 1, 1);
}

/* Room for what a slot has under way: a part to every other rank, and one from it. */
int zero_ready(struct zero *z)
{
    const int64_t others = dist_size(z->d) - 1;
    if (others == 0) return 0;
    TRY(MEM_NEW(&z->message, 2 * others));
    return link_open(&z->link, z->d, z->be, 2 * others * z->part_max * (int64_t)sizeof(float));
}

/* --- reduction ---------------------------------------------------------------------------------------------------- */

int zero_begin(struct zero *z)
{
    return z->rounds ? op_fill(z->be, &z->sum, 0) : 0;
}

void zero_round(struct zero *z, const bool *active)
{
    z->active = active;
    z->next = 0;
}

/* Where rank r's part of a bucket in slot s arrives. */
static struct tensor stage_row(const struct zero *z, int32_t s, int32_t r, int64_t n)
{
    const int32_t rank = dist_rank(z->d), others = dist_size(z->d) - 1;
    const struct tensor row = tensor_rows(&z->stage, s * others + (r < rank ? r : r - 1), 1);
    return tensor_view(row.data, DT_F32, n, 1, 1, 1);
}

static int start_bucket(struct zero *z, int32_t s, int32_t b, const float *data)
{
    struct zero_slot *slot = &z->slot[s];
    const int32_t rank = dist_rank(z->d), size = dist_size(z->d);
    const int64_t mine = z->part[b].end - z->part[b].begin;
    int32_t count = 0;
    slot->bucket = b;
    slot->data = data;
    if (size == 1) return 0;
    for (int32_t r = 0; r < size; r++) {
        if (r == rank || !z->active[r] || mine == 0) continue;
        const struct tensor to = stage_row(z, s, r, mine);
        z->message[count++] = (struct net_message){ to.data, mine * 4, r, false };
    }
    /* each rank begins with another one */
    for (int32_t i = 1; i < size && z->active[rank]; i++) {
        const int32_t r = (rank + i) % size;
        const struct flat_part p = zero_part(z, b, r);
        const int64_t n = p.end - p.begin;
        if (n == 0) continue;
        void *from = (void *)(uintptr_t)(data + (p.begin - z->bucket[b].begin));
        z->message[count++] = (struct net_message){ from, n * 4, r, true };
        z->d->bytes += n * 4;
    }
    return link_start(&z->link, s, b, z->message, count);
}

static int finish_slot(struct zero *z, int32_t s)
{
    struct zero_slot *slot = &z->slot[s];
    const int32_t b = slot->bucket, rank = dist_rank(z->d), size = dist_size(z->d);
    if (b < 0) return 0;
    slot->bucket = -1;
    if (size > 1) TRY(link_finish(&z->link, s));
    watch_beat();
    const struct flat_part *p = &z->part[b];
    const int64_t n = p->end - p->begin;
    struct tensor to = zero_gradient(z, b);
    for (int32_t r = 0; r < size && n > 0; r++) {
        struct tensor from;
        if (!z->active[r] || (r == rank && !z->rounds)) continue;
        if (r == rank)
            from = tensor_view((void *)(uintptr_t)(slot->data + (p->begin - z->bucket[b].begin)),
                               DT_F32, n, 1, 1, 1);
        else
            from = stage_row(z, s, r, n);
        TRY(op_add(z->be, &to, &from));
    }
    return 0;
}

static int finish_all(struct zero *z)
{
    for (int32_t s = 0; s < ZERO_SLOTS; s++)
        TRY(finish_slot(z, s));
    return 0;
}

int zero_reduce(struct zero *z, int64_t begin, const float *data)
{
    const struct zero_group *g = &z->group[z->next];
    double since = 0;
    int rc;
    BUG_IF(z->next >= z->n_groups || g->begin != begin);
    z->next++;
    if (dist_size(z->d) == 1 && !z->rounds) return 0;
    if (z->d) since = dist_enter("reduction of gradients", 1);
    TRY_OUT(finish_all(z));
    for (int32_t i = 0; i < g->n; i++) {
        const int32_t s = i % ZERO_SLOTS, b = g->first + i;
        TRY_OUT(finish_slot(z, s));
        TRY_OUT(start_bucket(z, s, b, data + (z->bucket[b].begin - begin)));
    }
    rc = 0;
out:
    if (rc < 0) z->broken = rc;
    if (z->d) dist_leave(z->d, since);
    return rc;
}

int zero_finish(struct zero *z)
{
    double since = 0;
    if (z->broken) return z->broken;
    while (z->next < z->n_groups) {
        /* what a failed rank sends does not matter, but that it sends; a window array is longer than any group */
        const int64_t begin = z->group[z->next].begin;
        TRY(zero_reduce(z, begin, (const float *)z->grads->data + (z->windows ? 0 : begin)));
    }
    if (z->d) since = dist_enter("reduction of gradients", 1);
    int rc = finish_all(z);
    if (rc == 0 && dist_size(z->d) > 1) rc = link_drain(&z->link);
    if (z->d) dist_leave(z->d, since);
    return rc;
}

struct tensor zero_gradient(const struct zero *z, int32_t b)
{
    const struct flat_part *p = &z->part[b];
    const int64_t n = p->end - p->begin;
    return z->rounds ? tensor_rows(&z->sum, p->at, n) : tensor_rows(z->grads, p->begin, n);
}

/* Each block of 1,024 by its owner; the sums are added up in the order of the flat array. */
static int fixed_norm(struct zero *z, double *ss)
{
    double *block = NULL;
    int rc;
    TRY_OUT(MEM_NEW(&block, z->n_blocks));
    for (int32_t b = 0; b < z->n_buckets; b++) {
        const struct tensor g = zero_gradient(z, b);
        const int64_t first = z->bucket[b].block + (z->part[b].begin - z->bucket[b].begin) / GRAIN;
        TRY_OUT(op_sumsq_blocks(z->be, block + first, &g, GRAIN));
    }
    TRY_OUT(dist_sum(z->d, block, z->n_blocks));
    *ss = 0;
    for (int64_t i = 0; i < z->n_blocks; i++)
        *ss += block[i];
out:
    free(block);
    return rc;
}

int zero_norm(struct zero *z, bool fixed, double *norm)
{
    double ss = 0;
    if (fixed) {
        TRY(fixed_norm(z, &ss));
    } else {
        for (int32_t b = 0; b < z->n_buckets; b++) {
            const struct tensor g = zero_gradient(z, b);
            double x;
            TRY(op_sumsq(z->be, &x, &g));
            ss += x;
        }
        TRY(dist_sum(z->d, &ss, 1));
    }
    *norm = sqrt(ss);
    return 0;
}

/* --- weights ------------------------------------------------------------------------------------------------------ */

int zero_gather(struct zero *z, int32_t b, void *flat, int64_t size)
{
    const int32_t rank = dist_rank(z->d), ranks = dist_size(z->d), s = b % ZERO_SLOTS;
    const struct flat_part mine = z->part[b];
    int32_t count = 0;
    double since;
    int rc;
    if (ranks == 1) return 0;
    for (int32_t i = 1; i < ranks; i++) {
        const int32_t to = (rank + i) % ranks, from = (rank + ranks - i) % ranks;
        const struct flat_part theirs = zero_part(z, b, from);
        if (theirs.end > theirs.begin)
            z->message[count++] =
                (struct net_message){ (char *)flat + theirs.begin * size,
                                      (theirs.end - theirs.begin) * size, from, false };
        if (mine.end == mine.begin) continue;
        z->message[count++] = (struct net_message){ (char *)flat + mine.begin * size,
                                                    (mine.end - mine.begin) * size, to, true };
        z->d->bytes += (mine.end - mine.begin) * size;
    }
    since = dist_enter("gathering of weights", 1);
    TRY_OUT(link_finish(&z->link, s)); /* an earlier bucket's */
    TRY_OUT(link_start(&z->link, s, b, z->message, count));
    rc = link_poke(&z->link);
out:
    dist_leave(z->d, since);
    return rc;
}

int zero_gather_end(struct zero *z)
{
    double since;
    if (dist_size(z->d) == 1) return 0;
    since = dist_enter("gathering of weights", 1);
    const int rc = link_drain(&z->link);
    dist_leave(z->d, since);
    return rc;
}

/* --- rank 0 reads shards ------------------------------------------------------------------------------------------ */

/* What of [at, at + n) a part holds; empty where end <= begin. */
static struct flat_part overlap(struct flat_part p, int64_t at, int64_t n)
{
    return (struct flat_part){ MAX(p.begin, at), MIN(p.end, at + n), 0 };
}

static int own_part(const struct zero *z, int64_t which, int32_t b, struct flat_part o, float *out)
{
    const struct tensor *t = z->state[which];
    const struct backend *be = z->be;
    const int64_t n = o.end - o.begin, at = z->part[b].at + (o.begin - z->part[b].begin);
    if (t->dtype == DT_F32)
        return be->mem->to_host(be->cx, out, (const float *)t->data + at, n * 4);
    if (t->dtype == DT_BF16) return backend_join(be, out, (const uint16_t *)t->data + at, NULL, n);
    return backend_join(be, out, (const uint16_t *)z->weights->data + o.begin,
                        (const int16_t *)t->data + at, n);
}

int zero_read(const struct zero *z, enum zero_state which, int64_t at, int64_t n, float *out)
{
    int64_t read = 0;
    for (int32_t b = 0; b < z->n_buckets; b++) {
        const struct flat_part o = overlap(z->part[b], at, n);
        if (o.end <= o.begin) continue;
        TRY(own_part(z, which, b, o, out + (o.begin - at)));
        read += o.end - o.begin;
    }
    BUG_IF(read != n);
    return 0;
}

int zero_fetch(struct zero *z, enum zero_state which, int64_t at, int64_t n, float *out)
{
    int64_t ask[3] = { which, at, n };
    struct comm_list list = { 0 };
    double since = 0;
    int rc = 0;
    if (z->d) since = dist_enter("reading shards", 1);
    if (dist_size(z->d) > 1) TRY_OUT(comm_bcast(z->d->comm, ask, sizeof ask, 0));
    for (int32_t b = 0; b < z->n_buckets; b++) {
        if (z->bucket[b].end <= at || z->bucket[b].begin >= at + n) continue;
        for (int32_t r = 0; r < dist_size(z->d); r++) {
            const struct flat_part o = overlap(zero_part(z, b, r), at, n);
            if (o.end <= o.begin) continue;
            if (r == 0)
                TRY_OUT(own_part(z, which, b, o, out + (o.begin - at)));
            else
                TRY_OUT(comm_recv(z->d->comm, &list, out + (o.begin - at), (o.end - o.begin) * 4, r,
                                  b));
        }
    }
    if (dist_size(z->d) > 1) rc = comm_wait(z->d->comm, &list);
out:
    if (rc < 0) z->broken = rc;
    if (z->d) dist_leave(z->d, since);
    comm_list_release(&list);
    return rc;
}

/* The pieces of one request, from host memory of their own where the backend's is not the host's. */
static int answer(struct zero *z, const int64_t ask[3])
{
    const int64_t at = ask[1], n = ask[2];
    struct comm_list list = { 0 };
    float *host = NULL;
    int64_t used = 0;
    int rc;
    TRY_OUT(MEM_NEW(&host, n));
    for (int32_t b = 0; b < z->n_buckets; b++) {
        const struct flat_part o = overlap(z->part[b], at, n);
        if (o.end <= o.begin) continue;
        TRY_OUT(own_part(z, ask[0], b, o, host + used));
        TRY_OUT(comm_send(z->d->comm, &list, host + used, (o.end - o.begin) * 4, 0, b));
        used += o.end - o.begin;
    }
    rc = comm_wait(z->d->comm, &list);
out:
    comm_list_release(&list);
    free(host);
    return rc;
}

int zero_serve(struct zero *z)
{
    BUG_IF(dist_rank(z->d) == 0);
    for (;;) {
        int64_t ask[3];
        const double since = dist_enter("waiting for rank 0, which writes", WATCH_DISK);
        int rc = comm_bcast(z->d->comm, ask, sizeof ask, 0);
        if (rc == 0 && ask[0] >= 0) rc = answer(z, ask);
        dist_leave(z->d, since);
        TRY(rc);
        if (ask[0] < 0) return dist_agree(z->d, 0);
    }
}

int zero_dismiss(struct zero *z, int rc)
{
    int64_t end[3] = { -1, 0, 0 };
    if (dist_size(z->d) == 1 || z->broken) return rc;
    TRY(comm_bcast(z->d->comm, end, sizeof end, 0));
    return dist_agree(z->d, rc);
}

static int store_part(const struct zero *z, enum zero_state which, int64_t at, int64_t n,
                      const float *in)
{
    const struct tensor *t = z->state[which];
    const struct backend *be = z->be;
    BUG_IF(t->dtype == DT_I16);
    if (t->dtype == DT_F32) return be->mem->to_device(be->cx, (float *)t->data + at, in, n * 4);
    return backend_split(be, (uint16_t *)t->data + at, NULL, in, n);
}

int zero_store(struct zero *z, enum zero_state which, int64_t at, int64_t n, const float *in)
{
    for (int32_t b = 0; b < z->n_buckets; b++) {
        const struct flat_part o = overlap(z->part[b], at, n);
        if (o.end > o.begin)
            TRY(store_part(z, which, z->part[b].at + (o.begin - z->part[b].begin), o.end - o.begin,
                           in + (o.begin - at)));
    }
    return 0;
}
