/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "op_run.h"
#include "../src/base/rng.h"

enum { GUARD = 64 };
#define BF16_EPSILON 0x1p-8 /* rounding moves a value by at most this share of it */

static struct op_box *box_of(struct op_run *r, const struct tensor *t)
{
    for (int i = 0; i < r->n_box; i++)
        if (&r->box[i].t == t) return &r->box[i];
    fail_msg("not a tensor of this run");
    return NULL;
}

/* what the host filled goes to the backend */
static struct tensor *send(const struct op_run *r, struct op_box *b)
{
    memcpy(b->before, b->mem, (size_t)b->bytes);
    assert_int_equal(r->be->mem->to_device(r->be->cx, b->device, b->mem, b->bytes), 0);
    return &b->t;
}

static void fetch(const struct op_run *r, struct op_box *b)
{
    assert_int_equal(r->be->mem->to_host(r->be->cx, b->mem, b->device, b->bytes), 0);
}

/* the host's copy of the elements */
static void *elements(const struct op_box *b)
{
    return b->mem + GUARD;
}

static struct op_box *new_box(struct op_run *r, enum box_kind kind, enum dtype dtype, int64_t d0,
                              int64_t d1, int64_t ld)
{
    assert_true(r->n_box < OP_RUN_BOXES);
    struct op_box *b = &r->box[r->n_box++];
    /* the last row ends at d1, so that a sanitizer sees what runs over the guard */
    b->bytes = 2 * GUARD + (d0 ? ((d0 - 1) * ld + d1) * dtype_size(dtype) : 0);
    b->mem = aligned_alloc(64, (size_t)round_up(b->bytes, 64));
    b->before = malloc((size_t)b->bytes);
    assert_true(b->mem && b->before);
    assert_int_equal(r->be->mem->alloc(r->be->cx, &b->device, b->bytes), 0);
    memset(b->mem, 0xa5, (size_t)b->bytes);
    b->t = tensor_view((char *)b->device + GUARD, dtype, d0, d1, 1, 1);
    b->t.ld = ld;
    b->kind = kind;
    return b;
}

/* A number out of a table of normal ones, which is faster than to make one; its prime length lets no two rows be the same. */
static double normal(struct op_run *r)
{
    enum { N = 8191 };
    static double table[N];
    for (uint64_t i = 0; i < N && table[N - 1] == 0; i++)
        table[i] = rng_normal(1, rng_stream_of(RNG_TEST, 1), i);
    return table[(r->seed * 997 + r->n_random++) % N];
}

struct tensor *op_run_f32(struct op_run *r, enum box_kind kind, int64_t d0, int64_t d1, int64_t pad,
                          double spread)
{
    struct op_box *b = new_box(r, kind, DT_F32, d0, d1, d1 + pad);
    float *p = elements(b);
    for (int64_t i = 0; i < d0; i++)
        for (int64_t j = 0; j < d1; j++)
            p[i * b->t.ld + j] = kind == BOX_OUTPUT ? NAN : (float)(spread * normal(r));
    return send(r, b);
}

static uint16_t half_of(float x)
{
    const uint32_t u = bits_of(x);
    if (isnan(x)) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

void op_run_round(const struct op_run *r, double *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = (double)(r->act == DT_BF16 ? float_of((uint32_t)half_of((float)p[i]) << 16)
                                          : (float)p[i]);
}

struct tensor *op_run_act(struct op_run *r, enum box_kind kind, int64_t d0, int64_t d1, int64_t pad,
                          double spread)
{
    if (r->act == DT_F32) return op_run_f32(r, kind, d0, d1, pad, spread);
    struct op_box *b = new_box(r, kind, DT_BF16, d0, d1, d1 + pad);
    uint16_t *p = elements(b);
    for (int64_t i = 0; i < d0; i++)
        for (int64_t j = 0; j < d1; j++) {
            const double x = kind == BOX_OUTPUT ? NAN : spread * normal(r);
            p[i * b->t.ld + j] = half_of((float)x);
        }
    return send(r, b);
}

struct tensor *op_run_index(struct op_run *r, int64_t n, int64_t limit)
{
    struct op_box *b = new_box(r, BOX_INPUT, DT_I32, n, 1, 1);
    int32_t *p = elements(b);
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)(rng_uniform(r->seed, rng_stream_of(RNG_TEST, 2), r->n_random++) *
                         (double)limit);
    return send(r, b);
}

struct tensor *op_run_distinct(struct op_run *r, int64_t n, int64_t limit)
{
    struct op_box *b = new_box(r, BOX_INPUT, DT_I32, n, 1, 1);
    int32_t *p = elements(b);
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)(limit - 1 - i);
    return send(r, b);
}

struct tensor *op_run_bytes(struct op_run *r, int64_t n)
{
    struct op_box *b = new_box(r, BOX_INPUT, DT_U8, n, 1, 1);
    uint8_t *p = elements(b);
    for (int64_t i = 0; i < n; i++)
        p[i] = (uint8_t)rng_u64(r->seed, rng_stream_of(RNG_TEST, 3), r->n_random++);
    return send(r, b);
}

struct tensor *op_run_low(struct op_run *r, int64_t n)
{
    struct op_box *b = new_box(r, BOX_INOUT, DT_I16, n, 1, 1);
    memset(elements(b), 0, (size_t)n * 2);
    return send(r, b);
}

const uint8_t *op_run_bytes_of(struct op_run *r, const struct tensor *t)
{
    return elements(box_of(r, t));
}

const int32_t *op_run_indices(struct op_run *r, const struct tensor *t)
{
    return elements(box_of(r, t));
}

void op_run_put(struct op_run *r, const struct tensor *t, const void *bytes, int64_t n)
{
    assert_int_equal(r->be->mem->to_device(r->be->cx, box_of(r, t)->t.data, bytes, n), 0);
}

double *op_run_zeros(struct op_run *r, int64_t n)
{
    assert_true(r->n_doubles < OP_RUN_DOUBLES);
    double *p = calloc((size_t)MAX(n, (int64_t)1), sizeof *p);
    assert_non_null(p);
    r->doubles[r->n_doubles++] = p;
    return p;
}

static double element(const struct op_box *b, int64_t i)
{
    const void *p = elements(b);
    if (b->t.dtype == DT_I16) return (double)((const int16_t *)p)[i];
    return (double)(b->t.dtype == DT_BF16 ? float_of((uint32_t)((const uint16_t *)p)[i] << 16)
                                          : ((const float *)p)[i]);
}

double *op_run_double(struct op_run *r, const struct tensor *t)
{
    const int64_t n = tensor_row(t);
    double *p = op_run_zeros(r, tensor_count(t));
    struct op_box *b = box_of(r, t);
    fetch(r, b);
    for (int64_t i = 0; i < t->dim[0]; i++)
        for (int64_t j = 0; j < n; j++)
            p[i * n + j] = element(b, i * t->ld + j);
    return p;
}

static void expect(struct op_run *r, const struct tensor *t, const double *want, double eps,
                   int64_t length, double size)
{
    double top = size;
    for (int64_t i = 0; i < tensor_count(t); i++)
        top = fmax(top, fabs(want[i]));
    struct op_box *b = box_of(r, t);
    b->want = want;
    b->tolerance = eps * sqrt((double)MAX(length, (int64_t)1)) * top;
    b->relative = t->dtype == DT_BF16 ? BF16_EPSILON : 0;
}

void op_run_expect(struct op_run *r, const struct tensor *t, const double *want, double factor,
                   int64_t length, double size)
{
    expect(r, t, want, factor * FLT_EPSILON, length, size);
}

void op_run_expect_rounded(struct op_run *r, const struct tensor *t, const double *want,
                           double factor, int64_t length, double size)
{
    expect(r, t, want, factor * (r->act == DT_BF16 ? BF16_EPSILON : FLT_EPSILON), length, size);
}

void op_run_exact(struct op_run *r, const struct tensor *t)
{
    box_of(r, t)->relative = 0;
}

static void check_values(const struct op_box *b, int at)
{
    for (int64_t i = 0; i < b->t.dim[0]; i++)
        for (int64_t j = 0; j < b->t.dim[1]; j++) {
            const double got = element(b, i * b->t.ld + j), want = b->want[i * b->t.dim[1] + j],
                         allowed = b->tolerance + b->relative * fabs(want);
            if (fabs(got - want) <= allowed) continue; /* false for NaN */
            fail_msg("tensor %d, element (%lld, %lld): %.9g, not %.9g (tolerance %.3g)", at,
                     (long long)i, (long long)j, got, want, allowed);
        }
}

/* false for the bytes of elements */
static bool is_gap(const struct op_box *b, int64_t byte)
{
    const int64_t e = (byte - GUARD) / dtype_size(b->t.dtype), end = b->bytes - GUARD;
    return byte < GUARD || byte >= end || e % MAX(b->t.ld, (int64_t)1) >= b->t.dim[1];
}

void op_run_check(struct op_run *r, uint8_t digest[32])
{
    struct sha256 sha;
    sha256_init(&sha);
    for (int i = 0; i < r->n_box; i++) {
        struct op_box *b = &r->box[i];
        fetch(r, b);
        const bool same = memcmp(b->mem, b->before, (size_t)b->bytes) == 0;
        for (int64_t k = 0; k < b->bytes && !same; k++)
            if (b->mem[k] != b->before[k] && (b->kind == BOX_INPUT || is_gap(b, k)))
                fail_msg("tensor %d: byte %lld of %lld (%s) was overwritten", i,
                         (long long)k - GUARD, (long long)b->bytes - 2 * GUARD,
                         is_gap(b, k) ? "outside its rows" : "an input");
        if (b->want) check_values(b, i);
        if (b->kind != BOX_INPUT) sha256_add(&sha, b->mem, (size_t)b->bytes);
    }
    sha256_end(&sha, digest);
}

void op_run_release(struct op_run *r)
{
    for (int i = 0; i < r->n_box; i++) {
        r->be->mem->release(r->be->cx, r->box[i].device);
        free(r->box[i].mem);
        free(r->box[i].before);
    }
    for (int i = 0; i < r->n_doubles; i++)
        free(r->doubles[i]);
    r->n_box = r->n_doubles = 0;
    r->n_random = 0;
}
