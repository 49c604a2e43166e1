/* SPDX-License-Identifier: MIT */
#include "batch.h"
#include "../base/mem.h"
#include <stdlib.h>
#include <string.h>

int64_t example_tokens(const struct example *e)
{
    return (int64_t)e->np + e->nw - 1 + (e->nl > 0 ? e->nl - 1 : 0);
}

int batch_init(struct batch *b, int64_t T_max, int64_t N_max, int64_t P_max)
{
    int rc = 0;
    memset(b, 0, sizeof *b);
    if (MAX(MAX(T_max, N_max), P_max) > INT32_MAX / 4)
        return err_set(ERR_INPUT,
                       "a micro-batch of %lld tokens is too large; lower memory.micro_batch_tokens",
                       (long long)T_max);
    b->T_max = (int32_t)T_max;
    b->N_max = (int32_t)N_max;
    b->P_max = (int32_t)P_max;
    TRY_OUT(MEM_NEW(&b->ids, T_max));
    TRY_OUT(MEM_NEW(&b->pos, T_max));
    TRY_OUT(MEM_NEW(&b->seg, 3 * P_max));
    TRY_OUT(MEM_NEW(&b->group, P_max + 1));
    TRY_OUT(MEM_NEW(&b->src, N_max));
    TRY_OUT(MEM_NEW(&b->target, N_max));
    TRY_OUT(MEM_NEW(&b->seq, N_max));
    TRY_OUT(MEM_NEW(&b->seq_start, 2 * P_max + 1));
    TRY_OUT(MEM_NEW(&b->example, P_max));
out:
    if (rc < 0) batch_release(b);
    return rc;
}

void batch_release(struct batch *b)
{
    free(b->ids);
    free(b->pos);
    free(b->seg);
    free(b->group);
    free(b->src);
    free(b->target);
    free(b->seq);
    free(b->seq_start);
    free(b->example);
    memset(b, 0, sizeof *b);
}

int64_t batch_fit(const struct dataset *d, const int64_t *idx, int64_t n, int64_t tokens_max)
{
    int64_t used = 0, k = 0;
    for (; k < n; k++) {
        used += example_tokens(&d->ex[idx[k]]);
        if (used > tokens_max) break;
    }
    return n > 0 ? MAX(k, (int64_t)1) : 0;
}

/* --- filling ---------------------------------------------------------------------------------------------------- */

/* n computed tokens at the batch's end, of positions from `pos`; returns their first row. */
static int32_t put_tokens(struct batch *b, const int32_t *ids, int32_t n, int32_t pos)
{
    const int32_t first = b->T;
    memcpy(b->ids + first, ids, (size_t)n * sizeof *ids);
    for (int32_t i = 0; i < n; i++)
        b->pos[first + i] = pos + i;
    b->T += n;
    return first;
}

/* A segment of rows [q, q + len) that sees the prefix rows before it; none where len is 0. */
static void put_segment(struct batch *b, int32_t q, int32_t len, int32_t prefix, int32_t prefix_len)
{
    if (len > 0) b->seg[b->n_seg++] = (struct segment){ q, len, q, prefix, prefix_len };
}

/* The next sequence: its n tokens, the first predicted by row `before`, the others by rows from `rest`. */
static void put_targets(struct batch *b, const int32_t *ids, int32_t n, int32_t before,
                        int32_t rest)
{
    for (int32_t i = 0; i < n; i++) {
        b->src[b->N] = i == 0 ? before : rest + i - 1;
        b->target[b->N] = ids[i];
        b->seq[b->N] = b->S;
        b->N++;
    }
    b->seq_start[++b->S] = b->N;
}

static void put_example(struct batch *b, const struct example *e, const int32_t *ids)
{
    const int32_t np = e->np, nw = e->nw, nl = e->nl;
    const int32_t *chosen = ids + np, *rejected = chosen + nw;
    BUG_IF(np < 1 || nw < 1 || b->T + example_tokens(e) > b->T_max ||
           (int64_t)b->N + nw + nl > b->N_max);
    const int32_t q = put_tokens(b, ids, np, 0), w = put_tokens(b, chosen, nw - 1, np);
    put_targets(b, chosen, nw, q + np - 1, w);
    if (nl == 0) {
        put_segment(b, q, np + nw - 1, 0, 0);
        return;
    }
    const int32_t l = put_tokens(b, rejected, nl - 1, np);
    put_targets(b, rejected, nl, q + np - 1, l);
    put_segment(b, q, np, 0, 0);
    put_segment(b, w, nw - 1, q, np);
    put_segment(b, l, nl - 1, q, np);
}

void batch_fill(struct batch *b, const struct dataset *d, const int64_t *idx, int64_t n)
{
    BUG_IF(n < 0 || n > b->P_max);
    b->T = b->S = b->P = b->N = b->n_seg = b->n_groups = 0;
    b->seq_start[0] = 0;
    b->group[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct example *e = &d->ex[idx[i]];
        put_example(b, e, d->ids + e->at);
        b->example[b->P++] = idx[i];
        b->group[++b->n_groups] = b->n_seg;
    }
}

/* --- sizes ------------------------------------------------------------------------------------------------------ */

static void grow(struct batch_size *s, int64_t T, int64_t N, int64_t P)
{
    s->T = MAX(s->T, T);
    s->N = MAX(s->N, N);
    s->P = MAX(s->P, P);
    s->batches += P > 0;
}

void batch_measure(struct batch_size *s, const struct dataset *d, const int64_t *idx, int64_t n,
                   int64_t tokens_max)
{
    int64_t T = 0, N = 0, P = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct example *e = &d->ex[idx[i]];
        const int64_t t = example_tokens(e);
        if (P > 0 && T + t > tokens_max) {
            grow(s, T, N, P);
            T = N = P = 0;
        }
        T += t;
        N += (int64_t)e->nw + e->nl;
        P++;
    }
    grow(s, T, N, P);
}

void order_measure(struct order *o, struct batch_size *s, const struct dataset *d, int64_t steps,
                   int64_t tokens_max)
{
    for (int64_t t = 0; t < steps; t++) {
        const int64_t *idx;
        const int64_t n = order_step(o, t, &idx);
        batch_measure(s, d, idx, n, tokens_max);
        if (!o->shuffle && t + 1 == order_steps_per_epoch(o)) break; /* the epochs are alike */
    }
}
