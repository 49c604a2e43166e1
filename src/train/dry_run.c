/* SPDX-License-Identifier: MIT */
#include "inputs.h"
#include "job.h"
#include "metrics.h"
#include "stage.h"
#include <stdio.h>

static int add_note(json_t *root, const char *section, const char *text)
{
    json_t *o = json_object_get(root, section);
    fprintf(stderr, "%s: %s\n", section, text);
    return o ? metrics_text(o, "note", text) : 0;
}

int job_dry_run(const struct config *c)
{
    struct setup su = { 0 };
    struct inputs in = { 0 };
    struct buf b = { 0 };
    json_t *root = NULL;
    char formula[512], text[800];
    int rc;
    TRY_OUT(setup_open(&su, c, NULL));
    TRY_OUT(setup_cache(&su, false));
    TRY_OUT(inputs_load(&in, &su, false));
    TRY_OUT(config_dump(c, &b));
    root = json_loads(b.data, 0, NULL);
    buf_clear(&b);
    if (!root) TRY_OUT(err_set(ERR_OOM, "out of memory for the resolved config"));
    if (c->sft.present) {
        snprintf(text, sizeof text,
                 "%lld steps over %lld rows; loss: -log pi(chosen) per response token of the batch",
                 (long long)stage_steps(&c->sft, in.data[STAGE_SFT].n),
                 (long long)in.data[STAGE_SFT].n);
        TRY_OUT(add_note(root, "sft", text));
    }
    if (c->preference.present) {
        snprintf(text, sizeof text, "%lld steps over %lld pairs; loss: %s",
                 (long long)stage_steps(&c->preference, in.data[STAGE_PREFERENCE].n),
                 (long long)in.data[STAGE_PREFERENCE].n,
                 loss_describe(formula, sizeof formula, loss_find(c->loss), &c->loss_opts));
        TRY_OUT(add_note(root, "preference", text));
    }
    TRY_OUT(json_dump(&b, root, 2));
    puts(b.data);
    if (fflush(stdout) != 0) TRY_OUT(err_set(ERR_IO, "cannot write to the standard output"));
out:
    json_decref(root);
    buf_release(&b);
    inputs_release(&in);
    setup_close(&su);
    return rc;
}
