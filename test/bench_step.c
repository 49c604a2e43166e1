/* SPDX-License-Identifier: MIT */
#include "bench_step.h"
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include "../src/base/rng.h"
#include "../src/train/optim.h"
#include "../src/train/work.h"

enum { PAIRS = 2, PROMPT = 168, CHOSEN = 302, REJECTED = 277, TOKENS = PROMPT + CHOSEN + REJECTED };

static const struct arch ARCH = { .model_type = "qwen2",
                                  .C = 896,
                                  .F = 4864,
                                  .H = 14,
                                  .K = 2,
                                  .D = 64,
                                  .V = 151936,
                                  .L = 4,
                                  .qkv_bias = true,
                                  .tied = true,
                                  .rms_eps = 1e-6,
                                  .init_range = 0.02,
                                  .max_positions = 32768,
                                  .rope_theta = 1e6 };

struct job {
    const struct backend *be;
    struct model model;
    struct plan plan;
    struct tensor m, v;
    struct batch batch;
    struct example ex[PAIRS];
    int32_t ids[PAIRS * TOKENS];
    struct adamw opt;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void draw_pairs(struct job *j)
{
    const uint64_t stream = rng_stream_of(RNG_TEST, 77);
    const struct dataset d = { .ids = j->ids, .ex = j->ex, .n = PAIRS, .n_ids = PAIRS * TOKENS };
    const int64_t idx[PAIRS] = { 0, 1 };
    for (int64_t i = 0; i < PAIRS * TOKENS; i++)
        j->ids[i] = (int32_t)(rng_u64(1, stream, (uint64_t)i) % (uint64_t)ARCH.V);
    for (int p = 0; p < PAIRS; p++)
        j->ex[p] = (struct example){ p * TOKENS, PROMPT, CHOSEN, REJECTED, 0, p + 1 };
    batch_fill(&j->batch, &d, idx, PAIRS);
}

static int open_job(struct job *j, const struct backend *be, enum dtype dtype, bool keep)
{
    const int64_t T = PAIRS * (TOKENS - 2), N = PAIRS * (CHOSEN + REJECTED);
    const struct model_size size = {
        .T = T, .N = N, .positions = TOKENS, .train = true, .keep_logits = keep
    };
    const struct op_sizes sizes = { T,      ARCH.C,     ARCH.F, ARCH.H, ARCH.K, ARCH.D,
                                    ARCH.V, TOKENS - 2, 0,      dtype,  true };
    j->be = be;
    j->opt = (struct adamw){ .lr = 1e-6, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 };
    TRY(model_init(&j->model, be, &ARCH, dtype));
    TRY(model_plan_weights(&j->model, &j->plan, true));
    TRY(model_plan_buffers(&j->model, &j->plan, &size));
    TRY(plan_book(&j->plan, PLAN_MOMENTS, &j->m, DT_F32, j->model.n_flat, 1, 1, 1));
    TRY(plan_book(&j->plan, PLAN_MOMENTS, &j->v, DT_F32, j->model.n_flat, 1, 1, 1));
    TRY(plan_grant(&j->plan, be));
    TRY(be->mem->reserve(be->cx, &sizes));
    TRY(model_ready(&j->model));
    TRY(model_random(&j->model, 5));
    TRY(batch_init(&j->batch, T, N, PAIRS));
    draw_pairs(j);
    return 0;
}

static int step(struct job *j)
{
    static const double coef[2 * PAIRS] = { 0.1, -0.1, 0.1, -0.1 };
    struct model *m = &j->model;
    double logp[2 * PAIRS], sum;
    TRY(op_fill(j->be, &m->grads, 0));
    TRY(model_forward(m, &j->batch));
    TRY(model_logp(m, &j->batch, logp, true));
    TRY(model_backward(m, &j->batch, coef, NULL, NULL));
    TRY(op_sumsq(j->be, &sum, &m->grads));
    j->opt.grad_scale = fmin(1, 1 / (sqrt(sum) + 1e-6));
    j->opt.step++;
    return op_adamw(j->be, &m->weights, &j->m, &j->v, &m->grads, &j->opt,
                    m->low.data ? &m->low : NULL);
}

static int measure(struct bench_step *out, struct job *j)
{
    out->seconds = 1e30;
    out->flops = 0;
    for (int p = 0; p < PAIRS; p++)
        out->flops += 3 * work_forward(&ARCH, &j->ex[p]);
    TRY(step(j));
    for (int k = 0; k < 3; k++) {
        const double begin = now();
        TRY(step(j));
        const double s = now() - begin;
        out->seconds = MIN(out->seconds, s);
    }
    return 0;
}

int bench_step(struct bench_step *out, const struct backend *be, enum dtype dtype, bool keep)
{
    struct job *j;
    int rc;
    TRY(MEM_NEW(&j, 1));
    rc = open_job(j, be, dtype, keep);
    if (rc == 0) rc = measure(out, j);
    batch_release(&j->batch);
    plan_release(&j->plan, be);
    model_release(&j->model);
    free(j);
    return rc;
}
