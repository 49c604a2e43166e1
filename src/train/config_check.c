/* SPDX-License-Identifier: MIT */
#include "options.h"
#include "../ops/ops.h"
#include "../data/template.h"
#include <stdio.h>
#include <string.h>

static const struct option *row(const char *path)
{
    const struct option *o = option_find(path);
    BUG_IF(!o);
    return o;
}

static bool is_bad(const struct loader *ld, const char *path)
{
    return ld->state[row(path) - option_table] == STATE_BAD;
}

static bool is_given(const struct loader *ld, const char *path)
{
    return ld->state[row(path) - option_table] == STATE_GIVEN;
}

/* Options that must be given. */
static void check_absent(struct loader *ld)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (ld->state[i] != STATE_ABSENT) continue;
        if (o->flags & OPTION_NEEDED) config_report_option(ld, o, "must be given");
    }
}

static void check_data(struct loader *ld)
{
    struct config *c = ld->c;
    const struct option *train = row("data.train");
    if (!is_bad(ld, train->path) && !is_bad(ld, "sft.train") && !is_bad(ld, "preference.train") &&
        c->data.train.n == 0 && option_used(c, train))
        config_report_option(ld, train, "must be given: a path or a list of paths");
    if (!is_bad(ld, "data.max_length") && !is_bad(ld, "data.max_prompt_length") &&
        c->data.max_prompt_length >= c->data.max_length) {
        const bool prompt = is_given(ld, "data.max_prompt_length");
        config_report_option(ld, row(prompt ? "data.max_prompt_length" : "data.max_length"),
                             "max_prompt_length %lld must be below max_length %lld",
                             (long long)c->data.max_prompt_length, (long long)c->data.max_length);
    }
    if (c->data.max_prompt_length == 0) c->data.max_prompt_length = c->data.max_length / 2;
    if (c->data.max_bad_rows > 0 && c->data.on_bad_row == BAD_ROW_ERROR &&
        !is_bad(ld, "data.on_bad_row"))
        config_report_option(ld, row("data.max_bad_rows"),
                             "not used with \"on_bad_row\": \"error\"; set \"skip\"");
    if (c->eval.every > 0 && c->data.eval.n == 0 && !is_bad(ld, "data.eval"))
        config_report_option(ld, row("eval.every"), "needs data.eval, the pairs to evaluate on");
}

/* Pieces written down in place of a template's name. */
static int check_template(struct loader *ld)
{
    static const char key[] = "data.chat_template.";
    const char *json = ld->c->data.chat_template;
    if (is_bad(ld, "data.chat_template") || !json || *json != '{') return 0;
    const int rc = template_pieces_check(json);
    if (rc == 0)
        return config_place(ld,
                            strstr(json, "\"end\":") ? "/data/chat_template/end"
                                                     : "/data/chat_template/assistant",
                            &ld->c->data.template_at);
    if (rc != ERR_INPUT || strncmp(err_msg(), key, strlen(key)) != 0) return rc;
    const char *name = err_msg() + strlen(key);
    char pointer[LABEL_SIZE];
    snprintf(pointer, sizeof pointer, "/data/chat_template/%.*s", (int)strcspn(name, ":"), name);
    config_report(ld, pointer, "%s", err_msg());
    return 0;
}

static void check_memory_savers(struct loader *ld)
{
    const struct config *c = ld->c;
    if (c->optimizer.master == MASTER_NONE && c->model.dtype == DTYPE_FLOAT32 &&
        !is_bad(ld, "optimizer.master"))
        config_report_option(ld, row("optimizer.master"),
                             "not used with \"dtype\": \"float32\", whose weights are the master");
    if (c->model.quantization != QUANTIZATION_NONE && !c->model.lora.present &&
        !is_bad(ld, "model.quantization"))
        config_report_option(
            ld, row("model.quantization"),
            "a base in 4 bits is not trained itself; add \"lora\": {} to \"model\", "
            "or set \"none\"");
}

static void check_stages(struct loader *ld)
{
    const struct config *c = ld->c;
    if (c->backend == BACKEND_CUDA && !cuda_built && !is_bad(ld, "backend"))
        config_report_option(ld, row("backend"),
                             "this build has no CUDA (make CUDA=1 makes one that has); set "
                             "\"auto\" or \"cpu\"");
    if (!c->sft.present && !c->preference.present)
        config_report(ld, "", "neither \"sft\" nor \"preference\" is there: nothing to train");
    if (c->preference.present && ld->loss && !(ld->loss->flags & LOSS_REF) && c->reference.path)
        config_report_option(ld, row("reference.path"),
                             "not used by the loss \"%s\", which has no reference", ld->loss->name);
    if (c->output && c->model.path && strcmp(c->output, c->model.path) == 0)
        config_report_option(ld, row("output"),
                             "is model.path: the run would write over its model");
}

/* Without a master a weight of the usual 0.02 has neighbours 2^-13 away: below a rate of that / 16 fewer than one update in 16 moves it, and the
 * rounding is more noise than the updates are signal. */
static int warn_rate(struct loader *ld, const struct stage_config *s, const char *path)
{
    const double least = 0x1p-17;
    char rate[40], bound[40];
    if (ld->c->optimizer.master != MASTER_NONE || !s->present || s->learning_rate >= least)
        return 0;
    snprintf(bound, sizeof bound, "%.1e", least);
    return config_warn_option(ld, row(path),
                              "%s is below %s, where most updates of bfloat16 weights without a "
                              "master are lost or noise; raise it, or set optimizer.master "
                              "\"float32\"",
                              number_text(rate, s->learning_rate), bound);
}

/* Legal, but hardly meant. */
static int warn(struct loader *ld)
{
    const struct config *c = ld->c;
    char rate[40];
    TRY(warn_rate(ld, &c->sft, "sft.learning_rate"));
    TRY(warn_rate(ld, &c->preference, "preference.learning_rate"));
    if (!c->preference.present) return 0;
    if (strcmp(c->loss, "bdpo") == 0 && c->loss_opts.lambda == 0)
        TRY(config_warn_option(ld, row("preference.lambda"),
                               "0: the rejected response is then ignored"));
    /* ten times the paper's highest; small models of a trial bear it, large ones collapse */
    if (c->model.init == MODEL_PRETRAINED && c->preference.learning_rate > 5e-4)
        TRY(config_warn_option(
            ld, row("preference.learning_rate"),
            "%s is high for a preference loss on a pretrained model (5e-7 to 5e-5 are usual)",
            number_text(rate, c->preference.learning_rate)));
    return 0;
}

int config_check(struct loader *ld)
{
    check_absent(ld);
    check_data(ld);
    TRY(check_template(ld));
    check_stages(ld);
    check_memory_savers(ld);
    return ld->diag.count ? 0 : warn(ld);
}
