/* SPDX-License-Identifier: MIT
 * Whole models on the emulated device: the CPU's numbers, the same bits in any order of the threads, memory as planned. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/io/file.h"
#include "cuda_emu/emu.h"
#include "model_fixture.h"

#define OK(expr) assert_int_equal((expr), 0)
enum { S = 2 * FIX_PAIRS };
static char dir[64];
static const double coef[S] = { 0.3, -0.2, 0.7, 0.1, -1.1, 0.4, 0.05, -0.6 };

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_cuda_model-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

/* Log-probabilities of a batch, and the gradient, which the caller frees (NULL: not trained). */
static float *run(struct fix *f, const struct fix_batch *fb, double *logp)
{
    struct tensor g = f->m.grads;
    const int64_t n = f->m.n_trained;
    float *out = NULL;
    OK(model_forward(&f->m, &fb->b));
    OK(model_logp(&f->m, &fb->b, logp, g.data != NULL));
    if (!g.data) return NULL;
    OK(op_fill(&f->be, &g, 0));
    OK(model_backward(&f->m, &fb->b, coef, NULL, NULL));
    OK(MEM_NEW(&out, n));
    OK(f->be.mem->to_host(f->be.cx, out, g.data, n * 4));
    return out;
}

static void open_on(struct fix *f, fix_backend *open, int shape, enum dtype dtype, bool train,
                    int recompute, bool keep)
{
    const struct model_size size = { 64, 64, 64, train, recompute, keep };
    fix_open_on(f, open, dir, shape, dtype, &size);
}

/* Runs the batch on both, and closes them. */
static void compare(struct fix *cpu, struct fix *cuda, int shape, enum dtype dtype,
                    const struct fix_batch *fb)
{
    double a[S], b[S], top = 0, off = 0;
    float *ga = run(cpu, fb, a), *gb = run(cuda, fb, b);
    const double limit = dtype == DT_F32 ? 2e-6 : 0.02;
    for (int s = 0; s < S; s++)
        if (!(fabs(a[s] - b[s]) <= limit * fmax(fabs(a[s]), 1) * 10))
            fail_msg("shape %d, dtype %d: logp[%d] %.9g, the CPU's is %.9g", shape, (int)dtype, s,
                     b[s], a[s]);
    for (int64_t i = 0; i < cpu->m.n_trained; i++) {
        top = fmax(top, fabs((double)ga[i]));
        off = fmax(off, fabs((double)ga[i] - (double)gb[i]));
        assert_true(isfinite(gb[i]));
    }
    if (!(off <= 10 * limit * top))
        fail_msg("shape %d, dtype %d: a gradient is off by %.3g of %.3g", shape, (int)dtype, off,
                 top);
    free(ga);
    free(gb);
    fix_close(cpu);
    fix_close(cuda);
}

static void test_cuda_model__is_the_cpus(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    emu_seed(7);
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int shape = 0; shape < FIX_SHAPES; shape++)
        for (int k = 0; k < 2; k++) {
            const enum dtype dtype = k ? DT_BF16 : DT_F32;
            struct fix cpu, cuda;
            open_on(&cpu, cpu_open, shape, dtype, true, shape % 2, shape % 3 == 0);
            open_on(&cuda, cuda_open, shape, dtype, true, shape % 2, shape % 3 == 0);
            compare(&cpu, &cuda, shape, dtype, &fb);
        }
}

/* Adapters, on a base as it is and on one in 4 bits, with scales in 8 bits too, with dropout on all. */
static void test_cuda_model__adapters_are_the_cpus(void **state)
{
    static const struct lora lora = { 4, 6, false, LORA_ALL, 0.25 };
    const struct model_size size = { 64, 64, 64, true, 1, false };
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    emu_seed(7);
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 6; k++) {
        const enum dtype dtype = k % 2 ? DT_BF16 : DT_F32;
        struct fix cpu, cuda;
        fix_open_nf4(&cpu, cpu_open, dir, dtype, &lora, k / 2, &size);
        fix_open_nf4(&cuda, cuda_open, dir, dtype, &lora, k / 2, &size);
        cpu.m.drop = cuda.m.drop = (struct dropout){ .p = 0.25, .key = 3 };
        compare(&cpu, &cuda, FIX_WIDE, dtype, &fb);
    }
}

/* Twice in one process and in another order of the threads; a smaller batch between leaves nothing behind. */
static void test_cuda_model__two_runs_are_bit_equal(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb, other;
    (void)state;
    fix_pairs_draw(&p, 8);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    fix_batch_pairs(&other, &p, 2, 1);
    for (int k = 0; k < 2; k++) {
        struct fix f;
        double first[S], again[S];
        open_on(&f, cuda_open, FIX_QWEN2_TIED, k ? DT_BF16 : DT_F32, true, 0, k);
        emu_seed(0);
        float *g = run(&f, &fb, first);
        free(run(&f, &other, again));
        emu_seed(99);
        float *h = run(&f, &fb, again);
        assert_memory_equal(first, again, sizeof first);
        assert_memory_equal(g, h, (size_t)f.m.n_flat * sizeof *g);
        free(g);
        free(h);
        fix_close(&f);
    }
}

/* What a micro-batch queues, by layers: kernels and products, and what of it the head, the embedding and the norm at the end are. */
struct queued {
    int shape;
    enum dtype dtype;
    int64_t kernels, layer_kernels, products, layer_products;
};

/* From the second on (the first makes the lists of work), whatever is in them: the host waits for the log-probabilities alone, and queues as many
 * kernels as it did. A number here that grows is time on a small model (docs/DESIGN.md, section 12). */
static void test_cuda_model__a_micro_batch_waits_once(void **state)
{
    static const struct queued rows[] = {
        { FIX_QWEN2_TIED, DT_BF16, 16, 21, 4, 12 },
        { FIX_QWEN2_TIED, DT_F32, 15, 19, 4, 12 },
        { FIX_QWEN3, DT_BF16, 16, 28, 4, 12 },
    };
    static const int pairs[][2] = { { 0, FIX_PAIRS }, { 2, 1 }, { 0, 3 }, { 1, 3 }, { 3, 1 } };
    struct fix_pairs p;
    (void)state;
    fix_pairs_draw(&p, 8);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct fix f;
        open_on(&f, cuda_open, rows[i].shape, rows[i].dtype, true, 0, false);
        OK(f.be.mem->reserve(f.be.cx, &f.sizes));
        for (size_t k = 0; k < COUNT_OF(pairs); k++) {
            struct emu_counts before, after;
            struct fix_batch fb;
            double logp[S];
            const int64_t L = f.m.arch.L;
            fix_batch_pairs(&fb, &p, pairs[k][0], pairs[k][1]);
            emu_counts_now(&before);
            OK(model_forward(&f.m, &fb.b));
            OK(model_logp(&f.m, &fb.b, logp, true));
            OK(model_backward(&f.m, &fb.b, coef, NULL, NULL));
            emu_counts_now(&after);
            if (k == 0) continue;
            assert_int_equal(after.waits - before.waits, 1);
            assert_int_equal(after.kernels - before.kernels,
                             rows[i].kernels + L * rows[i].layer_kernels);
            assert_int_equal(after.library - before.library,
                             rows[i].products + L * rows[i].layer_products);
        }
        fix_close(&f);
    }
}

/* What is reserved is enough from the second step on (the first uploads its lists of work), and is what was planned. */
static void test_cuda_model__memory_is_the_plans(void **state)
{
    struct fix_pairs p;
    struct fix_batch fb;
    (void)state;
    fix_pairs_draw(&p, 6);
    fix_batch_pairs(&fb, &p, 0, FIX_PAIRS);
    for (int k = 0; k < 4; k++) {
        struct fix f;
        double logp[S];
        int64_t limit, used;
        open_on(&f, cuda_open, FIX_QWEN3, k % 2 ? DT_BF16 : DT_F32, k < 2, 1, k == 1);
        const int64_t planned = plan_total(&f.plan) + f.be.mem->scratch(f.be.cx, &f.sizes);
        OK(f.be.mem->reserve(f.be.cx, &f.sizes));
        free(run(&f, &fb, logp));
        const int64_t made = f.be.mem->allocations(f.be.cx);
        free(run(&f, &fb, logp));
        assert_int_equal(f.be.mem->allocations(f.be.cx), made);
        OK(f.be.mem->memory(f.be.cx, &limit, &used));
        if (used < planned || (double)used > 1.05 * (double)planned)
            fail_msg("%lld bytes are used, planned %lld", (long long)used, (long long)planned);
        assert_true(limit > used);
        fix_close(&f);
    }
}

/* The reasons that there is no CUDA, and memory that is not there, are told in a line. */
static void test_cuda_model__says_why(void **state)
{
    struct backend be;
    void *p;
    (void)state;
    emu_devices(-1);
    assert_int_equal(cuda_open(&be, 1), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "driver is not installed"));
    emu_devices(0);
    assert_int_equal(cuda_open(&be, 1), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "no CUDA-capable device"));
    emu_devices(1);
    OK(cuda_open(&be, 1));
    assert_non_null(strstr(be.about, "emulated device"));
    emu_memory((size_t)100 << 20);
    assert_int_equal(be.mem->alloc(be.cx, &p, (int64_t)200 << 20), ERR_OOM);
    assert_non_null(strstr(err_msg(), "200 MiB on the device, of whose 100 MiB"));
    emu_memory((size_t)64 << 30);
    backend_close(&be);
}

/* Bytes there and back in pieces and from odd places; a source may change as soon as the call is done. */
static void test_cuda_model__copies(void **state)
{
    enum { N = (5 << 20) + 13 };
    struct backend be;
    unsigned char *a, *b;
    void *p, *q;
    (void)state;
    OK(cuda_open(&be, 1));
    OK(MEM_NEW(&a, N));
    OK(MEM_NEW(&b, N));
    OK(be.mem->alloc(be.cx, &p, N));
    OK(be.mem->alloc(be.cx, &q, N));
    OK(be.mem->to_host(be.cx, b, p, N));
    assert_memory_equal(a, b, N); /* zeros */
    for (int64_t i = 0; i < N; i++)
        a[i] = (unsigned char)(i * 7 + i / 251);
    OK(be.mem->to_device(be.cx, p, a, N));
    memset(a, 0, N);
    OK(be.mem->copy(be.cx, (char *)q + 1, p, N - 1));
    OK(be.mem->to_host(be.cx, b, (char *)q + 1, N - 1));
    for (int64_t i = 0; i < N - 1; i++)
        if (b[i] != (unsigned char)(i * 7 + i / 251)) fail_msg("byte %lld", (long long)i);
    be.mem->release(be.cx, p);
    be.mem->release(be.cx, q);
    free(a);
    free(b);
    backend_close(&be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_model__is_the_cpus),
        cmocka_unit_test(test_cuda_model__adapters_are_the_cpus),
        cmocka_unit_test(test_cuda_model__two_runs_are_bit_equal),
        cmocka_unit_test(test_cuda_model__a_micro_batch_waits_once),
        cmocka_unit_test(test_cuda_model__memory_is_the_plans),
        cmocka_unit_test(test_cuda_model__says_why),
        cmocka_unit_test(test_cuda_model__copies),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
