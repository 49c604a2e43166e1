/* SPDX-License-Identifier: MIT */
#include "stage.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t stage_steps(const struct stage_config *c, int64_t n)
{
    const int64_t batch = MIN(c->batch_size, n);
    const double steps = ceil(c->epochs * (double)div_up(n, batch));
    int64_t total = steps < 0x1p62 ? (int64_t)steps : (int64_t)1 << 62;
    if (c->max_steps > 0) total = MIN(total, c->max_steps);
    return total;
}

int stage_load_start(struct model *m, const struct config *c, enum stage_kind kind)
{
    char *sft = NULL;
    if (kind == STAGE_PREFERENCE && c->sft.present) {
        TRY(path_join(&sft, c->output, "sft"));
        const int rc = model_load(m, sft);
        free(sft);
        return rc;
    }
    return c->model.init == MODEL_RANDOM ? model_random(m, c->seed) : model_load(m, c->model.path);
}

static int plan_kl(struct stage *st)
{
    const struct setup *su = st->su;
    struct arch ref = su->arch;
    const struct kl_opts o = { .samples = su->kl_samples,
                               .max_tokens = KL_TOKENS_MAX,
                               .seed = su->cfg->seed,
                               .eos = tokenizer_eos(su->tok),
                               .end = template_end(su->tmpl, true) };
    if (su->kl_reference) TRY(arch_load(&ref, su->kl_reference));
    return kl_plan(&st->kl, &st->plan, &st->model, &ref, st->eval, &o);
}

int stage_measure_kl(struct stage *st, struct metrics *m, struct buf *answers)
{
    struct kl_result r;
    if (!st->has_kl) return 0;
    if (!st->kl.loaded) {
        if (st->su->kl_reference)
            TRY(model_load(&st->kl.ref, st->su->kl_reference));
        else
            TRY(stage_load_start(&st->kl.ref, st->cfg, STAGE_PREFERENCE));
        st->kl.loaded = true;
    }
    TRY(kl_measure(&st->kl, &r, NULL));
    m->has_kl = true;
    m->kl = r.mean;
    m->kl_stderr = r.error;
    return answers ? kl_answers(&st->kl, st->su->tok, answers) : 0;
}

int stage_open(struct stage *st, struct setup *su, enum stage_kind kind, const struct dataset *data,
               const struct dataset *eval, bool train)
{
    const struct config *c = su->cfg;
    struct model_size size = { .train = train,
                               .recompute =
                                   train && c->memory.gradient_checkpointing == CHECKPOINTING_ON };
    int64_t P, eT = 0, eN = 0, eP = 0;
    memset(st, 0, sizeof *st);
    st->su = su;
    st->cfg = c;
    st->kind = kind;
    st->sc = kind == STAGE_SFT ? &c->sft : &c->preference;
    st->name = kind == STAGE_SFT ? "sft" : "preference";
    st->loss = kind == STAGE_SFT ? NULL : loss_find(c->loss);
    st->data = data;
    st->eval = eval;
    st->micro_tokens = su->micro_tokens;
    st->steps = stage_steps(st->sc, data->n);
    TRY(model_init(&st->model, &su->be, &su->arch, setup_dtype(c)));
    batch_bounds(data, st->micro_tokens, &size.T, &size.N, &P);
    size.positions = setup_positions(data);
    if (eval) {
        batch_bounds(eval, st->micro_tokens, &eT, &eN, &eP);
        size.positions = MAX(size.positions, setup_positions(eval));
    }
    size.T = MAX(size.T, eT);
    size.N = MAX(size.N, eN);
    P = MAX(P, eP);
    st->has_kl = su->kl_samples > 0 && eval && st->loss && (st->loss->flags & LOSS_REF);
    if (st->has_kl) {
        const int64_t longest = kl_longest(eval, &su->arch, KL_TOKENS_MAX);
        size.T = MAX(size.T, longest);
        size.N = MAX(size.N, longest);
        size.positions = MAX(size.positions, longest);
    }
    TRY(model_plan_weights(&st->model, &st->plan, train));
    TRY(model_plan_buffers(&st->model, &st->plan, &size));
    if (st->has_kl) TRY(plan_kl(st));
    if (train) TRY(optim_plan(&st->optim, &st->plan, &st->model, st->sc));
    TRY(plan_grant(&st->plan, &su->be));
    TRY(model_ready(&st->model));
    if (st->has_kl) TRY(kl_ready(&st->kl));
    TRY(batch_init(&st->batch, size.T, size.N, P));
    TRY(order_init(&st->order, data->n, st->sc->batch_size, st->sc->shuffle, c->seed));
    TRY(MEM_NEW(&st->logp, 2 * P));
    TRY(MEM_NEW(&st->coef, 2 * P));
    TRY(scores_init(&st->ref, data->n));
    return scores_init(&st->ref_eval, eval ? eval->n : 0);
}

void stage_release(struct stage *st)
{
    if (!st->su) return;
    free(st->logp);
    free(st->coef);
    free(st->ref_file);
    scores_release(&st->ref);
    scores_release(&st->ref_eval);
    order_release(&st->order);
    batch_release(&st->batch);
    plan_release(&st->plan, &st->su->be); /* first: it writes into the views that the model books */
    kl_release(&st->kl);
    model_release(&st->model);
    memset(st, 0, sizeof *st);
}
