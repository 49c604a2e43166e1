/* SPDX-License-Identifier: MIT
 * attention_sdpa.cu - segments as sequences of sdpa.h, whose keys and values must stand in one run of rows: each segment gets a
 * copy of its prefix and its own rows (a prompt's stand three times: for itself, the chosen and the rejected response),
 * and a row's gradients are the sum of its copies', in the order of the segments, in float. Queries, outputs and
 * log-sum-exps stay where they are. Bytes moved beside the library's: k and v once or three times, as much for their gradients. */
#include "kernel.cuh"
#include "sdpa.h"
#include <stdlib.h>
#include <string.h>

enum { ROUND = 128, THREADS = 256 }; /* lengths are rounded up, so that few shapes are planned for */

/* copies[r] = row source[r] of k and of v. A thread per 8 elements. */
static __global__ void sdpa_spread_kernel(bf16 *kc, bf16 *vc, const bf16 *k, int64_t ldk, const bf16 *v, int64_t ldv,
                                          const int32_t *source, int64_t rows, int32_t C)
{
    const int64_t parts = C / OCT, i = global_thread(), r = i / parts, c = i % parts * OCT;
    if (r >= rows) return;
    const int64_t from = source[r];
    store8(kc + r * C + c, load8(k + from * ldk + c, OCT), OCT);
    store8(vc + r * C + c, load8(v + from * ldv + c, OCT), OCT);
}

/* x[t] = sum of copies[where[i]], i from first[t] to first[t + 1], for rows t that have any. A thread per 8 elements. */
static __global__ void sdpa_collect_kernel(bf16 *x, int64_t ldx, const bf16 *copies, const int32_t *first, const int32_t *where,
                                           int64_t T, int32_t C)
{
    const int64_t parts = C / OCT, i = global_thread(), t = i / parts, c = i % parts * OCT;
    if (t >= T || first[t] == first[t + 1]) return;
    oct sum = { { 0 } };
    for (int32_t at = first[t]; at < first[t + 1]; at++) {
        const oct y = load8(copies + (int64_t)where[at] * C + c, OCT);
#pragma unroll
        for (int k = 0; k < OCT; k++)
            sum.v[k] += y.v[k];
    }
    store8(x + t * ldx + c, sum, OCT);
}

/* --- what a call's segments come to, in host memory and then in a table on the device ----------------------------------------- */
struct layout {
    int32_t n;       /* sequences: the segments that have rows */
    int64_t T, rows; /* kv rows; copies */
    int64_t at[6], q_len, kv_len, source, first, where, bytes; /* places in the table; at: q, o, dout, dq, lse, kv */
    int32_t q_most, kv_most;
};
enum { AT_Q, AT_O, AT_DOUT, AT_DQ, AT_LSE, AT_KV, ATS };

static struct layout layout_of(const struct segments *segs, int64_t T)
{
    struct layout l = {};
    l.T = T;
    for (int32_t i = 0; i < segs->n; i++) {
        const struct segment *s = &segs->seg[i];
        if (s->len == 0) continue;
        l.n++;
        l.rows += s->prefix_len + s->len;
        l.q_most = MAX(l.q_most, s->len);
        l.kv_most = MAX(l.kv_most, s->prefix_len + s->len);
    }
    l.q_most = (int32_t)round_up(l.q_most, ROUND);
    l.kv_most = (int32_t)round_up(l.kv_most, ROUND);
    for (int a = 0; a < ATS; a++, l.bytes += (l.n + 1) * (int64_t)sizeof(int64_t))
        l.at[a] = l.bytes;
    const int64_t counts[] = { l.n, l.n, l.rows, T + 1, l.rows };
    int64_t *const places[] = { &l.q_len, &l.kv_len, &l.source, &l.first, &l.where };
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        *places[i] = l.bytes;
        l.bytes += round_up(counts[i] * (int64_t)sizeof(int32_t), 8);
    }
    return l;
}

/* lengths, places of the sequences, and which row each copy is of */
static void fill_sequences(char *table, const struct layout *l, const struct segments *segs, const int64_t *ld, int64_t KD)
{
    int32_t *q_len = reinterpret_cast<int32_t *>(table + l->q_len), *kv_len = reinterpret_cast<int32_t *>(table + l->kv_len);
    int32_t *source = reinterpret_cast<int32_t *>(table + l->source);
    int32_t n = 0;
    int64_t row = 0;
    for (int32_t i = 0; i < segs->n; i++) {
        const struct segment *s = &segs->seg[i];
        if (s->len == 0) continue;
        q_len[n] = s->len;
        kv_len[n] = s->prefix_len + s->len;
        for (int a = 0; a < AT_KV; a++) {
            int64_t *at = reinterpret_cast<int64_t *>(table + l->at[a]);
            at[n] = s->q * ld[a];
            at[n + 1] = (s->q + (int64_t)s->len) * ld[a];
        }
        int64_t *kv = reinterpret_cast<int64_t *>(table + l->at[AT_KV]);
        kv[n] = row * KD;
        for (int32_t j = 0; j < s->prefix_len + s->len; j++)
            source[row++] = j < s->prefix_len ? s->prefix + j : s->own + j - s->prefix_len;
        kv[++n] = row * KD;
    }
}

/* the copies of each row, in the order in which they stand */
static void fill_copies(char *table, const struct layout *l)
{
    const int32_t *source = reinterpret_cast<int32_t *>(table + l->source);
    int32_t *first = reinterpret_cast<int32_t *>(table + l->first), *where = reinterpret_cast<int32_t *>(table + l->where);
    for (int64_t r = 0; r < l->rows; r++)
        first[source[r] + 1]++;
    for (int64_t t = 0; t < l->T; t++)
        first[t + 1] += first[t];
    for (int64_t r = l->rows - 1; r >= 0; r--) /* from the back: first[t + 1] ends where the row's copies begin */
        where[--first[source[r] + 1]] = (int32_t)r;
    /* and each begins where it should: move the ends back to their rows */
    for (int64_t t = 0; t < l->T; t++)
        first[t] = first[t + 1];
    first[l->T] = (int32_t)l->rows;
}

/* *device: the table. */
static int upload(struct ctx *cx, const char **device, const struct layout *l, const struct segments *segs, const int64_t *ld, int64_t KD,
                  enum cuda_table which)
{
    const void *p;
    char *table = static_cast<char *>(calloc(1, (size_t)l->bytes));
    if (!table) return err_set(ERR_OOM, "out of memory: %lld bytes for attention's sequences", (long long)l->bytes);
    fill_sequences(table, l, segs, ld, KD);
    fill_copies(table, l);
    const int rc = cuda_upload(cx, which, table, l->bytes, &p);
    free(table);
    *device = static_cast<const char *>(p);
    return rc;
}

/* Everything of a call but its tensors: the table, the plan, the scratch: copies of k and v (and of dk and dv), workspace. */
struct call {
    struct layout l;
    struct sdpa s;
    const char *table;
    void *workspace;
};

static int prepare(struct ctx *cx, struct call *c, const struct tensor *q, const struct tensor *k, const struct segments *segs,
                   int32_t head_size, float scale, const int64_t *ld, bool backward)
{
    const int64_t KD = k->dim[1], H = q->dim[1] / head_size;
    int64_t workspace;
    void *p;
    TRY(upload(cx, &c->table, &c->l, segs, ld, KD, backward ? TABLE_SDPA_BWD : TABLE_SDPA_FWD));
    const int64_t *at[ATS];
    for (int a = 0; a < ATS; a++)
        at[a] = reinterpret_cast<const int64_t *>(c->table + c->l.at[a]);
    struct sdpa *s = &c->s;
    s->n = c->l.n;
    s->H = (int32_t)H;
    s->K = (int32_t)(KD / head_size);
    s->D = head_size;
    s->q_most = c->l.q_most;
    s->kv_most = c->l.kv_most;
    s->scale = scale;
    s->q_len = reinterpret_cast<const int32_t *>(c->table + c->l.q_len);
    s->kv_len = reinterpret_cast<const int32_t *>(c->table + c->l.kv_len);
    s->q_at = at[AT_Q];
    s->o_at = at[AT_O];
    s->dout_at = at[AT_DOUT];
    s->dq_at = at[AT_DQ];
    s->lse_at = at[AT_LSE];
    s->kv_at = at[AT_KV];
    s->ldq = ld[AT_Q];
    s->ldo = ld[AT_O];
    s->lddout = ld[AT_DOUT];
    s->lddq = ld[AT_DQ];
    TRY(sdpa_plan(cx, s, backward, &workspace));
    const int64_t copies = round_up(c->l.rows * KD * (int64_t)sizeof(bf16), 256);
    TRY(cuda_scratch(cx, (backward ? 4 : 2) * copies + workspace, &p));
    char *scratch = static_cast<char *>(p);
    s->k = scratch;
    s->v = scratch + copies;
    s->dk = backward ? scratch + 2 * copies : NULL;
    s->dv = backward ? scratch + 3 * copies : NULL;
    c->workspace = scratch + (backward ? 4 : 2) * copies;
    return 0;
}

static int spread(struct ctx *cx, const struct call *c, const struct tensor *k, const struct tensor *v)
{
    const int64_t C = k->dim[1];
    return LAUNCH(cx, sdpa_spread_kernel, blocks_for(c->l.rows * C / OCT, THREADS), dim3(THREADS), 0,
                  static_cast<bf16 *>(const_cast<void *>(c->s.k)), static_cast<bf16 *>(const_cast<void *>(c->s.v)), data_of<bf16>(k), k->ld,
                  data_of<bf16>(v), v->ld, reinterpret_cast<const int32_t *>(c->table + c->l.source), c->l.rows, (int32_t)C);
}

static int collect(struct ctx *cx, const struct call *c, struct tensor *x, const void *copies)
{
    const int64_t C = x->dim[1];
    return LAUNCH(cx, sdpa_collect_kernel, blocks_for(c->l.T * C / OCT, THREADS), dim3(THREADS), 0, data_of<bf16>(x), x->ld,
                  static_cast<const bf16 *>(copies), reinterpret_cast<const int32_t *>(c->table + c->l.first),
                  reinterpret_cast<const int32_t *>(c->table + c->l.where), c->l.T, (int32_t)C);
}

/* The rows of training: each query row has a key row. A cache would be copied for every token that is drawn. */
bool sdpa_takes(const struct ctx *cx, const struct tensor *q, const struct tensor *k, int32_t head_size)
{
    return cx->sdpa && q->dtype == DT_BF16 && head_size % 8 == 0 && head_size <= 128 && q->dim[0] == k->dim[0];
}

int sdpa_attention_fwd(struct ctx *cx, struct tensor *o, struct tensor *lse, const struct tensor *q, const struct tensor *k,
                       const struct tensor *v, const struct segments *segs, int32_t head_size, float scale)
{
    const int64_t H = q->dim[1] / head_size, ld[] = { q->ld, o->ld, 0, 0, H };
    struct call c = {};
    c.l = layout_of(segs, k->dim[0]);
    if (c.l.n == 0) return 0;
    TRY(prepare(cx, &c, q, k, segs, head_size, scale, ld, false));
    c.s.q = q->data;
    c.s.o = o->data;
    c.s.lse = data_of<float>(lse);
    TRY(spread(cx, &c, k, v));
    return sdpa_run(cx, &c.s, false, c.workspace);
}

int sdpa_attention_bwd(struct ctx *cx, struct tensor *dq, struct tensor *dk, struct tensor *dv, const struct tensor *dout,
                       const struct tensor *o, const struct tensor *lse, const struct tensor *q, const struct tensor *k,
                       const struct tensor *v, const struct segments *segs, int32_t head_size, float scale)
{
    const int64_t H = q->dim[1] / head_size, ld[] = { q->ld, o->ld, dout->ld, dq->ld, H };
    struct call c = {};
    c.l = layout_of(segs, k->dim[0]);
    if (c.l.n == 0) return 0;
    TRY(prepare(cx, &c, q, k, segs, head_size, scale, ld, true));
    c.s.q = q->data;
    c.s.o = o->data;
    c.s.lse = data_of<float>(lse);
    c.s.dout = dout->data;
    c.s.dq = dq->data;
    TRY(spread(cx, &c, k, v));
    TRY(sdpa_run(cx, &c.s, true, c.workspace));
    TRY(collect(cx, &c, dk, c.s.dk));
    return collect(cx, &c, dv, c.s.dv);
}

int cuda_use_cudnn(struct backend *be)
{
    return be->cx->sdpa ? 0 : sdpa_open(be->cx);
}
