/* SPDX-License-Identifier: MIT
 * attention.cu - the host's side of attention: which kernels, and the list of their blocks' work. */
#include "attention.cuh"
#include <algorithm>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool att_vectors(const struct tensor *x)
{
    return (uintptr_t)x->data % 16 == 0 && (x->dim[0] <= 1 || x->ld % 8 == 0);
}

bool att_has_mma(const struct tensor *q, const struct tensor *k, const struct tensor *v,
                 int32_t head_size)
{
    return q->dtype == DT_BF16 && (head_size == 64 || head_size == 128) && att_vectors(q) &&
           att_vectors(k) && att_vectors(v);
}

/* --- items: written from `out` on where that is not NULL, else only counted ----------------------------------------------- */
static int32_t row_items(struct att_item *out, const struct segments *segs, int32_t G,
                         struct att_tile tile)
{
    int32_t n = 0;
    for (int32_t i = 0; i < segs->n; i++) {
        const struct segment *s = &segs->seg[i];
        for (int32_t at = 0; at < s->len * G; at += tile.rows, n++) {
            const int32_t last = (MIN(at + tile.rows, s->len * G) - 1) / G; /* token */
            if (out) out[n] = { i, at, 0, 0, (int32_t)div_up(s->prefix_len + last + 1, tile.keys) };
        }
    }
    return n;
}

static int32_t key_items(struct att_item *out, const struct segments *segs, int32_t G,
                         struct att_tile tile)
{
    int32_t n = 0;
    for (int32_t group = 0; group < segs->n_groups; group++) {
        const int32_t first = segs->group[group], end = segs->group[group + 1];
        for (int32_t i = first; i < end; i++)
            for (int32_t at = 0; at < segs->seg[i].len; at += tile.keys, n++) {
                if (!out) continue;
                struct att_window w = { first, -1, 0, 0, 0, 0, 0, 0 };
                out[n] = { i, at, first, end, 0 };
                while (att_window_next(&w, segs->seg, end, segs->seg[i].own + at,
                                       MIN(tile.keys, segs->seg[i].len - at), G, tile.rows))
                    out[n].work += w.tiles - w.tile;
            }
    }
    return n;
}

/* The list is that of these segments. Their groups need no look: a prefix lies in the rows of its own group, so that every
 * grouping that is allowed gives the same. */
static bool is_listed(const struct att_list *list, const struct segments *segs, int32_t G,
                      struct att_tile tile)
{
    if (!list->data || list->n != segs->n || list->G != G) return false;
    if (list->tile.rows != tile.rows || list->tile.keys != tile.keys) return false;
    return segs->n == 0 || memcmp(list->data, segs->seg, (size_t)segs->n * sizeof *segs->seg) == 0;
}

static int list_make(struct att_list *list, enum att_kind kind, const struct segments *segs,
                     int32_t G, struct att_tile tile)
{
    const int64_t items_at = round_up(segs->n * (int64_t)sizeof *segs->seg, 16);
    for (int32_t i = 0; i < segs->n;
         i++) /* what att_token and 32-bit places in a segment can take */
        BUG_IF((int64_t)segs->seg[i].len * G > INT32_MAX / G ||
               segs->seg[i].prefix_len > INT32_MAX / 2);
    const int32_t n =
        kind == ATT_DKV ? key_items(NULL, segs, G, tile) : row_items(NULL, segs, G, tile);
    const int64_t bytes = items_at + n * (int64_t)sizeof(struct att_item);
    if (bytes > list->room) {
        free(list->data);
        list->room = 0;
        list->data = static_cast<char *>(malloc((size_t)(2 * bytes)));
        if (!list->data)
            return err_set(ERR_OOM, "out of memory: %lld bytes for attention's list of work",
                           (long long)(2 * bytes));
        list->room = 2 * bytes;
    }
    memset(list->data, 0, (size_t)items_at);
    if (segs->n) memcpy(list->data, segs->seg, (size_t)segs->n * sizeof *segs->seg);
    struct att_item *out = reinterpret_cast<struct att_item *>(list->data + items_at);
    if (kind == ATT_DKV)
        key_items(out, segs, G, tile);
    else
        row_items(out, segs, G, tile);
    std::sort(out, out + n, [](const struct att_item &x, const struct att_item &y) {
        return x.work != y.work ? x.work > y.work : x.seg != y.seg ? x.seg < y.seg : x.at < y.at;
    });
    list->bytes = bytes;
    list->items_at = items_at;
    list->n = segs->n;
    list->n_items = n;
    list->G = G;
    list->tile = tile;
    return 0;
}

int att_prepare(struct ctx *cx, struct att_args *a, int32_t *n_items, enum att_kind kind,
                struct att_tile tile, const struct tensor *q, const struct tensor *k,
                const struct tensor *v, const struct segments *segs, int32_t head_size, float scale)
{
    static const enum cuda_table tables[ATT_KINDS] = { TABLE_ATTENTION_FWD, TABLE_ATTENTION_DQ,
                                                       TABLE_ATTENTION_DKV };
    const int32_t H = (int32_t)(q->dim[1] / head_size), K = (int32_t)(k->dim[1] / head_size),
                  G = H / K;
    const void *device;
    if (!cx->att) {
        cx->att = static_cast<struct att_work *>(calloc(1, sizeof *cx->att));
        if (!cx->att) return err_set(ERR_OOM, "out of memory: attention's lists of work");
    }
    struct att_list *list = &cx->att->list[kind];
    if (head_size > ATT_D_MAX)
        return err_set(ERR_INPUT, "attention: heads of %d; the CUDA backend takes up to %d",
                       head_size, ATT_D_MAX);
    if (!is_listed(list, segs, G, tile)) TRY(list_make(list, kind, segs, G, tile));
    BUG_IF((int64_t)list->n_items * K > INT32_MAX);
    *n_items = list->n_items;
    if (list->n_items == 0) return 0;
    TRY(cuda_upload(cx, tables[kind], list->data, list->bytes, &device));
    a->seg = static_cast<const struct segment *>(device);
    a->item = reinterpret_cast<const struct att_item *>(static_cast<const char *>(device) +
                                                        list->items_at);
    a->q = q->data;
    a->k = k->data;
    a->v = v->data;
    a->ldq = q->ld;
    a->ldk = k->ld;
    a->ldv = v->ld;
    a->H = H;
    a->K = K;
    a->G = G;
    a->D = head_size;
    a->divide = (uint32_t)(((uint64_t)1 << 32) / (uint64_t)G + 1);
    a->scale = scale;
    a->scale_log2 = scale * 1.44269504088896340736f;
    return 0;
}

void cuda_attention_close(struct ctx *cx)
{
    for (int i = 0; cx->att && i < ATT_KINDS; i++)
        free(cx->att->list[i].data);
    free(cx->att);
    cx->att = NULL;
}

int64_t cuda_attention_scratch(const struct op_sizes *s)
{
    return s->train ? s->T * s->H * (int64_t)sizeof(float) : 0;
}
