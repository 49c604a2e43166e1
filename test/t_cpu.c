/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../src/base/rng.h"
#include "../src/base/signals.h"
#include "isa.h"

#define OK(expr) assert_int_equal((expr), 0)

/* --- the inner loops by themselves
 * -------------------------------------------------------------------------------------- */
static const struct rows *each_isa(struct ctx *cx, int i)
{
    return test_isa(cx, isa_names[i]) ? cx->rows : NULL;
}

static void test_cpu__exp(void **state)
{
    (void)state;
    static const float in[] = { 0,      -0.0f,  -INFINITY, INFINITY, NAN,  88.7f,
                                88.73f, -87.3f, -87.4f,    -1e30f,   1e30f };
    struct backend be;
    OK(cpu_open(&be, 1));
    for (int k = 0; k < ISAS; k++) {
        const struct rows *r = each_isa(be.cx, k);
        float x[1001], y[1001];
        double worst = 0;
        if (!r) continue;
        for (int part = 0; part < 176; part++) {
            for (int i = 0; i < 1001; i++)
                x[i] = (float)(-87.3 + part + i * 0.000999);
            r->exp(y, x, 1001);
            for (int i = 0; i < 1001 && x[i] < 88.37f; i++) {
                const double want = exp((double)x[i]);
                worst = fmax(worst, fabs((double)y[i] - want) / want);
            }
        }
        print_message("rows_%s: exp is within %.2g relative\n", r->name, worst);
        assert_true(worst < 2e-7);
        r->exp(y, in, COUNT_OF(in));
        assert_true(y[0] == 1 && y[1] == 1 && y[2] == 0 && y[3] > 2.3e38f && isnan(y[4]) &&
                    y[5] > 2e38f);
        assert_true(y[6] == y[3] && y[7] > 0 && y[8] == 0 && y[9] == 0 && y[10] == y[3]);
    }
    backend_close(&be);
}

static void expect_split(const float *x, const uint16_t *upper, const int16_t *low, const float *y,
                         int n)
{
    for (int i = 0; i < n; i++) {
        uint16_t nearest;
        rows_base.narrow(&nearest, &x[i], 1);
        assert_int_equal(upper[i], nearest);
        const bool down = low[i] == 0x7fff && y[i] != x[i];
        if (isnan(x[i]))
            assert_true(isnan(y[i]));
        else if (down) /* a tie, by one unit */
            assert_true(nextafterf(y[i], x[i]) == x[i] && fabsf(y[i]) < fabsf(x[i]));
        else
            assert_memory_equal(&y[i], &x[i], sizeof x[i]);
    }
}

/* Each bfloat16 with lower halves about the ends and ties: split rounds as narrow does, and join gives all but ties back. */
static void test_cpu__split(void **state)
{
    enum { N = 8 };
    static const uint32_t half[N] = { 0, 1, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0x8002, 0xffff };
    struct backend be;
    (void)state;
    OK(cpu_open(&be, 1));
    for (int k = 0; k < ISAS; k++) {
        const struct rows *r = each_isa(be.cx, k);
        for (uint32_t u = 0; u < 65536 && r; u++) {
            float x[N], y[N];
            uint16_t upper[N];
            int16_t low[N];
            for (int i = 0; i < N; i++) {
                const uint32_t bits = u << 16 | half[i];
                memcpy(&x[i], &bits, sizeof bits);
            }
            r->split(upper, low, x, N);
            r->join(y, upper, low, N);
            expect_split(x, upper, low, y, N);
        }
    }
    backend_close(&be);
}

/* Every length up to a few vectors, so that each tail is met; every element counts once. */
static void test_cpu__row_tails(void **state)
{
    (void)state;
    struct backend be;
    OK(cpu_open(&be, 1));
    for (int k = 0; k < ISAS; k++) {
        const struct rows *r = each_isa(be.cx, k);
        float x[140], y[140], z[140];
        for (int64_t n = 0; n < 140 && r; n++) {
            double sum = 0, lse = 0, sq = 0;
            float top = -INFINITY;
            for (int64_t i = 0; i < n; i++) {
                x[i] = (float)rng_normal(3, rng_stream_of(RNG_TEST, (uint64_t)n), (uint64_t)i) - 4;
                sum += exp(2 * (double)x[i] - 1);
                lse += exp((double)x[i] - 1);
                sq += (double)x[i] * (double)x[i];
                top = fmaxf(top, x[i]);
            }
            assert_true(r->max(x, n) == top);
            assert_true(fabs((double)r->exp_sum(y, x, 2, 1, n) - sum) <= 1e-6 * sum);
            assert_true(fabs(r->lse_sum(NULL, x, 1, n) - lse) <= 1e-6 * lse);
            assert_true(fabs((double)r->dot(x, x, n) - sq) <= 1e-6 * sq);
            assert_true(fabs(r->sumsq(x, n) - sq) <= 1e-14 * sq);
            r->exp(z, x, n);
            for (int64_t i = 0; i < n; i++)
                assert_true(fabs(exp((double)x[i]) / (double)z[i] - 1) < 3e-7);
        }
    }
    backend_close(&be);
}

/* Two blocks of keys, the second cut by the diagonal at any place, against sums in double over what is seen. */
static void softmax_of(const struct rows *r, int64_t n, int64_t ahead)
{
    enum { COLS = 32, D = 3, LD = 48 };
    float s[2][40 * LD], raw[2][40 * LD], acc[D * LD], m[COLS], l[COLS];
    const int64_t seen[2] = { 40, ahead };
    for (int i = 0; i < COLS; i++)
        m[i] = -INFINITY, l[i] = 0;
    for (int i = 0; i < D * LD; i++)
        acc[i] = 1;
    for (int b = 0; b < 2; b++) {
        for (int i = 0; i < 40 * LD; i++)
            raw[b][i] = s[b][i] =
                (float)(30 *
                        rng_normal(3, rng_stream_of(RNG_TEST, (uint64_t)(n + b)), (uint64_t)i));
        r->softmax(s[b], acc, LD, m, l, 0.25f, seen[b], n, COLS, D);
        for (int i = 0; i < D * LD && b == 0;
             i++) { /* what was there before the first block is forgotten */
            assert_true(acc[i] == (i % LD < COLS ? 0 : 1));
            acc[i] = 1;
        }
    }
    for (int64_t i = 0; i < COLS; i++) {
        double top[2] = { -INFINITY, -INFINITY }, sum = 0;
        for (int b = 0; b < 2; b++)
            for (int64_t j = 0; j < n && j <= i + seen[b]; j++)
                top[b] = fmax(top[b], 0.25 * (double)raw[b][j * LD + i]);
        const double last = fmax(top[0], top[1]), then[2] = { top[0], last };
        for (int b = 0; b < 2; b++)
            for (int64_t j = 0; j < n; j++) {
                const double x = 0.25 * (double)raw[b][j * LD + i], p = (double)s[b][j * LD + i];
                const double want = j <= i + seen[b] ? exp(x - then[b]) : 0;
                assert_true(fabs(p - want) <= 4e-6 * want + 1e-37);
                if (j <= i + seen[b]) sum += exp(x - last);
            }
        assert_true(fabs((double)m[i] - last) <= 1e-6 * fabs(last));
        assert_true(fabs((double)l[i] - sum) <= 1e-5 * sum);
        for (int d = 0; d < D; d++)
            assert_true(fabs((double)acc[d * LD + i] - exp(then[0] - last)) <= 1e-5 &&
                        acc[d * LD + COLS] == 1);
    }
}

static void test_cpu__softmax(void **state)
{
    (void)state;
    struct backend be;
    OK(cpu_open(&be, 1));
    for (int k = 0; k < ISAS; k++) {
        const struct rows *r = each_isa(be.cx, k);
        for (int64_t n = 1; n <= 40 && r; n++)
            for (int64_t ahead = -40; ahead <= 40; ahead += 3)
                softmax_of(r, n, ahead);
    }
    backend_close(&be);
}

/* Every bfloat16 there and back; halfway cases go to the even neighbour, large ones to infinity. */
static void test_cpu__bfloat16(void **state)
{
    (void)state;
    static const struct {
        uint32_t in;
        uint16_t want;
    } round[] = {
        { 0x3f808000, 0x3f80 }, { 0x3f818000, 0x3f82 }, { 0x3f808001, 0x3f81 },
        { 0x3f807fff, 0x3f80 }, { 0x7f7f8000, 0x7f80 }, { 0xff7fffff, 0xff80 },
        { 0x00008000, 0x0000 }, { 0x00018000, 0x0002 }, { 0x80000001, 0x8000 },
        { 0x7f800001, 0x7fc0 }, { 0xff810000, 0xffc1 }, { 0x7fffffff, 0x7fff },
    };
    struct backend be;
    static uint16_t in[65536 + 3], out[65536 + 3];
    static float x[65536 + 3];
    OK(cpu_open(&be, 1));
    for (int k = 0; k < ISAS; k++) {
        const struct rows *r = each_isa(be.cx, k);
        if (!r) continue;
        for (int32_t i = 0; i < 65536 + 3; i++)
            in[i] = (uint16_t)i;
        r->widen(x, in, 65536 + 3);
        r->narrow(out, x, 65536 + 3);
        for (int32_t i = 0; i < 65536 + 3; i++) {
            uint32_t u;
            memcpy(&u, &x[i], sizeof u);
            assert_int_equal(u, (uint32_t)in[i] << 16);
            assert_int_equal(out[i], isnan(x[i]) ? in[i] | 0x40 : in[i]);
        }
        for (size_t i = 0; i < COUNT_OF(round); i++) {
            memcpy(x, &round[i].in, sizeof x[0]);
            r->narrow(out, x, 1);
            assert_int_equal(out[0], round[i].want);
        }
    }
    backend_close(&be);
}

static void test_cpu__pack_and_block(void **state)
{
    (void)state;
    enum { LD = 80 };
    struct backend be;
    static float a[LD * LD], b[LD * LD], t[LD * LD], c[LD * LD];
    OK(cpu_open(&be, 1));
    for (int64_t i = 0; i < LD * LD; i++) {
        a[i] = (float)rng_normal(1, 5, (uint64_t)i);
        b[i] = (float)rng_normal(2, 5, (uint64_t)i);
    }
    for (int k = 0; k < ISAS; k++) {
        const struct rows *r = each_isa(be.cx, k);
        for (int64_t M = 1; M < 70 && r; M += M < 30 ? 1 : 13)
            for (int64_t N = 1; N < 70; N += N < 36 ? 3 : 11) {
                const int64_t K = (M * N) % 23 + 1;
                r->floats->pack(t, LD, a, LD, false, true, M, K);
                for (int64_t i = 0; i < LD * K; i++)
                    assert_true(t[i] == (i % LD < M ? a[i % LD * LD + i / LD] : 0));
                for (int add = 0; add < 2; add++) {
                    memset(c, 0, sizeof c);
                    c[(M - 1) * LD + N - 1] = add ? 100 : NAN;
                    c[(M - 1) * LD + N] = 7;
                    r->block(c, LD, add ? t : a, add ? 1 : LD, add ? LD : 1, b, LD, M, N, K, add);
                    assert_true(c[(M - 1) * LD + N] == 7);
                    for (int64_t e = 0; e < M * N; e++) {
                        double want = add && e == M * N - 1 ? 100 : 0;
                        for (int64_t j = 0; j < K; j++)
                            want += (double)a[e / N * LD + j] * (double)b[j * LD + e % N];
                        assert_true(fabs((double)c[e / N * LD + e % N] - want) < 2e-5);
                    }
                }
            }
    }
    backend_close(&be);
}

/* Products of bfloat16 are exact in float: only the sums round. */
static void block_pairs_by(const char *isa)
{
    enum { LD = 80 };
    struct backend be;
    static uint16_t a[LD * LD], b[LD * LD];
    static float x[LD * LD], y[LD * LD], t[LD * LD], c[LD * LD];
    OK(cpu_open(&be, 1));
    if (!test_isa(be.cx, isa)) {
        print_message("skipped: this processor has no instruction for pairs of bfloat16\n");
        backend_close(&be);
        skip();
    }
    const struct rows *r = be.cx->rows;
    for (int64_t i = 0; i < LD * LD; i++) {
        x[i] = (float)rng_normal(1, 5, (uint64_t)i);
        y[i] = (float)rng_normal(2, 5, (uint64_t)i);
    }
    r->narrow(a, x, LD * LD);
    r->narrow(b, y, LD * LD);
    r->widen(x, a, LD * LD);
    r->widen(y, b, LD * LD);
    for (int64_t M = 1; M < 40; M++)
        for (int64_t n = 1; n <= 64; n += 3) {
            const int64_t K = n % 2 ? (M * n) % 37 * 2 + 2 : 32 + n % 4 * 16, N = round_up(n, 16);
            r->pairs->pack(t, 64, b, LD, true, true, n, K);
            c[(M - 1) * LD + N] = 7;
            r->block_pairs(c, LD, a, LD, t, 64, M, N, K);
            assert_true(c[(M - 1) * LD + N] == 7);
            for (int64_t e = 0; e < M * N; e++) {
                double want = 0;
                for (int64_t j = 0; j < K && e % N < n; j++)
                    want += (double)x[e / N * LD + j] * (double)y[e % N * LD + j];
                assert_true(fabs((double)c[e / N * LD + e % N] - want) < 2e-5);
            }
        }
    backend_close(&be);
}

static void test_cpu__block_pairs(void **state)
{
    (void)state;
    block_pairs_by("avx512_bf16");
}

static void test_cpu__block_tiles(void **state)
{
    (void)state;
    block_pairs_by("amx_bf16");
}

/* --- the rest of the contract
 * -------------------------------------------------------------------------------------------- */
/* A log-probability near -1000 and one near 0 keep their relative precision; a huge logit does not
 * overflow. */
static void test_cpu__logp_extremes(void **state)
{
    (void)state;
    struct backend be;
    float h[1] = { 1 }, w[3] = { 1000, -20, 0 }, logp[1], lse[1], dh[1], dw[3] = { 0 },
          one[1] = { 1 };
    int32_t at[1];
    _Alignas(64) char mem[256];
    struct tensor th = tensor_view(h, DT_F32, 1, 1, 1, 1), tw = tensor_view(w, DT_F32, 3, 1, 1, 1);
    struct tensor tp = tensor_view(logp, DT_F32, 1, 1, 1, 1),
                  tl = tensor_view(lse, DT_F32, 1, 1, 1, 1);
    struct tensor ta = tensor_view(at, DT_I32, 1, 1, 1, 1),
                  scratch = tensor_view(mem, DT_F32, 64, 1, 1, 1);
    struct tensor tdh = tensor_view(dh, DT_F32, 1, 1, 1, 1),
                  tdw = tensor_view(dw, DT_F32, 3, 1, 1, 1);
    struct tensor tc = tensor_view(one, DT_F32, 1, 1, 1, 1);
    OK(cpu_open(&be, 1));
    at[0] = 1;
    OK(op_logp_fwd(&be, &tp, &tl, NULL, &th, &tw, &ta, &scratch));
    assert_true(logp[0] == -1020 && lse[0] == 1000);
    OK(op_logp_bwd(&be, &tdh, &tdw, &tc, &tl, NULL, &th, &tw, &ta, &scratch));
    assert_true(dw[0] == -1 && dw[1] == 1 && dw[2] == 0 && dh[0] == -1020);
    w[0] = 0;
    w[2] = -20;
    at[0] = 0;
    OK(op_logp_fwd(&be, &tp, &tl, NULL, &th, &tw, &ta, &scratch));
    assert_true(fabs((double)logp[0] + 2 * exp(-20)) <
                1e-6 * exp(-20)); /* lse in double, not rounded to 0 */
    backend_close(&be);
}

static void test_cpu__nan_is_seen(void **state)
{
    (void)state;
    struct backend be;
    float x[40], y[40], lse[40];
    const struct segment seg = { 0, 5, 0, 0, 0 };
    const int32_t group[2] = { 0, 1 };
    const struct segments segs = { &seg, group, 1, 1 };
    struct tensor tx = tensor_view(x, DT_F32, 5, 8, 1, 1), ty = tensor_view(y, DT_F32, 5, 8, 1, 1);
    struct tensor tl = tensor_view(lse, DT_F32, 5, 1, 1, 1),
                  flat = tensor_view(x, DT_F32, 40, 1, 1, 1);
    double sum = 0;
    OK(cpu_open(&be, 2));
    for (int i = 0; i < 40; i++)
        x[i] = 0.1f * (float)i;
    x[2 * 8 + 3] = NAN;
    OK(op_attention_fwd(&be, &ty, &tl, &tx, &tx, &tx, &segs, 8, 1));
    for (int i = 0; i < 5; i++)
        assert_true(isnan(lse[i]) == (i >= 2)); /* causal: rows before it are clean */
    OK(op_sumsq(&be, &sum, &flat));
    assert_true(isnan(sum));
    backend_close(&be);
}

static void test_cpu__memory(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 0, 1, 63, 4096, (4 << 20) - 100, 4 << 20, (9 << 20) + 1 };
    struct backend be;
    OK(cpu_open(&be, 1));
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        void *p, *q;
        char *c;
        OK(be.mem->alloc(be.cx, &p, sizes[i]));
        OK(be.mem->alloc(be.cx, &q, sizes[i]));
        assert_true((uintptr_t)p % 64 == 0);
        c = p;
        for (int64_t k = 0; k < sizes[i]; k++)
            assert_true(c[k] == 0);
        for (int64_t k = 0; k < sizes[i]; k++)
            c[k] = (char)(k * 7);
        OK(be.mem->copy(be.cx, q, p, sizes[i]));
        OK(be.mem->to_host(be.cx, p, q, sizes[i]));
        OK(be.mem->to_device(be.cx, q, p, sizes[i]));
        assert_int_equal(memcmp(p, q, (size_t)sizes[i]), 0);
        be.mem->release(be.cx, p);
        be.mem->release(be.cx, q);
    }
    void *p = &be;
    assert_int_equal(be.mem->alloc(be.cx, &p, -1), ERR_OOM);
    assert_null(p);
    assert_int_equal(be.mem->alloc(be.cx, &p, INT64_MAX - 3), ERR_OOM);
    assert_int_equal(be.mem->alloc(be.cx, &p, INT64_MAX / 2), ERR_OOM);
    be.mem->release(be.cx, NULL);
    backend_close(&be);
    backend_close(&be);
}

static void test_cpu__open(void **state)
{
    (void)state;
    struct backend be;
    OK(cpu_open(&be, 0));
    assert_true(be.threads >= 1);
    assert_string_equal(be.name, "cpu");
    backend_close(&be);
    assert_int_equal(cpu_open(&be, -1), ERR_INPUT);
    assert_int_equal(cpu_open(&be, 100000), ERR_INPUT);
    if (cuda_open(&be, 0) == 0)
        backend_close(&be);
    else
        assert_non_null(strstr(err_msg(), "CUDA"));
}

static void test_cpu__views(void **state)
{
    (void)state;
    float x[60];
    const struct tensor t = tensor_view(x, DT_F32, 5, 12, 1, 1);
    const struct tensor rows_ = tensor_rows(&t, 2, 3), cols = tensor_cols(&t, 4, 8),
                        both = tensor_rows(&cols, 1, 2);
    const struct tensor t4 = tensor_view(x, DT_F32, 3, 2, 5, 2);
    assert_ptr_equal(rows_.data, x + 24);
    assert_int_equal(tensor_count(&rows_), 36);
    assert_true(tensor_contiguous(&rows_) && !tensor_contiguous(&cols));
    assert_ptr_equal(both.data, x + 12 + 4);
    assert_int_equal(both.ld, 12);
    assert_int_equal(tensor_count(&t4), 60);
    assert_int_equal(t4.ld, 20);
    const struct tensor none = tensor_rows(&t, 5, 0);
    assert_int_equal(tensor_count(&none), 0);
    int32_t index[3];
    struct backend be;
    struct tensor i = tensor_view(index, DT_I32, 3, 1, 1, 1);
    OK(cpu_open(&be, 1));
    OK(op_fill(&be, &i, -7));
    assert_true(index[0] == -7 && index[2] == -7);
    backend_close(&be);
}

/* A wrong call aborts with the condition's text; 0 where it came back. */
static bool aborts(void (*call)(const struct backend *be), const struct backend *be)
{
    int status = 0;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        call(be);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void call_packed(const struct backend *be)
{
    float x[1] = { 1 }, z[1];
    struct tensor a = tensor_view(x, DT_F32, 1, 1, 1, 1), y = tensor_view(z, DT_F32, 1, 1, 1, 1);
    op_gemm(be, &y, &a, false, &a, false, x, 1, 0);
}

static void call_shape(const struct backend *be)
{
    float x[6] = { 0 }, z[4];
    struct tensor a = tensor_view(x, DT_F32, 2, 3, 1, 1), y = tensor_view(z, DT_F32, 2, 2, 1, 1),
                  bias = tensor_view(x, DT_F32, 3, 1, 1, 1);
    op_gemm_bias(be, &y, &a, &a, &bias);
}

static void call_index(const struct backend *be)
{
    float x[2] = { 0 }, z[2];
    int32_t at[1] = { 2 };
    struct tensor tx = tensor_view(x, DT_F32, 2, 1, 1, 1), ty = tensor_view(z, DT_F32, 1, 1, 1, 1);
    struct tensor ti = tensor_view(at, DT_I32, 1, 1, 1, 1);
    op_gather(be, &ty, &tx, &ti);
}

static void call_strided(const struct backend *be)
{
    float x[12] = { 0 }, z[6];
    struct tensor tx = tensor_view(x, DT_F32, 3, 4, 1, 1), half = tensor_cols(&tx, 0, 2);
    struct tensor y = tensor_view(z, DT_F32, 3, 2, 1, 1);
    op_add(be, &y, &half);
}

static void test_cpu__wrong_calls_abort(void **state)
{
    (void)state;
    struct backend be;
    OK(cpu_open(&be, 1));
    assert_true(aborts(call_packed, &be));
    assert_true(aborts(call_shape, &be));
    assert_true(aborts(call_index, &be));
    assert_true(aborts(call_strided, &be));
    backend_close(&be);
}

static void *send_signals(void *unused)
{
    (void)unused;
    for (;;) {
        kill(getpid(), SIGUSR1);
        usleep(50);
    }
    return NULL;
}

/* In a process of its own: products while SIGUSR1 comes all the time; 0 where all are the first one's bits. */
static int products_under_signals(void)
{
    enum { M = 20, N = 16, K = 259, TIMES = 100000 };
    static float a[M * K], b[K * N], y[M * N], first[M * N];
    struct backend be;
    pthread_t thread;
    for (int i = 0; i < M * K; i++)
        a[i] = (float)(i * 37 % 101 - 50) / 50;
    for (int i = 0; i < K * N; i++)
        b[i] = (float)(i * 17 % 97 - 48) / 48;
    const struct tensor ta = tensor_view(a, DT_F32, M, K, 1, 1),
                        tb = tensor_view(b, DT_F32, K, N, 1, 1);
    struct tensor ty = tensor_view(y, DT_F32, M, N, 1, 1);
    signals_install();
    if (cpu_open(&be, 1) < 0 || pthread_create(&thread, NULL, send_signals, NULL) != 0) return 2;
    for (int i = 0; i < TIMES; i++) {
        if (op_gemm(&be, &ty, &ta, false, &tb, false, NULL, 1, 0) < 0) return 3;
        if (i == 0) memcpy(first, y, sizeof y);
        if (memcmp(first, y, sizeof y) != 0) return 1;
    }
    return signals_pending() == SIGUSR1 ? 0 : 4;
}

/* oneDNN's kernels keep data below the stack pointer, where a handler on their thread would write. */
static void test_cpu__signals(void **state)
{
    int status;
    (void)state;
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (int s = 1; s < NSIG; s++)
            signal(s, SIG_DFL); /* cmocka would go on with its other tests here */
        _exit(products_under_signals());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu__exp),           cmocka_unit_test(test_cpu__split),
        cmocka_unit_test(test_cpu__row_tails),     cmocka_unit_test(test_cpu__softmax),
        cmocka_unit_test(test_cpu__bfloat16),      cmocka_unit_test(test_cpu__pack_and_block),
        cmocka_unit_test(test_cpu__block_pairs),   cmocka_unit_test(test_cpu__block_tiles),
        cmocka_unit_test(test_cpu__logp_extremes), cmocka_unit_test(test_cpu__nan_is_seen),
        cmocka_unit_test(test_cpu__memory),        cmocka_unit_test(test_cpu__open),
        cmocka_unit_test(test_cpu__views),         cmocka_unit_test(test_cpu__wrong_calls_abort),
        cmocka_unit_test(test_cpu__signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
