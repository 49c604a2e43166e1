/* SPDX-License-Identifier: MIT
 * Large products by panels: a block of op(a) and one of op(b) are copied into panels of float that the registers'
 * tile reads in order (Goto and van de Geijn's scheme). The copy is where bfloat16 becomes float. */
#include "cpu.h"
#include <string.h>

/* Of a block: rows and columns; its depth is that of the panels. A block of y stays in the L3 cache; a thread takes a
 * task of some rows by TASK_COLS at a time. */
enum { ROWS = 2048, COLS = 1024, TASK_COLS = 256 };
enum { TILE_MAX = 14 * 32, SMALL = 1 << 18 };

struct block { /* y[m0.., n0..] (+)= a panels times b panels, over k of the depth */
    const struct panels *q;
    int64_t m0, m, n0, n, k0, k, rows; /* rows: of a panel */
    float *a, *b;                      /* panels */
    float *c; /* where it is summed up: y, or an f32 block beside a y of bfloat16 */
    int64_t ldc;
    bool add, last;
};

static const void *element(const struct mat *x, int64_t i, int64_t k)
{
    const int64_t at = x->t ? k * x->ld + i : i * x->ld + k;
    return (const char *)x->p + at * dtype_size(x->dtype);
}

/* A panel of op(a), or of op(b) transposed: either is seen as [rows, depth]. */
static void pack_panel(const struct rows *r, float *out, int64_t width, const struct mat *x,
                       int64_t first, int64_t rows, const struct block *g, float alpha)
{
    g->q->pack(out, width, element(x, first, g->k0), x->ld, x->dtype == DT_BF16, !x->t,
               MIN(width, rows), g->k);
    if (alpha != 1) r->scale(out, alpha, width * g->k);
}

static void edge(const struct rows *r, const struct block *g, float *c, const float *a,
                 const float *b, int64_t m, int64_t n)
{
    _Alignas(64) float t[TILE_MAX];
    const int64_t ldt = g->q->panel_b;
    g->q->tile(t, ldt, a, b, g->rows, false);
    for (int64_t i = 0; i < m; i++) {
        if (g->add)
            r->add(c + i * g->ldc, t + i * ldt, n);
        else
            memcpy(c + i * g->ldc, t + i * ldt, (size_t)n * sizeof *c);
    }
}

/* rows [i0, i1), columns [j0, j1) of the block */
static void multiply(const struct rows *r, const struct product *p, const struct block *g,
                     int64_t i0, int64_t i1, int64_t j0, int64_t j1)
{
    const struct panels *q = g->q;
    const bool half = p->y_dtype == DT_BF16;
    for (int64_t i = i0; i < i1 && half && g->k0 == 0 && p->beta != 0; i++)
        r->widen(g->c + i * g->ldc + j0, (const uint16_t *)p->y + (g->m0 + i) * p->ldy + g->n0 + j0,
                 j1 - j0);
    for (int64_t j = j0; j < j1; j += q->panel_b)
        for (int64_t i = i0; i < i1; i += q->tile_rows) {
            const float *a = g->a + i / q->tile_rows * q->panel_a * g->rows,
                        *b = g->b + j * g->rows;
            float *c = g->c + i * g->ldc + j;
            if (i + q->tile_rows <= i1 && j + q->panel_b <= j1)
                q->tile(c, g->ldc, a, b, g->rows, g->add);
            else
                edge(r, g, c, a, b, MIN(q->tile_rows, i1 - i), MIN(q->panel_b, j1 - j));
        }
    if (!g->last || !half) return;
    for (int64_t i = i0; i < i1; i++)
        r->narrow((uint16_t *)p->y + (g->m0 + i) * p->ldy + g->n0 + j0, g->c + i * g->ldc + j0,
                  j1 - j0);
}

/* One block by the whole team, called by each thread of it. Each element is summed up by one thread in an order that
 * K alone decides: the result does not depend on the team. */
static void team_block(const struct rows *r, const struct product *p, const struct block *g)
{
    const struct panels *q = g->q;
    const int64_t step = q->tile_rows, pa = div_up(g->m, step), pb = div_up(g->n, q->panel_b);
    const int64_t tm = div_up(g->m, q->task_rows), tn = div_up(g->n, TASK_COLS);
    struct mat bt = p->b;
    bt.t = !bt.t;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < pa; i++)
        pack_panel(r, g->a + i * q->panel_a * g->rows, q->panel_a, &p->a, g->m0 + i * step,
                   g->m - i * step, g, p->alpha);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < pb; j++)
        pack_panel(r, g->b + j * q->panel_b * g->rows, q->panel_b, &bt, g->n0 + j * q->panel_b,
                   g->n - j * q->panel_b, g, 1);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tm * tn; t++) {
        const int64_t i = t % tm * q->task_rows, j = t / tm * TASK_COLS;
        multiply(r, p, g, i, MIN(i + q->task_rows, g->m), j, MIN(j + TASK_COLS, g->n));
    }
}

static const struct panels *panels_for(const struct rows *r, const struct product *p)
{
    const bool pairs = r->pairs && p->a.dtype == DT_BF16 && p->b.dtype == DT_BF16 && p->alpha == 1;
    return pairs ? r->pairs : r->floats;
}

struct layout { /* of the scratch: panels of a [a floats], of b [b], a block of y [c] */
    int64_t depth, a, b, c;
};

static struct layout layout_of(const struct panels *q, const struct product *p)
{
    const int64_t all = div_up(p->K, q->per),
                  rows = round_up(div_up(all, div_up(all, q->depth)), 8);
    const int64_t m = MIN(p->M, ROWS), n = MIN(p->N, COLS);
    struct layout l = { .depth = rows * q->per };
    l.a = round_up(div_up(m, q->tile_rows) * q->panel_a * rows, 16);
    l.b = round_up(round_up(n, q->panel_b) * rows, 16);
    if (p->y_dtype == DT_BF16) l.c = m * n;
    return l;
}

int64_t cpu_panels_shared(const struct ctx *cx, const struct product *p)
{
    const struct layout l = layout_of(panels_for(cx->rows, p), p);
    return (l.a + l.b + l.c) * (int64_t)sizeof(float);
}

int cpu_panels(struct ctx *cx, const struct product *p)
{
    const struct rows *r = cx->rows;
    const bool half = p->y_dtype == DT_BF16;
    const struct panels *q = panels_for(r, p);
    const struct layout l = layout_of(q, p);
    const int64_t depth = l.depth, na = l.a, nb = l.b;
    float *mem;
    TRY(cpu_shared(cx, cpu_panels_shared(cx, p)));
    mem = cx->shared;
    const int team = p->M * p->N <= SMALL / p->K ? 1 : cx->threads;
#pragma omp parallel num_threads(team)
    for (int64_t n0 = 0; n0 < p->N; n0 += COLS)
        for (int64_t m0 = 0; m0 < p->M; m0 += ROWS)
            for (int64_t k0 = 0; k0 < p->K; k0 += depth) {
                const int64_t m = MIN(ROWS, p->M - m0), n = MIN(COLS, p->N - n0),
                              k = MIN(depth, p->K - k0);
                const struct block g = {
                    .q = q,
                    .m0 = m0,
                    .m = m,
                    .n0 = n0,
                    .n = n,
                    .k0 = k0,
                    .k = k,
                    .rows = div_up(k, q->per),
                    .a = mem,
                    .b = mem + na,
                    .c = half ? mem + na + nb : (float *)p->y + m0 * p->ldy + n0,
                    .ldc = half ? n : p->ldy,
                    .add = k0 > 0 || p->beta != 0,
                    .last = k0 + depth >= p->K,
                };
                team_block(r, p, &g);
            }
    return 0;
}
