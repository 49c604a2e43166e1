/* SPDX-License-Identifier: MIT
 * Products of bfloat16 by the processor's own instructions (AVX512_BF16, AMX), through oneDNN, which makes code for
 * each shape. A row of a batch more is another shape, so the last CACHE of them are kept. */
#include "cpu.h"
#include "../base/mem.h"
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

enum { CACHE = 128 };

struct made {           /* a product that oneDNN has made code for */
    struct product key; /* its pointers are NULL */
    int threads;
    dnnl_primitive_t prim;
    dnnl_memory_desc_t a, b, y;
    uint64_t used; /* when it was used last */
};

struct bf16_unit {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct made made[CACHE];
    uint64_t clock;
};

bool cpu_has_bf16_unit(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16");
}

void cpu_bf16_unit_close(struct bf16_unit *u)
{
    if (!u) return;
    for (int i = 0; i < CACHE; i++)
        if (u->made[i].prim) dnnl_primitive_destroy(u->made[i].prim);
    if (u->stream) dnnl_stream_destroy(u->stream);
    if (u->engine) dnnl_engine_destroy(u->engine);
    free(u);
}

static int check(dnnl_status_t rc, const struct product *p)
{
    if (rc == dnnl_success) return 0;
    if (rc == dnnl_out_of_memory)
        return err_set(ERR_OOM, "oneDNN is out of memory in a matrix product");
    return err_set(ERR_DEVICE, "oneDNN failed (status %d) in a %lld x %lld x %lld bfloat16 product",
                   (int)rc, (long long)p->M, (long long)p->N, (long long)p->K);
}

static int open_unit(struct ctx *cx, const struct product *p)
{
    if (cx->unit) return 0;
    TRY(MEM_NEW(&cx->unit, 1));
    int rc = check(dnnl_engine_create(&cx->unit->engine, dnnl_cpu, 0), p);
    if (rc == 0)
        rc = check(
            dnnl_stream_create(&cx->unit->stream, cx->unit->engine, dnnl_stream_default_flags), p);
    if (rc < 0) {
        cpu_bf16_unit_close(cx->unit);
        cx->unit = NULL;
    }
    return rc;
}

static bool same_mat(const struct mat *a, const struct mat *b)
{
    return a->ld == b->ld && a->t == b->t;
}

static bool same(const struct made *m, const struct product *p, int threads)
{
    const struct product *k = &m->key;
    return m->prim && m->threads == threads && k->M == p->M && k->N == p->N && k->K == p->K &&
           k->alpha == p->alpha && k->beta == p->beta && same_mat(&k->a, &p->a) &&
           same_mat(&k->b, &p->b) && k->ldy == p->ldy && k->y_dtype == p->y_dtype;
}

static dnnl_status_t describe(dnnl_memory_desc_t *d, int64_t rows, int64_t cols, int64_t ld, bool t,
                              enum dtype dtype)
{
    const dnnl_dims_t dims = { rows, cols }, strides = { t ? 1 : ld, t ? ld : 1 };
    return dnnl_memory_desc_init_by_strides(d, 2, dims, dtype == DT_BF16 ? dnnl_bf16 : dnnl_f32,
                                            strides);
}

static dnnl_status_t make(struct bf16_unit *u, struct made *m, const struct product *p)
{
    dnnl_matmul_desc_t op;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t add = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t rc = describe(&m->a, p->M, p->K, p->a.ld, p->a.t, DT_BF16);
    if (!rc) rc = describe(&m->b, p->K, p->N, p->b.ld, p->b.t, DT_BF16);
    if (!rc) rc = describe(&m->y, p->M, p->N, p->ldy, false, p->y_dtype);
    if (!rc) rc = dnnl_matmul_desc_init(&op, &m->a, &m->b, NULL, &m->y);
    if (!rc) rc = dnnl_primitive_attr_create(&attr);
    if (!rc && p->alpha != 1) rc = dnnl_primitive_attr_set_output_scales(attr, 1, 0, &p->alpha);
    if (!rc && p->beta != 0) {
        rc = dnnl_post_ops_create(&add);
        if (!rc) rc = dnnl_post_ops_append_sum(add, p->beta);
        if (!rc) rc = dnnl_primitive_attr_set_post_ops(attr, add);
    }
    if (!rc) rc = dnnl_primitive_desc_create(&pd, &op, attr, u->engine, NULL);
    if (!rc) rc = dnnl_primitive_create(&m->prim, pd);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (add) dnnl_post_ops_destroy(add);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return rc;
}

/* the product's code: made before, or made in the place of what was not used for longest */
static int find(struct bf16_unit *u, struct made **out, const struct product *p, int threads)
{
    struct made *old = &u->made[0];
    for (int i = 0; i < CACHE; i++) {
        struct made *m = &u->made[i];
        if (same(m, p, threads)) {
            m->used = ++u->clock;
            *out = m;
            return 0;
        }
        if (m->used < old->used) old = m;
    }
    if (old->prim) dnnl_primitive_destroy(old->prim);
    memset(old, 0, sizeof *old);
    const dnnl_status_t rc = make(u, old, p);
    if (rc) {
        memset(old, 0, sizeof *old);
        return check(rc, p);
    }
    old->key = *p;
    old->key.a.p = old->key.b.p = old->key.y = NULL;
    old->threads = threads;
    old->used = ++u->clock;
    *out = old;
    return 0;
}

/* oneDNN's handles are not const */
static dnnl_status_t wrap(dnnl_memory_t *out, struct bf16_unit *u, const dnnl_memory_desc_t *d,
                          const void *p)
{
    void *q;
    memcpy(&q, &p, sizeof q);
    return dnnl_memory_create(out, d, u->engine, q);
}

int cpu_bf16_unit(struct ctx *cx, const struct product *p)
{
    struct made *m = NULL;
    dnnl_memory_t a = NULL, b = NULL, y = NULL;
    TRY(open_unit(cx, p));
    struct bf16_unit *u = cx->unit;
    /* oneDNN takes its team size from this thread's setting, when it makes the code and when it runs it */
    if (omp_get_max_threads() != cx->threads) omp_set_num_threads(cx->threads);
    TRY(find(u, &m, p, cx->threads));
    dnnl_status_t rc = wrap(&a, u, &m->a, p->a.p);
    if (!rc) rc = wrap(&b, u, &m->b, p->b.p);
    if (!rc) rc = wrap(&y, u, &m->y, p->y);
    if (!rc) {
        const dnnl_exec_arg_t args[] = { { DNNL_ARG_SRC, a },
                                         { DNNL_ARG_WEIGHTS, b },
                                         { DNNL_ARG_DST, y } };
        rc = dnnl_primitive_execute(m->prim, u->stream, COUNT_OF(args), args);
    }
    if (!rc) rc = dnnl_stream_wait(u->stream);
    if (a) dnnl_memory_destroy(a);
    if (b) dnnl_memory_destroy(b);
    if (y) dnnl_memory_destroy(y);
    return check(rc, p);
}
