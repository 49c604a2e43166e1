/* SPDX-License-Identifier: MIT */
#include "forecast.h"

/* Bytes, measured: an OpenMP thread's stack and control block; the pieces of model_save and of the run's files; the program itself. A
 * tokenizer takes two and a half times its file (Qwen2.5: 2.39, Llama 3: 2.57). Constants and no measurement of this process, so that
 * one config is always given the same sizes. */
enum { THREAD = 160 << 10, FILES = 1 << 20, SMALL_FILES = 1 << 19, PROGRAM = 1100 << 10 };

const char *forecast_name(int part)
{
    static const char *const names[] = { "kernels and libraries", "data set", "reference scores",
                                         "files", "program and tokenizer" };
    BUG_IF(part < 0 || part >= FORECAST_PARTS);
    return part < PLAN_CATS ? plan_cat_name((enum plan_cat)part) : names[part - PLAN_CATS];
}

int64_t forecast_total(const struct forecast *f)
{
    int64_t total = 0;
    for (int i = 0; i < FORECAST_PARTS; i++)
        total += f->part[i];
    return total;
}

int64_t forecast_device(const struct forecast *f)
{
    int64_t total = f->device;
    for (int i = 0; i < PLAN_CATS; i++)
        total += f->part[i];
    return total;
}

static int64_t dataset_bytes(const struct dataset *d)
{
    return d->n_ids * (int64_t)sizeof *d->ids + d->n * (int64_t)sizeof *d->ex;
}

struct forecast_base forecast_base(const struct dataset *const *sets, int n,
                                   int64_t tokenizer_bytes)
{
    struct forecast_base b = { 0 };
    for (int i = 0; i < n; i++)
        b.data += dataset_bytes(sets[i]);
    b.program = PROGRAM + 5 * tokenizer_bytes / 2;
    return b;
}

static int64_t batch_bytes(const struct batch_size *b)
{
    return 8 * b->T + 16 * b->N + b->P * (3 * (int64_t)sizeof(struct segment) + 68);
}

int forecast_stage(struct forecast *f, const struct setup *base_su, const struct run_stage *r,
                   const struct batch_size *b, const struct forecast_base *base)
{
    struct setup su = *base_su; /* borrows all but the architecture */
    const int64_t n = r->data->n, n_eval = r->eval ? r->eval->n : 0;
    struct stage st;
    su.arch = *r->arch;
    const int rc = stage_plan(&st, &su, r->kind, b, r->data, r->eval, r->train);
    for (int i = 0; i < PLAN_CATS; i++)
        f->part[i] = st.plan.bytes[i];
    f->part[PLAN_BATCH] += batch_bytes(b);
    const int64_t scratch = su.be.mem->scratch(su.be.cx, &st.sizes);
    f->part[FORECAST_LIBRARY] = scratch + THREAD * (int64_t)su.be.threads;
    f->device = su.be.about ? scratch : 0;
    f->part[FORECAST_DATA] = base->data;
    /* two doubles a row for reference and evaluation; a permutation, and an index while rows are scored */
    f->part[FORECAST_SCORES] = (16 + 8 + 8) * n + (16 + 16 + 8) * n_eval;
    /* weights come and go a megabyte at a time, and are hashed one a thread */
    f->part[FORECAST_FILES] = MAX(FILES, (int64_t)su.be.threads << 20) + SMALL_FILES;
    f->part[FORECAST_PROGRAM] = base->program;
    stage_release(&st);
    return rc;
}
