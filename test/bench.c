/* SPDX-License-Identifier: MIT
 * [BENCH_BACKEND=cuda] bench [filter] [threads] [tokenizer's directory] [texts]: one row per op and dtype at the shapes of Qwen2.5-0.5B; time, rate, and the share
 * of what this machine reaches in the same process on multiply-adds of that dtype in registers (GFLOP/s) or
 * on a copy in memory (GB/s), on a device of what its maker says; whole steps with the arithmetic that they cannot save. Rows begin with "f32" or "bf16": the filter is any part of a row's name. */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../src/base/rng.h"
#include "../src/cpu/cpu.h"
#include "../src/train/machine.h"
#include "bench_step.h"
#include "bench_tokenizer.h"

enum {
    T = 2048,
    N = 1024,
    C = 896,
    F = 4864,
    H = 14,
    K = 2,
    D = 64,
    V = 151936,
    QKV = (H + 2 * K) * D
};

struct bench {
    struct backend be;
    const char *filter;
    enum dtype dtype;                 /* of activations and weights */
    double peak_flops[2], peak_bytes; /* float32, bfloat16; 0: not known */
    void *mark;                       /* a byte of the backend's memory */
    int repeat;                       /* calls that are timed together */
    uint64_t random;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(int rc)
{
    if (rc == 0) return;
    fprintf(stderr, "%s\n", err_msg());
    exit(1);
}

/* Where the host fills an array of the backend: the array itself, or a buffer that send() copies and frees. */
static void *host_of(struct bench *b, void *p, int64_t bytes)
{
    void *host = b->be.about ? malloc((size_t)MAX(bytes, (int64_t)1)) : p;
    if (!host) check(err_set(ERR_OOM, "out of memory"));
    return host;
}

static void send(struct bench *b, void *p, void *host, int64_t bytes)
{
    if (host == p) return;
    check(b->be.mem->to_device(b->be.cx, p, host, bytes));
    free(host);
}

static struct tensor make(struct bench *b, int64_t d0, int64_t d1)
{
    const int64_t bytes = d0 * d1 * 4;
    void *p;
    check(b->be.mem->alloc(b->be.cx, &p, bytes));
    float *x = host_of(b, p, bytes);
#pragma omp parallel for num_threads(b->be.threads)
    for (int64_t i = 0; i < d0 * d1; i++)
        x[i] = (float)rng_uniform(1, rng_stream_of(RNG_TEST, b->random), (uint64_t)i) * 2 - 1;
    b->random++;
    send(b, p, x, bytes);
    return tensor_view(p, DT_F32, d0, d1, 1, 1);
}

/* the same, of the dtype that is being measured */
static struct tensor make_act(struct bench *b, int64_t d0, int64_t d1)
{
    struct tensor x = make(b, d0, d1);
    if (b->dtype == DT_F32) return x;
    void *p;
    check(b->be.mem->alloc(b->be.cx, &p, d0 * d1 * 2));
    struct tensor y = tensor_view(p, b->dtype, d0, d1, 1, 1);
    (void)op_cast(&b->be, &y, &x);
    b->be.mem->release(b->be.cx, x.data);
    return y;
}

static struct tensor make_index(struct bench *b, int64_t n, int64_t limit)
{
    struct tensor t = make(b, n, 1);
    int32_t *p = host_of(b, t.data, 4 * n);
    t.dtype = DT_I32;
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)(i * 7919 % limit);
    send(b, t.data, p, 4 * n);
    return t;
}

static void drop(struct bench *b, struct tensor *t)
{
    b->be.mem->release(b->be.cx, t->data);
    t->data = NULL;
}

/* a row's name with its dtype; NULL where the filter leaves it out */
static const char *wanted(const struct bench *b, const char *name)
{
    static char text[128];
    snprintf(text, sizeof text, "%-5s%s", b->dtype == DT_F32 ? "f32" : "bf16", name);
    return !b->filter || strstr(text, b->filter) ? text : NULL;
}

/* Wait until a device has done all. */
static void settle(struct bench *b)
{
    char byte;
    if (b->be.about) check(b->be.mem->to_host(b->be.cx, &byte, b->mark, 1));
}

/* The best of at least 3 runs and a third of a second. flops > 0: GFLOP/s, else bytes: GB/s. */
#define BENCH(b, name, flops, bytes, call)                                   \
    do {                                                                     \
        if (!wanted(b, name)) break;                                         \
        double best_ = 1e30, all_ = 0;                                       \
        check(call);                                                         \
        for (int k_ = 0; k_ < 3 || (all_ < 0.3 && k_ < 1000); k_++) {        \
            settle(b);                                                       \
            const double t_ = now();                                         \
            for (int r_ = 0; r_ < (b)->repeat; r_++)                         \
                check(call);                                                 \
            settle(b);                                                       \
            const double s_ = (now() - t_) / (b)->repeat;                    \
            all_ += s_;                                                      \
            best_ = s_ < best_ ? s_ : best_;                                 \
        }                                                                    \
        report(b, wanted(b, name), best_, (double)(flops), (double)(bytes)); \
    } while (0)

static void report(const struct bench *b, const char *name, double s, double flops, double bytes)
{
    const bool math = flops > 0;
    const double rate = (math ? flops : bytes) / s,
                 peak = math ? b->peak_flops[b->dtype == DT_BF16] : b->peak_bytes;
    printf("%-42s %10.3f ms %9.1f %s", name, 1e3 * s, 1e-9 * rate, math ? "GFLOP/s" : "GB/s   ");
    if (peak > 0) printf(" %5.1f %%", 100 * rate / peak);
    printf("\n");
    fflush(stdout);
}

/* --- the machine's own limits
 * ------------------------------------------------------------------------------------------ */
enum { CHAINS = 12, STEPS = 2000000, TILE_STEPS = 500000 };
/* independent chains in registers, written out because an array of them would live in memory */
#define FMA_LOOP(name, target_, vec, set1, madd, plus, first)                                   \
    target_ static float name(void)                                                             \
    {                                                                                           \
        const vec a = set1(0.999f);                                                             \
        vec x0 = a, x1 = plus(x0, a), x2 = plus(x1, a), x3 = plus(x2, a), x4 = plus(x3, a),     \
            x5 = plus(x4, a);                                                                   \
        vec x6 = plus(x5, a), x7 = plus(x6, a), x8 = plus(x7, a), x9 = plus(x8, a),             \
            xa = plus(x9, a), xb = plus(xa, a);                                                 \
        for (int k = 0; k < STEPS; k++) {                                                       \
            x0 = madd(x0, a, a), x1 = madd(x1, a, a), x2 = madd(x2, a, a), x3 = madd(x3, a, a); \
            x4 = madd(x4, a, a), x5 = madd(x5, a, a), x6 = madd(x6, a, a), x7 = madd(x7, a, a); \
            x8 = madd(x8, a, a), x9 = madd(x9, a, a), xa = madd(xa, a, a), xb = madd(xb, a, a); \
        }                                                                                       \
        x0 = plus(plus(plus(x0, x1), plus(x2, x3)), plus(plus(x4, x5), plus(x6, x7)));          \
        return first(plus(x0, plus(plus(x8, x9), plus(xa, xb))));                               \
    }
#define MUL_ADD(x, y, z) _mm_add_ps(_mm_mul_ps(x, y), z)
FMA_LOOP(fma_base, , __m128, _mm_set1_ps, MUL_ADD, _mm_add_ps, _mm_cvtss_f32)
FMA_LOOP(fma_avx2, __attribute__((target("avx2,fma"))), __m256, _mm256_set1_ps, _mm256_fmadd_ps,
         _mm256_add_ps, _mm256_cvtss_f32)
FMA_LOOP(fma_avx512, __attribute__((target("avx512f"))), __m512, _mm512_set1_ps, _mm512_fmadd_ps,
         _mm512_add_ps, _mm512_cvtss_f32)

/* the factors' halves are bfloat16: 0.999f is 0x3f7f, 0xbe77 */
#define DPBF16(x, y, z) _mm512_dpbf16_ps(z, (__m512bh)(x), (__m512bh)(y))
FMA_LOOP(dot_bf16, __attribute__((target("avx512f,avx512bf16"))), __m512, _mm512_set1_ps, DPBF16,
         _mm512_add_ps, _mm512_cvtss_f32)

/* four chains of tiles; its arguments' values do not matter */
__attribute__((target("amx-tile,amx-bf16"))) static float dot_tiles(void)
{
    rows_amx_bf16.pairs->begin();
    for (int k = 0; k < TILE_STEPS; k++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    rows_amx_bf16.pairs->end();
    return 0;
}

/* what all threads reach on `loop` of `flops` operations */
static double loop_rate(const struct bench *b, float (*loop)(void), double flops)
{
    volatile float sink = 0;
    const double t = now();
#pragma omp parallel num_threads(b->be.threads)
    {
        const float s = loop();
#pragma omp critical
        sink = sink + s;
    }
    return flops * b->be.threads / (now() - t);
}

static void measure_peaks(struct bench *b)
{
    const struct rows *r = b->be.cx->rows;
    const bool tiles = strcmp(r->name, "amx_bf16") == 0;
    const int lanes = tiles || strncmp(r->name, "avx512", 6) == 0 ? 16
                      : strcmp(r->name, "avx2") == 0              ? 8
                                                                  : 4;
    const double steps = (double)CHAINS * STEPS;
    const int64_t bytes = 256 << 20;
    struct tensor x = make(b, bytes / 4, 1), y = make(b, bytes / 4, 1);
    for (int k = 0; k < 5; k++) {
        const double f32 = loop_rate(b,
                                     lanes == 16  ? fma_avx512
                                     : lanes == 8 ? fma_avx2
                                                  : fma_base,
                                     2 * lanes * steps);
        /* without the instruction bfloat16 is widened and multiplied as float32 */
        const double bf16 = tiles ? loop_rate(b, dot_tiles, 4.0 * 2 * 16 * 16 * 32 * TILE_STEPS)
                            : r->pairs ? loop_rate(b, dot_bf16, 4 * lanes * steps)
                                       : f32;
        b->peak_flops[0] = fmax(b->peak_flops[0], f32);
        b->peak_flops[1] = fmax(b->peak_flops[1], bf16);
        double t = now();
#pragma omp parallel for schedule(static) num_threads(b->be.threads)
        for (int32_t i = 0; i < b->be.threads;
             i++) { /* long pieces, which the C library streams past the caches */
            const int64_t piece = bytes / b->be.threads;
            memcpy((char *)y.data + i * piece, (const char *)x.data + i * piece, (size_t)piece);
        }
        b->peak_bytes = fmax(b->peak_bytes, 2.0 * (double)bytes / (now() - t));
        t = now();
#pragma omp parallel for schedule(static) num_threads(b->be.threads)
        for (int64_t i = 0; i < bytes >> 16; i++)
            b->be.cx->rows->scale((float *)y.data + (i << 14), 0.5f, 1 << 14);
        b->peak_bytes = fmax(b->peak_bytes, 2.0 * (double)bytes / (now() - t));
    }
    drop(b, &x);
    drop(b, &y);
    printf("%d threads, rows_%s: %.1f GFLOP/s in float32, %.1f in bfloat16, %.1f GB/s copied or "
           "updated in place\n",
           b->be.threads, r->name, 1e-9 * b->peak_flops[0], 1e-9 * b->peak_flops[1],
           1e-9 * b->peak_bytes);
}

/* a device's are published; float32's are not in that table */
static void device_peaks(struct bench *b)
{
    const struct device *d = device_named(b->be.about);
    printf("%s\n", b->be.about);
    if (!d) return;
    b->peak_flops[1] = d->flops;
    b->peak_bytes = d->bytes_per_second;
    printf("published: %.0f GFLOP/s in bfloat16, %.0f GB/s\n", 1e-9 * d->flops,
           1e-9 * d->bytes_per_second);
}

/* --- rows
 * ------------------------------------------------------------------------------------------------------------------
 */
static void gemm_row(struct bench *b, const char *name, int64_t M, int64_t n, int64_t k, bool ta,
                     bool tb, float beta)
{
    if (!wanted(b, name)) return;
    const int64_t size = dtype_size(b->dtype);
    struct tensor x = make_act(b, ta ? k : M, ta ? M : k), w = make_act(b, tb ? n : k, tb ? k : n),
                  y = beta != 0 ? make(b, M, n) : make_act(b, M, n);
    const bool vector = M <= 8; /* bound by the reading of w */
    BENCH(b, name, vector ? 0 : 2 * M * n * k, size * (M * n + M * k + n * k),
          op_gemm(&b->be, &y, &x, ta, &w, tb, NULL, 1, beta));
    drop(b, &x);
    drop(b, &w);
    drop(b, &y);
}

/* q, k, v with their bias, and the gradients of both: against the rows without it, what the bias costs */
static void bias_rows(struct bench *b)
{
    const int64_t size = dtype_size(b->dtype), flops = (int64_t)2 * T * QKV * C,
                  bytes = size * (T * QKV + T * C + QKV * C);
    struct tensor x = make_act(b, T, C), w = make_act(b, QKV, C), bias = make_act(b, QKV, 1),
                  y = make_act(b, T, QKV), dw = make(b, QKV, C), db = make(b, QKV, 1);
    BENCH(b, "gemm fwd qkv with bias", flops, bytes, op_gemm_bias(&b->be, &y, &x, &w, &bias));
    BENCH(b, "gemm dw qkv with db", flops, bytes, op_gemm_bgrad(&b->be, &dw, &db, &y, &x));
    struct tensor *all[] = { &x, &w, &bias, &y, &dw, &db };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
}

static void gemm_rows(struct bench *b)
{
    gemm_row(b, "gemm fwd qkv", T, QKV, C, false, true, 0);
    gemm_row(b, "gemm fwd o", T, C, C, false, true, 0);
    gemm_row(b, "gemm fwd gate_up", T, 2 * F, C, false, true, 0);
    gemm_row(b, "gemm fwd down", T, C, F, false, true, 0);
    gemm_row(b, "gemm dx qkv", T, C, QKV, false, false, 0);
    gemm_row(b, "gemm dw qkv", QKV, C, T, true, false, 1);
    gemm_row(b, "gemm dx gate_up", T, C, 2 * F, false, false, 0);
    gemm_row(b, "gemm dw gate_up", 2 * F, C, T, true, false, 1);
    gemm_row(b, "gemm dx down", T, F, C, false, false, 0);
    gemm_row(b, "gemm dw down", C, F, T, true, false, 1);
    gemm_row(b, "gemm decode, 1 row, gate_up", 1, 2 * F, C, false, true, 0);
    gemm_row(b, "gemm decode, 8 rows, gate_up", 8, 2 * F, C, false, true, 0);
    gemm_row(b, "gemm decode, 1 row, head", 1, V, C, false, true, 0);
    gemm_row(b, "gemm small 64 x 64 x 64", 64, 64, 64, false, true, 0);
    gemm_row(b, "gemm small 256 x 192 x 64", 256, 192, 64, false, true, 0);
    gemm_row(b, "gemm small dw 192 x 64 x 256", 192, 64, 256, true, false, 1);
}

static void row_rows(struct bench *b)
{
    const int64_t size = dtype_size(b->dtype);
    struct tensor x = make_act(b, T, C), y = make_act(b, T, C), r = make_act(b, T, C),
                  s = make_act(b, T, C), w = make_act(b, C, 1), dx = make(b, T, C);
    struct tensor rstd = make(b, T, 1), dw = make(b, C, 1),
                  scratch = make(b, op_rmsnorm_bwd_scratch(T, C) / 4, 1);
    BENCH(b, "rmsnorm fwd with residual", 0, 4 * size * T * C,
          op_rmsnorm_fwd(&b->be, &y, &rstd, &s, &x, &r, &w, 1e-6f));
    BENCH(b, "rmsnorm apply", 0, 2 * size * T * C, op_rmsnorm_apply(&b->be, &y, &s, &rstd, &w));
    BENCH(b, "rmsnorm bwd", 0, (8 + 2 * size) * T * C,
          op_rmsnorm_bwd(&b->be, &dx, &dw, &y, &s, &w, &rstd, &scratch));
    struct tensor qkv = make_act(b, T, QKV), pos = make_index(b, T, T), table = make(b, T, D);
    struct tensor q = tensor_cols(&qkv, 0, H * D),
                  table3 = tensor_view(table.data, DT_F32, T, 2, D / 2, 1);
    struct tensor out = make_act(b, T, H * D), wd = make_act(b, D, 1), dwd = make(b, D, 1),
                  rh = make(b, T, H);
    BENCH(b, "rope", 0, 2 * size * T * H * D, op_rope(&b->be, &q, D, &pos, &table3, false));
    BENCH(b, "headnorm fwd", 0, 2 * size * T * H * D,
          op_headnorm_fwd(&b->be, &out, &rh, &q, &wd, 1e-6f));
    BENCH(b, "headnorm bwd", 0, 3 * size * T * H * D,
          op_headnorm_bwd(&b->be, &out, &dwd, &out, &q, &wd, &rh, &scratch));
    struct tensor gu = make_act(b, T, 2 * F), act = make_act(b, T, F), again = make_act(b, T, F);
    BENCH(b, "swiglu fwd", 0, 3 * size * T * F, op_swiglu_fwd(&b->be, &act, &gu));
    BENCH(b, "swiglu bwd", 0, 6 * size * T * F, op_swiglu_bwd(&b->be, &gu, &again, &act, &gu));
    const struct tensor from = tensor_view(x.data, b->dtype, T, C, 1, 1);
    BENCH(b, "put_rows", 0, 2 * size * T * C, op_put_rows(&b->be, &y, &from, &pos));
    BENCH(b, "gather", 0, 2 * size * T * C, op_gather(&b->be, &y, &x, &pos));
    BENCH(b, "scatter_add", 0, (8 + size) * T * C, op_scatter_add(&b->be, &dx, &x, &pos));
    struct tensor *all[] = { &x,     &y,   &r,  &s,  &w,  &rstd, &dw, &scratch, &qkv,  &pos,
                             &table, &out, &wd, &rh, &gu, &act,  &dx, &dwd,     &again };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
}

static void attention_row(struct bench *b, const char *name, const struct segments *segs,
                          int64_t rows, int64_t keys)
{
    char text[96];
    double pairs = 0;
    struct tensor q = make_act(b, rows, H * D), k = make_act(b, keys, K * D),
                  v = make_act(b, keys, K * D), o = make_act(b, rows, H * D);
    struct tensor lse = make(b, rows, H), dq = make_act(b, rows, H * D),
                  dk = make_act(b, keys, K * D), dv = make_act(b, keys, K * D);
    for (int32_t i = 0; i < segs->n; i++) {
        const double n = segs->seg[i].len, p = segs->seg[i].prefix_len;
        pairs += n * p + n * (n + 1) / 2;
    }
    const bool decode = keys != rows;
    snprintf(text, sizeof text, "attention fwd %s", name);
    BENCH(b, text, decode ? 0 : 4 * pairs * H * D, 2 * dtype_size(b->dtype) * keys * K * D,
          op_attention_fwd(&b->be, &o, &lse, &q, &k, &v, segs, D, 0.125f));
    snprintf(text, sizeof text, "attention bwd %s", name);
    if (!decode)
        BENCH(b, text, 10 * pairs * H * D, 0,
              op_attention_bwd(&b->be, &dq, &dk, &dv, &o, &o, &lse, &q, &k, &v, segs, D, 0.125f));
    struct tensor *all[] = { &q, &k, &v, &o, &lse, &dq, &dk, &dv };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
}

static void attention_rows(struct bench *b)
{
    static const struct segment pair[] = { { 0, 168, 0, 0, 0 },
                                           { 168, 302, 168, 0, 168 },
                                           { 470, 277, 470, 0, 168 } };
    static const struct segment one[] = { { 0, 1024, 0, 0, 0 } },
                                step[] = { { 0, 1, 4095, 0, 4095 } };
    static const int32_t g3[] = { 0, 3 }, g1[] = { 0, 1 };
    static struct segment many[8];
    static int32_t g8[9];
    for (int32_t i = 0; i < 8; i++) {
        many[i] = (struct segment){ i, 1, i * 512 + 511, i * 512, 511 };
        g8[i + 1] = i + 1;
    }
    attention_row(b, "pair 168 + 302 + 277", &(struct segments){ pair, g3, 3, 1 }, 747, 747);
    attention_row(b, "one of 1024", &(struct segments){ one, g1, 1, 1 }, 1024, 1024);
    attention_row(b, "decode 1 x 4096", &(struct segments){ step, g1, 1, 1 }, 1, 4096);
    attention_row(b, "decode 8 x 512", &(struct segments){ many, g8, 8, 8 }, 8, 4096);
}

static void logp_rows(struct bench *b)
{
    if (!wanted(b, "logp fwd") && !wanted(b, "logp bwd")) return;
    struct tensor h = make_act(b, N, C), w = make_act(b, V, C), at = make_index(b, N, V),
                  logp = make(b, N, 1);
    struct tensor lse = make(b, N, 1), coef = make(b, N, 1), dh = make_act(b, N, C),
                  dw = make(b, V, C);
    struct tensor scratch = make(b, op_logp_scratch(N, C, V, b->dtype) / 4 + 1, 1);
    struct tensor kept = make(b, op_logp_kept(N, V, b->dtype) / 4 + 1, 1);
    BENCH(b, "logp fwd", 2.0 * N * C * V, 0,
          op_logp_fwd(&b->be, &logp, &lse, NULL, &h, &w, &at, &scratch));
    BENCH(b, "logp bwd", 6.0 * N * C * V, 0,
          op_logp_bwd(&b->be, &dh, &dw, &coef, &lse, NULL, &h, &w, &at, &scratch));
    BENCH(b, "logp fwd keeping", 2.0 * N * C * V, 0,
          op_logp_fwd(&b->be, &logp, &lse, &kept, &h, &w, &at, &scratch));
    BENCH(b, "logp bwd of kept", 4.0 * N * C * V, 0,
          op_logp_bwd(&b->be, &dh, &dw, &coef, &lse, &kept, &h, &w, &at, &scratch));
    struct tensor *all[] = { &h, &w, &at, &logp, &lse, &coef, &dh, &dw, &scratch, &kept };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
}

static void flat_rows(struct bench *b)
{
    const int64_t n = 50 << 20;
    const struct adamw opt = {
        .lr = 1e-6, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .step = 3, .grad_scale = 1
    };
    double sum;
    struct tensor w = make(b, n, 1), m = make(b, n, 1), v = make(b, n, 1), g = make(b, n, 1);
    check(op_fill(&b->be, &v, 0.1f));
    struct tensor copy = make_act(b, b->dtype == DT_BF16 ? n : 0, 1);
    const bool half = b->dtype == DT_BF16;
    struct tensor low = tensor_view(w.data, DT_I16, n, 1, 1, 1); /* any bits */
    if (half) check(op_fill(&b->be, &copy, 0.1f));
    BENCH(b, "adamw", 0, 28 * n,
          op_adamw(&b->be, half ? &copy : &w, &m, &v, &g, &opt, half ? &low : NULL));
    check(op_fill(&b->be, &w, 0.1f));
    BENCH(b, "cast", 0, (half ? 6 : 8) * n, op_cast(&b->be, half ? &copy : &m, &w));
    BENCH(b, "sumsq", 0, 4 * n, op_sumsq(&b->be, &sum, &g));
    double *of = malloc((size_t)div_up(n, 1024) * sizeof *of);
    if (!of) abort();
    BENCH(b, "sumsq_blocks", 0, 4 * n, op_sumsq_blocks(&b->be, of, &g, 1024));
    free(of);
    BENCH(b, "add", 0, 12 * n, op_add(&b->be, &m, &g));
    BENCH(b, "fill", 0, 4 * n, op_fill(&b->be, &m, 0));
    /* any bytes are codes */
    const struct tensor q = tensor_view(g.data, DT_U8, n / 2, 1, 1, 1),
                        absmax = tensor_rows(&w, 0, n / 64);
    BENCH(b, "nf4", 0, (half ? 2 : 4) * n + n / 2 + n / 16,
          op_nf4(&b->be, half ? &copy : &v, &q, &absmax));
    const struct dropout some = { .p = 0.1, .key = 1 };
    const struct tensor x = tensor_view(w.data, b->dtype, 8192, 4096, 1, 1);
    struct tensor y = tensor_view(m.data, b->dtype, 8192, 4096, 1, 1);
    BENCH(b, "dropout", 0, 2 * dtype_size(b->dtype) * 8192 * 4096,
          op_dropout(&b->be, &y, &x, &some, false));
    check(op_fill(&b->be, &v, 0.1f));
    if (half) {
        struct tensor hm = tensor_view(m.data, DT_BF16, n, 1, 1, 1),
                      hv = tensor_view(v.data, DT_BF16, n, 1, 1, 1);
        check(op_fill(&b->be, &copy, 0.1f));
        check(op_fill(&b->be, &hm, 0));
        check(op_fill(&b->be, &hv, 0.1f));
        BENCH(b, "adamw, bfloat16 state", 0, 16 * n,
              op_adamw(&b->be, &copy, &hm, &hv, &g, &opt, NULL));
    }
    struct tensor *all[] = { &w, &m, &v, &g, &copy };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
}

static void step_rows(struct bench *b)
{
    static const char *const names[2] = { "step of 4 layers", "step of 4 layers, logits kept" };
    for (int keep = 0; keep < 2; keep++) {
        struct bench_step r;
        if (!wanted(b, names[keep])) continue;
        check(bench_step(&r, &b->be, b->dtype, keep));
        report(b, wanted(b, names[keep]), r.seconds, r.flops, 0);
    }
}

int main(int argc, char **argv)
{
    struct bench b = { .filter = argc > 1 && argv[1][0] ? argv[1] : NULL };
    const char *digits = argc > 2 ? argv[2] : "0";
    int32_t threads = 0;
    for (; *digits >= '0' && *digits <= '9' && threads < 10000; digits++)
        threads = threads * 10 + (*digits - '0');
    if (wanted(&b, "tokenize"))
        bench_tokenizer(argc > 3 ? argv[3] : NULL, argc > 4 ? argv[4] : NULL, threads);
    if (b.filter && !strcmp(b.filter, "tokenize"))
        return 0; /* the machine's peaks say nothing of it */
    const char *backend = getenv("BENCH_BACKEND");
    const bool cuda = backend && strcmp(backend, "cuda") == 0;
    check(cuda ? cuda_open(&b.be, threads) : cpu_open(&b.be, threads));
    check(b.be.mem->alloc(b.be.cx, &b.mark, 64));
    b.repeat = cuda ? 20 : 1;
    if (cuda)
        device_peaks(&b);
    else
        measure_peaks(&b);
    for (int half = 0; half < 2; half++) {
        b.dtype = half ? DT_BF16 : DT_F32;
        gemm_rows(&b);
        bias_rows(&b);
        logp_rows(&b);
        attention_rows(&b);
        row_rows(&b);
        flat_rows(&b);
        step_rows(&b);
    }
    b.be.mem->release(b.be.cx, b.mark);
    backend_close(&b.be);
    return 0;
}
