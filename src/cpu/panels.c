/* SPDX-License-Identifier: MIT
 * Large products by panels: a block of op(a) and one of op(b) are copied into panels of float that the registers'
 * tile reads in order (Goto and van de Geijn's scheme). The copy is where bfloat16 becomes float. */
#include "cpu.h"
#include <string.h>

/* Of a block: rows, columns, depth. The panel of b [DEPTH, panel_b] stays in the L1 cache, TASK_ROWS rows of a in the
 * L2, a block of y in the L3. */
enum { ROWS = 1024, COLS = 1024, DEPTH = 256, TASK_ROWS = 120, TASK_COLS = 256 };
enum { TILE_MAX = 12 * 32, SMALL = 1 << 18 };

struct block { /* y[m0.., n0..] (+)= a panels times b panels, over k of the depth */
    int64_t m0, m, n0, n, k0, k;
    float *a, *b; /* panels */
    float *c;     /* where it is summed up: y, or an f32 block beside a y of bfloat16 */
    int64_t ldc;
    bool add, last;
};

static const void *element(const struct mat *x, int64_t i, int64_t k)
{
    const int64_t at = x->t ? k * x->ld + i : i * x->ld + k;
    return (const char *)x->p + at * dtype_size(x->dtype);
}

/* A panel of op(a), or of op(b) transposed: either is seen as [rows, depth]. What a panel is wider than a tile is
 * filled with the rows that follow: reading them is cheaper than leaving them out. */
static void pack_panel(const struct rows *r, float *out, int64_t width, const struct mat *x,
                       int64_t first, int64_t rows, const struct block *g, float alpha)
{
    r->pack(out, width, element(x, first, g->k0), x->ld, x->dtype == DT_BF16, !x->t,
            MIN(width, rows), g->k);
    if (alpha != 1) r->scale(out, alpha, width * g->k);
}

static void edge(const struct rows *r, float *c, int64_t ldc, const float *a, const float *b,
                 int64_t m, int64_t n, int64_t k, bool add)
{
    _Alignas(64) float t[TILE_MAX];
    r->tile(t, r->panel_b, a, b, k, false);
    for (int64_t i = 0; i < m; i++) {
        if (add)
            r->add(c + i * ldc, t + i * r->panel_b, n);
        else
            memcpy(c + i * ldc, t + i * r->panel_b, (size_t)n * sizeof *c);
    }
}

/* rows [i0, i1), columns [j0, j1) of the block */
static void multiply(const struct rows *r, const struct product *p, const struct block *g,
                     int64_t i0, int64_t i1, int64_t j0, int64_t j1)
{
    for (int64_t j = j0; j < j1; j += r->panel_b)
        for (int64_t i = i0; i < i1; i += r->tile_rows) {
            const float *a = g->a + i / r->tile_rows * r->panel_a * g->k, *b = g->b + j * g->k;
            float *c = g->c + i * g->ldc + j;
            if (i + r->tile_rows <= i1 && j + r->panel_b <= j1)
                r->tile(c, g->ldc, a, b, g->k, g->add);
            else
                edge(r, c, g->ldc, a, b, MIN(r->tile_rows, i1 - i), MIN(r->panel_b, j1 - j), g->k,
                     g->add);
        }
    if (!g->last || p->y_dtype != DT_BF16) return;
    for (int64_t i = i0; i < i1; i++)
        r->narrow((uint16_t *)p->y + (g->m0 + i) * p->ldy + g->n0 + j0, g->c + i * g->ldc + j0,
                  j1 - j0);
}

/* One block by the whole team, called by each thread of it. Each element is summed up by one thread in an order that
 * K alone decides: the result does not depend on the team. */
static void team_block(const struct rows *r, const struct product *p, const struct block *g)
{
    const int64_t step = r->tile_rows, pa = div_up(g->m, step), pb = div_up(g->n, r->panel_b);
    const int64_t rows = TASK_ROWS / step * step, tm = div_up(g->m, rows),
                  tn = div_up(g->n, TASK_COLS);
    struct mat bt = p->b;
    bt.t = !bt.t;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < pa; i++)
        pack_panel(r, g->a + i * r->panel_a * g->k, r->panel_a, &p->a, g->m0 + i * step,
                   g->m - i * step, g, p->alpha);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < pb; j++)
        pack_panel(r, g->b + j * r->panel_b * g->k, r->panel_b, &bt, g->n0 + j * r->panel_b,
                   g->n - j * r->panel_b, g, 1);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tm * tn; t++) {
        const int64_t i = t % tm * rows, j = t / tm * TASK_COLS;
        multiply(r, p, g, i, MIN(i + rows, g->m), j, MIN(j + TASK_COLS, g->n));
    }
}

struct layout { /* of the scratch: panels of a [a floats], of b [b], a block of y [c] */
    int64_t depth, a, b, c;
};

static struct layout layout_of(const struct rows *r, const struct product *p)
{
    struct layout l = { .depth = round_up(div_up(p->K, div_up(p->K, DEPTH)), 8) };
    const int64_t m = MIN(p->M, ROWS), n = MIN(p->N, COLS);
    l.a = round_up(div_up(m, r->tile_rows) * r->panel_a * l.depth, 16);
    l.b = round_up(round_up(n, r->panel_b) * l.depth, 16);
    if (p->y_dtype == DT_BF16) l.c = m * n;
    return l;
}

int64_t cpu_panels_shared(const struct ctx *cx, const struct product *p)
{
    const struct layout l = layout_of(cx->rows, p);
    return (l.a + l.b + l.c) * (int64_t)sizeof(float);
}

int cpu_panels(struct ctx *cx, const struct product *p)
{
    const struct rows *r = cx->rows;
    const bool half = p->y_dtype == DT_BF16;
    const struct layout l = layout_of(r, p);
    const int64_t depth = l.depth, na = l.a, nb = l.b;
    float *mem;
    TRY(cpu_shared(cx, cpu_panels_shared(cx, p)));
    mem = cx->shared;
    const int team = p->M * p->N <= SMALL / p->K ? 1 : cx->threads;
#pragma omp parallel num_threads(team)
    for (int64_t n0 = 0; n0 < p->N; n0 += COLS)
        for (int64_t m0 = 0; m0 < p->M; m0 += ROWS)
            for (int64_t k0 = 0; k0 < p->K; k0 += depth) {
                const int64_t m = MIN(ROWS, p->M - m0), n = MIN(COLS, p->N - n0);
                const struct block g = {
                    .m0 = m0,
                    .m = m,
                    .n0 = n0,
                    .n = n,
                    .k0 = k0,
                    .k = MIN(depth, p->K - k0),
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
