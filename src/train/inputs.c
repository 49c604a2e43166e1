/* SPDX-License-Identifier: MIT */
#include "inputs.h"
#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool inputs_present(const struct config *c, enum stage_kind k)
{
    return k == STAGE_SFT ? c->sft.present : c->preference.present;
}

static bool all_there(const struct strlist *files)
{
    for (int32_t i = 0; i < files->n; i++)
        if (!file_exists(files->item[i])) return false;
    return true;
}

/* A batch of rows that could not be longer. */
static int assume_longest(struct dataset *d, const struct config *c, enum data_kind kind)
{
    const int32_t np = (int32_t)c->data.max_prompt_length;
    const int32_t nr = (int32_t)c->data.max_length - np;
    d->n = MAX(c->sft.present ? c->sft.batch_size : 1,
               c->preference.present ? c->preference.batch_size : 1);
    TRY(MEM_NEW(&d->ex, d->n));
    for (int64_t i = 0; i < d->n; i++)
        d->ex[i] = (struct example){ .np = np, .nw = nr, .nl = kind == DATA_PAIRS ? nr : 0 };
    return 0;
}

static int load_stage(struct inputs *in, const struct setup *su, enum stage_kind k, bool assume)
{
    const struct config *c = su->cfg;
    const struct strlist *own = k == STAGE_SFT ? &c->sft.train : &c->preference.train;
    const struct strlist *files = own->n ? own : &c->data.train;
    const enum data_kind kind = k == STAGE_SFT ? DATA_SFT : DATA_PAIRS;
    in->assumed[k] = assume && !all_there(files);
    TRY(in->assumed[k] ? assume_longest(&in->data[k], c, kind)
                       : setup_data(su, &in->data[k], files, kind));
    return in->has_eval ? setup_data(su, &in->eval[k], &c->data.eval, kind) : 0;
}

bool inputs_reads_reference(const struct config *c)
{
    const struct loss_def *loss = c->preference.present ? loss_find(c->loss) : NULL;
    return loss && (loss->flags & LOSS_REF);
}

bool inputs_foreign_reference(const struct config *c)
{
    return c->reference.path && inputs_reads_reference(c);
}

int inputs_load(struct inputs *in, const struct setup *su, bool assume)
{
    const struct config *c = su->cfg;
    memset(in, 0, sizeof *in);
    in->tokenizer_bytes = su->tok_bytes;
    in->has_eval = c->data.eval.n > 0 && (c->eval.every > 0 || c->eval.at_end);
    if (assume && !all_there(&c->data.eval)) in->has_eval = false;
    for (int k = STAGE_SFT; k <= STAGE_PREFERENCE; k++)
        if (inputs_present(c, (enum stage_kind)k))
            TRY(load_stage(in, su, (enum stage_kind)k, assume));
    if (inputs_foreign_reference(c)) {
        TRY(setup_arch(&in->reference, c, c->reference.path));
        in->stage[in->n_stages++] =
            (struct run_stage){ STAGE_PREFERENCE, &in->reference, &in->data[STAGE_PREFERENCE],
                                in->has_eval ? &in->eval[STAGE_PREFERENCE] : NULL, false };
    }
    for (int k = STAGE_SFT; k <= STAGE_PREFERENCE; k++)
        if (inputs_present(c, (enum stage_kind)k))
            in->stage[in->n_stages++] =
                (struct run_stage){ (enum stage_kind)k, &su->arch, &in->data[k],
                                    in->has_eval ? &in->eval[k] : NULL, true };
    machine_trim();
    return 0;
}

void inputs_release(struct inputs *in)
{
    for (int k = 0; k < 2; k++) {
        dataset_release(&in->data[k]);
        dataset_release(&in->eval[k]);
    }
    memset(in, 0, sizeof *in);
}

bool inputs_stored(const struct inputs *in)
{
    return in->data[0].stored || in->data[1].stored || in->eval[0].stored || in->eval[1].stored;
}

int inputs_run(struct sizing_run *run, const struct inputs *in, const struct backend *be)
{
    const struct dataset *const sets[] = { &in->data[0], &in->data[1], &in->eval[0], &in->eval[1] };
    *run = (struct sizing_run){ .stage = in->stage,
                                .n = in->n_stages,
                                .base = forecast_base(sets, COUNT_OF(sets), in->tokenizer_bytes) };
    return sizing_on(run, be);
}
