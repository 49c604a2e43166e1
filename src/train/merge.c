/* SPDX-License-Identifier: MIT */
#include "merge.h"
#include "../model/nf4.h"
#include "config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int64_t SHARD_BYTES = 5000000000;

/* *out: the directory of the adapter that `dir` stands for; owned by the caller. */
static int find_adapter(char **out, const char *dir)
{
    static const char *const of_run[] = { "model", "sft" };
    *out = NULL;
    if (arch_adapter(dir)) return mem_strdup(out, dir);
    for (size_t i = 0; i < COUNT_OF(of_run); i++) {
        TRY(path_join(out, dir, of_run[i]));
        if (arch_adapter(*out)) return 0;
        free(*out);
        *out = NULL;
    }
    return err_set(ERR_INPUT,
                   "merge: %s holds no adapter (adapter_config.json), nor do its model/ and sft/; "
                   "only runs with model.lora have one",
                   dir);
}

struct merger {
    struct arch arch;
    struct backend be;
    bool be_open;
    struct plan plan;
    struct model model;
};

static int merge_into(struct merger *m, const char *adapter, const char *base, const char *out,
                      int32_t quantization, int32_t threads)
{
    const enum st_dtype dtype = model_dir_dtype(base, &m->arch);
    TRY(cpu_open(&m->be, threads));
    m->be_open = true;
    TRY(model_init(&m->model, &m->be, &m->arch, DT_F32));
    TRY(model_plan_weights(&m->model, &m->plan, false));
    TRY(plan_grant(&m->plan, &m->be));
    TRY(model_ready(&m->model));
    TRY(model_load(&m->model, adapter));
    if (quantization != QUANTIZATION_NONE) {
        TRY(arch_check_nf4(&m->arch));
        TRY(nf4_round_weights(&m->model, quantization == QUANTIZATION_NF4_DOUBLE));
    }
    TRY(lora_merge(&m->model));
    TRY(model_round(&m->model, dtype));
    TRY(model_save(&m->model, out, base, dtype, SHARD_BYTES));
    fprintf(stderr, "merged %s into %s: wrote %s (%s)\n", adapter, base, out, st_dtype_name(dtype));
    return 0;
}

int merge_run(const char *dir, const char *out, int32_t quantization, int32_t threads)
{
    struct merger m = { 0 };
    char *adapter = NULL, *base = NULL;
    int rc;
    if (dir_exists(out) || file_exists(out))
        return err_set(ERR_INPUT, "--out: %s is there already; name a new directory", out);
    TRY_OUT(find_adapter(&adapter, dir));
    TRY_OUT(arch_adapter_base(&base, adapter));
    TRY_OUT(arch_load(&m.arch, adapter));
    TRY_OUT(merge_into(&m, adapter, base, out, quantization, threads));
out:
    plan_release(&m.plan, &m.be);
    model_release(&m.model);
    if (m.be_open) backend_close(&m.be);
    free(adapter);
    free(base);
    return rc;
}
