/* SPDX-License-Identifier: MIT
 * Large products by panels: a block of op(a) and one of op(b) are copied into panels that the registers' tile reads in
 * order (Goto and van de Geijn's scheme). The copy is where bfloat16 becomes float, or pairs of bfloat16. */
#include "cpu.h"
#include <omp.h>
#include <string.h>

/* Of a block: rows and columns; its depth is that of the panels. A block of y stays in the L3 cache; a thread takes a
 * task of some rows by TASK_COLS at a time. PAD: between rows of a panel, so that they are not of the same sets of a cache. */
enum { ROWS = 2048, COLS = 1024, TASK_COLS = 256 };
enum { TILE_MAX = 32 * 32, SMALL = 1 << 18, PAD = 16 };
/* Packed in a turn: panels, and steps of the depth (even). LINE: bytes of one of the cache. */
enum { GROUP = 16, STEPS = 16 };
enum { LINE = 64 };

struct block { /* y[m0.., n0..] (+)= a panels times b panels, over k of the depth */
    const struct panels *q;
    int64_t m0, m, n0, n, k0, k, rows; /* rows: of a panel */
    int64_t step;                      /* of a's rows, where panels are rows */
    bool in_place;                     /* a's rows are such, but for the last panel */
    float *a, *b;                      /* panels */
    float *c; /* where it is summed up: y, or beside a y of bfloat16 a block of floats */
    bool own; /* the latter a thread's own, for one task */
    int64_t ldc;
    bool add, last;
};

static const void *element(const struct mat *x, int64_t i, int64_t k)
{
    const int64_t at = x->t ? k * x->ld + i : i * x->ld + k;
    return (const char *)x->p + at * dtype_size(x->dtype);
}

/* Rows [i, i + rows) at the steps [k, k + depth) of x, which is transposed, are on their way into the cache. */
static void fetch(const struct mat *x, int64_t i, int64_t rows, int64_t k, int64_t depth)
{
    const int64_t line = LINE / dtype_size(x->dtype);
    for (const int64_t end = k + depth; k < end; k++)
        for (int64_t j = 0; j < rows; j += line)
            __builtin_prefetch(element(x, i + j, k));
}

/* `rows` rows of x from `first` on, of `left` that there are, become panels of `each` rows: op(a), or op(b) transposed, seen as [rows, depth].
 * Where rows lie side by side, a line of the cache holds pieces of several panels, so all take a few steps of the depth in turn,
 * and the next few, strides that no processor foresees, are fetched meanwhile. */
static void pack_panels(const struct rows *r, float *out, int64_t width, int64_t each,
                        const struct mat *x, int64_t first, int64_t rows, int64_t left,
                        const struct block *g, float alpha)
{
    const int64_t per = g->q->per, used = div_up(g->k, per), steps = x->t ? STEPS : g->k;
    for (int64_t k = 0; k < g->k; k += steps) {
        const int64_t depth = MIN(steps, g->k - k);
        if (x->t) fetch(x, first, rows, g->k0 + k + depth, MIN(steps, g->k - k - depth));
        for (int64_t i = 0; i < rows; i += each)
            g->q->pack(out + (i / each * g->rows + k / per) * width, width,
                       element(x, first + i, g->k0 + k), x->ld, x->dtype == DT_BF16, !x->t,
                       MIN(width, left - i), depth);
    }
    for (int64_t i = 0; i < rows; i += each, out += g->rows * width) {
        if (alpha != 1) r->scale(out, alpha, width * g->k);
        memset(out + used * width, 0, (size_t)((g->rows - used) * width) * sizeof *out);
    }
}

/* Panel `at` of op(a). */
static float *panel_of(const struct block *g, int64_t at)
{
    const int64_t floats = g->q->panel_a * (g->q->pack_rows ? g->step : g->rows);
    return g->a + (g->in_place ? 0 : at) * floats;
}

/* Panels [at, end) of op(a). */
static void pack_a(const struct rows *r, const struct product *p, const struct block *g, int64_t at,
                   int64_t end)
{
    const struct panels *q = g->q;
    const int64_t first = at * q->tile_rows, last = MIN(end * q->tile_rows, g->m);
    if (!q->pack_rows) {
        pack_panels(r, panel_of(g, at), q->panel_a, q->tile_rows, &p->a, g->m0 + first,
                    last - first, g->m - first, g, p->alpha);
        return;
    }
    for (int64_t i = first; i < last; i += q->tile_rows) {
        const int64_t rows = MIN(q->tile_rows, last - i);
        if (!g->in_place || rows < q->tile_rows)
            q->pack_rows(panel_of(g, i / q->tile_rows), g->step, element(&p->a, g->m0 + i, g->k0),
                         p->a.ld, !p->a.t, rows, g->k);
    }
}

/* Panels [at, end) of op(b). */
static void pack_b(const struct rows *r, const struct product *p, const struct block *g, int64_t at,
                   int64_t end)
{
    const int64_t width = g->q->panel_b, first = at * width, last = MIN(end * width, g->n);
    struct mat bt = p->b;
    bt.t = !bt.t;
    pack_panels(r, g->b + first * g->rows, width, width, &bt, g->n0 + first, last - first,
                g->n - first, g, 1);
}

/* One panel of a times one of b, into c. The bits of a sum do not depend on how many rows and columns count. */
static void meet(const struct product *p, const struct block *g, float *c, int64_t i, int64_t j,
                 int64_t r0, bool add)
{
    const struct panels *q = g->q;
    const int64_t m = MIN(q->tile_rows, g->m - i), n = MIN(q->panel_b, g->n - j),
                  R = MIN(q->chunk, g->rows - r0);
    const float *b = g->b + j * g->rows + r0 * q->panel_b;
    const float *a = panel_of(g, i / q->tile_rows) + r0 * (q->pack_rows ? 1 : q->panel_a);
    int64_t step = g->step;
    if (g->in_place && m == q->tile_rows) {
        a = element(&p->a, g->m0 + i, g->k0 + r0 * q->per);
        step = p->a.ld / q->per;
    }
    if (m == q->tile_rows && n == q->panel_b) {
        q->tile(c, g->ldc, a, step, b, R, add);
        return;
    }
    _Alignas(64) float t[TILE_MAX];
    if (add) memset(t, 0, (size_t)(q->tile_rows * q->panel_b) * sizeof *t);
    for (int64_t x = 0; x < m && add; x++)
        memcpy(t + x * q->panel_b, c + x * g->ldc, (size_t)n * sizeof *c);
    q->tile(t, q->panel_b, a, step, b, R, add);
    for (int64_t x = 0; x < m; x++)
        memcpy(c + x * g->ldc, t + x * q->panel_b, (size_t)n * sizeof *c);
}

/* rows [i0, i1), columns [j0, j1) of the block */
static void multiply(const struct rows *r, const struct product *p, const struct block *g,
                     int64_t i0, int64_t i1, int64_t j0, int64_t j1)
{
    const struct panels *q = g->q;
    const bool half = p->y_dtype == DT_BF16;
    float *const c =
        g->own ? g->c + omp_get_thread_num() * q->task_rows * g->ldc : g->c + i0 * g->ldc + j0;
    uint16_t *const y = half ? (uint16_t *)p->y + (g->m0 + i0) * p->ldy + g->n0 + j0 : NULL;
    for (int64_t i = 0; i < i1 - i0 && half && g->k0 == 0 && p->beta != 0; i++)
        r->widen(c + i * g->ldc, y + i * p->ldy, j1 - j0);
    for (int64_t r0 = 0; r0 < g->rows; r0 += q->chunk)
        for (int64_t j = j0; j < j1; j += q->panel_b)
            for (int64_t i = i0; i < i1; i += q->tile_rows)
                meet(p, g, c + (i - i0) * g->ldc + j - j0, i, j, r0, g->add || r0 > 0);
    for (int64_t i = 0; i < i1 - i0 && half && g->last; i++)
        r->narrow(y + i * p->ldy, c + i * g->ldc, j1 - j0);
}

/* One block by the whole team, called by each thread of it. Each element is summed up by one thread in an order that
 * K alone decides: the result does not depend on the team. */
static void team_block(const struct rows *r, const struct product *p, const struct block *g)
{
    const struct panels *q = g->q;
    const int64_t pa = div_up(g->m, q->tile_rows), pb = div_up(g->n, q->panel_b);
    const int64_t tm = div_up(g->m, q->task_rows), tn = div_up(g->n, TASK_COLS);
    const int64_t team = omp_get_num_threads(), ga = MIN(GROUP, div_up(pa, team)),
                  gb = MIN(GROUP, div_up(pb, team)); /* packed at a time */
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < pa; i += ga)
        pack_a(r, p, g, i, MIN(i + ga, pa));
#pragma omp for schedule(static)
    for (int64_t j = 0; j < pb; j += gb)
        pack_b(r, p, g, j, MIN(j + gb, pb));
    if (q->begin) q->begin();
#pragma omp for schedule(dynamic) nowait
    for (int64_t t = 0; t < tm * tn; t++) {
        const int64_t i = t % tm * q->task_rows, j = t / tm * TASK_COLS;
        multiply(r, p, g, i, MIN(i + q->task_rows, g->m), j, MIN(j + TASK_COLS, g->n));
    }
    if (q->end) q->end();
#pragma omp barrier
}

static const struct panels *panels_for(const struct rows *r, const struct product *p)
{
    const bool pairs = r->pairs && p->a.dtype == DT_BF16 && p->b.dtype == DT_BF16 && p->alpha == 1;
    return pairs ? r->pairs : r->floats;
}

/* Of the scratch: panels of a [a floats], of b [b], sums beside a y of bfloat16 [c] */
struct layout {
    int64_t depth, step, a, b, c;
    bool in_place, own;
};

/* Are the rows of a panels as they are? (In lines of the cache, and no row's end beside the next one's begin.) */
static bool rows_fit(const struct panels *q, const struct mat *a, int64_t K)
{
    const int64_t line = LINE / dtype_size(a->dtype);
    return q->pack_rows && !a->t && K % line == 0 && a->ld % line == 0 &&
           (uintptr_t)a->p % LINE == 0;
}

static struct layout layout_of(const struct ctx *cx, const struct panels *q,
                               const struct product *p)
{
    const int64_t all = div_up(p->K, q->per),
                  rows = round_up(div_up(all, div_up(all, q->depth)), MAX(q->unit, (int64_t)8));
    const int64_t m = MIN(p->M, ROWS), n = MIN(p->N, COLS);
    struct layout l = { .depth = rows * q->per,
                        .step = rows + PAD,
                        .in_place = rows_fit(q, &p->a, p->K),
                        .own = p->y_dtype == DT_BF16 && rows >= all };
    l.a = round_up((l.in_place ? 1 : div_up(m, q->tile_rows)) * q->panel_a *
                       (q->pack_rows ? l.step : rows),
                   16);
    l.b = round_up(round_up(n, q->panel_b) * rows, 16);
    if (l.own)
        l.c = cx->threads * q->task_rows * MIN(n, (int64_t)TASK_COLS);
    else if (p->y_dtype == DT_BF16)
        l.c = m * n;
    return l;
}

int64_t cpu_panels_shared(const struct ctx *cx, const struct product *p)
{
    const struct layout l = layout_of(cx, panels_for(cx->rows, p), p);
    return (l.a + l.b + l.c) * (int64_t)sizeof(float);
}

int cpu_panels(struct ctx *cx, const struct product *p)
{
    const struct rows *r = cx->rows;
    const bool half = p->y_dtype == DT_BF16;
    const struct panels *q = panels_for(r, p);
    const struct layout l = layout_of(cx, q, p);
    float *mem;
    TRY(cpu_shared(cx, cpu_panels_shared(cx, p)));
    mem = cx->shared;
    const int team = p->M * p->N <= SMALL / p->K ? 1 : cx->threads;
#pragma omp parallel num_threads(team)
    for (int64_t n0 = 0; n0 < p->N; n0 += COLS)
        for (int64_t m0 = 0; m0 < p->M; m0 += ROWS)
            for (int64_t k0 = 0; k0 < p->K; k0 += l.depth) {
                const int64_t m = MIN(ROWS, p->M - m0), n = MIN(COLS, p->N - n0),
                              k = MIN(l.depth, p->K - k0);
                const struct block g = {
                    .q = q,
                    .m0 = m0,
                    .m = m,
                    .n0 = n0,
                    .n = n,
                    .k0 = k0,
                    .k = k,
                    .rows = round_up(div_up(k, q->per), q->unit),
                    .step = l.step,
                    .in_place = l.in_place,
                    .a = mem,
                    .b = mem + l.a,
                    .c = half ? mem + l.a + l.b : (float *)p->y + m0 * p->ldy + n0,
                    .ldc = l.own  ? MIN(n, (int64_t)TASK_COLS)
                           : half ? n
                                  : p->ldy,
                    .own = l.own,
                    .add = k0 > 0 || p->beta != 0,
                    .last = k0 + l.depth >= p->K,
                };
                team_block(r, p, &g);
            }
    return 0;
}
