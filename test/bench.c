/* SPDX-License-Identifier: MIT
 * bench [filter] [threads] [tokenizer's directory] [texts]: one row per op at the shapes of Qwen2.5-0.5B; time, rate, and the share
 * of what this machine reaches in the same process on fused multiply-adds in registers (GFLOP/s) or
 * on a copy in memory (GB/s). */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../src/base/rng.h"
#include "../src/cpu/cpu.h"
#include "bench_tokenizer.h"

enum {
    T = 1024,
    N = 512,
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
    double peak_flops, peak_bytes;
    uint64_t random;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct tensor make(struct bench *b, int64_t d0, int64_t d1)
{
    void *p;
    if (b->be.mem->alloc(b->be.cx, &p, d0 * d1 * 4) < 0) {
        fprintf(stderr, "%s\n", err_msg());
        exit(1);
    }
    float *x = p;
#pragma omp parallel for num_threads(b->be.threads)
    for (int64_t i = 0; i < d0 * d1; i++)
        x[i] = (float)rng_uniform(1, rng_stream_of(RNG_TEST, b->random), (uint64_t)i) * 2 - 1;
    b->random++;
    return tensor_view(p, DT_F32, d0, d1, 1, 1);
}

static struct tensor make_index(struct bench *b, int64_t n, int64_t limit)
{
    struct tensor t = make(b, n, 1);
    int32_t *p = t.data;
    t.dtype = DT_I32;
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)(i * 7919 % limit);
    return t;
}

static void drop(struct bench *b, struct tensor *t)
{
    b->be.mem->release(b->be.cx, t->data);
    t->data = NULL;
}

static bool wanted(const struct bench *b, const char *name)
{
    return !b->filter || strstr(name, b->filter);
}

static void check(int rc)
{
    if (rc == 0) return;
    fprintf(stderr, "%s\n", err_msg());
    exit(1);
}

/* The best of at least 3 runs and a third of a second. flops > 0: GFLOP/s, else bytes: GB/s. */
#define BENCH(b, name, flops, bytes, call)                            \
    do {                                                              \
        if (!wanted(b, name)) break;                                  \
        double best_ = 1e30, all_ = 0;                                \
        check(call);                                                  \
        for (int k_ = 0; k_ < 3 || (all_ < 0.3 && k_ < 1000); k_++) { \
            const double t_ = now();                                  \
            check(call);                                              \
            const double s_ = now() - t_;                             \
            all_ += s_;                                               \
            best_ = s_ < best_ ? s_ : best_;                          \
        }                                                             \
        report(b, name, best_, (double)(flops), (double)(bytes));     \
    } while (0)

static void report(const struct bench *b, const char *name, double s, double flops, double bytes)
{
    const bool math = flops > 0;
    const double rate = (math ? flops : bytes) / s, peak = math ? b->peak_flops : b->peak_bytes;
    printf("%-42s %10.3f ms %9.1f %s %5.1f %%\n", name, 1e3 * s, 1e-9 * rate,
           math ? "GFLOP/s" : "GB/s   ", 100 * rate / peak);
    fflush(stdout);
}

/* --- the machine's own limits
 * ------------------------------------------------------------------------------------------ */
enum { CHAINS = 12, STEPS = 2000000 };
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

static void measure_peaks(struct bench *b)
{
    const char *isa = b->be.cx->rows->name;
    const int lanes = strcmp(isa, "avx512") == 0 ? 16 : strcmp(isa, "avx2") == 0 ? 8 : 4;
    const int64_t bytes = 256 << 20;
    struct tensor x = make(b, bytes / 4, 1), y = make(b, bytes / 4, 1);
    volatile float sink = 0;
    for (int k = 0; k < 5; k++) {
        double t = now();
#pragma omp parallel num_threads(b->be.threads)
        {
            const float s = lanes == 16 ? fma_avx512() : lanes == 8 ? fma_avx2() : fma_base();
#pragma omp critical
            sink = sink + s;
        }
        b->peak_flops =
            fmax(b->peak_flops, 2.0 * lanes * CHAINS * STEPS * b->be.threads / (now() - t));
        t = now();
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
    printf("%d threads, rows_%s: %.1f GFLOP/s in registers, %.1f GB/s copied or updated in place\n",
           b->be.threads, isa, 1e-9 * b->peak_flops, 1e-9 * b->peak_bytes);
}

/* --- rows
 * ------------------------------------------------------------------------------------------------------------------
 */
static void gemm_row(struct bench *b, const char *name, int64_t M, int64_t n, int64_t k, bool ta,
                     bool tb, float beta)
{
    if (!wanted(b, name)) return;
    struct tensor x = make(b, ta ? k : M, ta ? M : k), w = make(b, tb ? n : k, tb ? k : n),
                  y = make(b, M, n);
    const bool vector = M <= 8; /* bound by the reading of w */
    BENCH(b, name, vector ? 0 : 2 * M * n * k, 4 * (M * n + M * k + n * k),
          op_gemm(&b->be, &y, &x, ta, &w, tb, NULL, 1, beta));
    drop(b, &x);
    drop(b, &w);
    drop(b, &y);
}

static void gemm_rows(struct bench *b)
{
    gemm_row(b, "gemm fwd qkv", T, QKV, C, false, true, 0);
    gemm_row(b, "gemm fwd o", T, C, C, false, true, 0);
    gemm_row(b, "gemm fwd gate_up", T, 2 * F, C, false, true, 0);
    gemm_row(b, "gemm fwd down", T, C, F, false, true, 0);
    gemm_row(b, "gemm dx gate_up", T, C, 2 * F, false, false, 0);
    gemm_row(b, "gemm dw gate_up", 2 * F, C, T, true, false, 1);
    gemm_row(b, "gemm dx down", T, F, C, false, false, 0);
    gemm_row(b, "gemm dw down", C, F, T, true, false, 1);
    gemm_row(b, "gemm decode, 1 row, gate_up", 1, 2 * F, C, false, true, 0);
    gemm_row(b, "gemm decode, 8 rows, gate_up", 8, 2 * F, C, false, true, 0);
    gemm_row(b, "gemm decode, 1 row, head", 1, V, C, false, true, 0);
    gemm_row(b, "gemm small 64 x 64 x 64", 64, 64, 64, false, true, 0);
    gemm_row(b, "gemm small 256 x 192 x 64", 256, 192, 64, false, true, 0);
}

static void row_rows(struct bench *b)
{
    struct tensor x = make(b, T, C), y = make(b, T, C), r = make(b, T, C), s = make(b, T, C),
                  w = make(b, C, 1);
    struct tensor rstd = make(b, T, 1), dw = make(b, C, 1),
                  scratch = make(b, op_rmsnorm_bwd_scratch(T, C) / 4, 1);
    BENCH(b, "rmsnorm fwd with residual", 0, 16 * T * C,
          op_rmsnorm_fwd(&b->be, &y, &rstd, &s, &x, &r, &w, 1e-6f));
    BENCH(b, "rmsnorm bwd", 0, 16 * T * C,
          op_rmsnorm_bwd(&b->be, &x, &dw, &y, &s, &w, &rstd, &scratch));
    struct tensor qkv = make(b, T, QKV), bias = make(b, QKV, 1), pos = make_index(b, T, T),
                  table = make(b, T, D);
    struct tensor q = tensor_cols(&qkv, 0, H * D),
                  table3 = tensor_view(table.data, DT_F32, T, 2, D / 2, 1);
    struct tensor out = make(b, T, H * D), wd = make(b, D, 1), rh = make(b, T, H);
    BENCH(b, "bias fwd", 0, 8 * T * QKV, op_bias_fwd(&b->be, &qkv, &bias));
    BENCH(b, "bias bwd", 0, 4 * T * QKV, op_bias_bwd(&b->be, &bias, &qkv));
    BENCH(b, "rope", 0, 8 * T * H * D, op_rope(&b->be, &q, D, &pos, &table3, false));
    BENCH(b, "headnorm fwd", 0, 8 * T * H * D, op_headnorm_fwd(&b->be, &out, &rh, &q, &wd, 1e-6f));
    BENCH(b, "headnorm bwd", 0, 12 * T * H * D,
          op_headnorm_bwd(&b->be, &out, &wd, &out, &q, &wd, &rh, &scratch));
    struct tensor gu = make(b, T, 2 * F), act = make(b, T, F);
    BENCH(b, "swiglu fwd", 0, 12 * T * F, op_swiglu_fwd(&b->be, &act, &gu));
    BENCH(b, "swiglu bwd", 0, 20 * T * F, op_swiglu_bwd(&b->be, &gu, &act, &gu));
    BENCH(b, "gather", 0, 8 * T * C, op_gather(&b->be, &y, &x, &pos));
    BENCH(b, "scatter_add", 0, 12 * T * C, op_scatter_add(&b->be, &y, &x, &pos));
    struct tensor *all[] = { &x,    &y,   &r,     &s,   &w,  &rstd, &dw, &scratch, &qkv,
                             &bias, &pos, &table, &out, &wd, &rh,   &gu, &act };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
}

static void attention_row(struct bench *b, const char *name, const struct segments *segs,
                          int64_t rows, int64_t keys)
{
    char text[96];
    double pairs = 0;
    struct tensor q = make(b, rows, H * D), k = make(b, keys, K * D), v = make(b, keys, K * D),
                  o = make(b, rows, H * D);
    struct tensor lse = make(b, rows, H), dq = make(b, rows, H * D), dk = make(b, keys, K * D),
                  dv = make(b, keys, K * D);
    for (int32_t i = 0; i < segs->n; i++) {
        const double n = segs->seg[i].len, p = segs->seg[i].prefix_len;
        pairs += n * p + n * (n + 1) / 2;
    }
    const bool decode = keys != rows;
    snprintf(text, sizeof text, "attention fwd %s", name);
    BENCH(b, text, decode ? 0 : 4 * pairs * H * D, 8 * keys * K * D,
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
    struct tensor h = make(b, N, C), w = make(b, V, C), at = make_index(b, N, V),
                  logp = make(b, N, 1);
    struct tensor lse = make(b, N, 1), coef = make(b, N, 1), dh = make(b, N, C), dw = make(b, V, C);
    struct tensor scratch = make(b, op_logp_scratch(N, C, V, DT_F32) / 4 + 1, 1);
    BENCH(b, "logp fwd", 2.0 * N * C * V, 0,
          op_logp_fwd(&b->be, &logp, &lse, &h, &w, &at, &scratch));
    BENCH(b, "logp bwd", 6.0 * N * C * V, 0,
          op_logp_bwd(&b->be, &dh, &dw, &coef, &lse, &h, &w, &at, &scratch));
    struct tensor *all[] = { &h, &w, &at, &logp, &lse, &coef, &dh, &dw, &scratch };
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
    BENCH(b, "adamw", 0, 28 * n, op_adamw(&b->be, &w, &m, &v, &g, &opt, NULL));
    BENCH(b, "sumsq", 0, 4 * n, op_sumsq(&b->be, &sum, &g));
    BENCH(b, "add", 0, 12 * n, op_add(&b->be, &m, &g));
    BENCH(b, "fill", 0, 4 * n, op_fill(&b->be, &m, 0));
    struct tensor *all[] = { &w, &m, &v, &g };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        drop(b, all[i]);
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
    check(cpu_open(&b.be, threads));
    measure_peaks(&b);
    gemm_rows(&b);
    logp_rows(&b);
    attention_rows(&b);
    row_rows(&b);
    flat_rows(&b);
    backend_close(&b.be);
    return 0;
}
