/* SPDX-License-Identifier: MIT */
#include "generate.h"
#include "config.h"
#include "sample.h"
#include "setup.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct generator {
    const struct generate_opts *o;
    struct arch arch;
    struct tokenizer *tok;
    struct chat_template *tmpl;
    struct backend be;
    bool be_open;
    struct sample_request *req;
    json_t **row; /* of each request; owned; the answer is added to it */
    int64_t n, cap, row_cap;
    struct plan plan;
    struct model model;
    struct decoder dec;
    struct sample_work *work;
    struct file_out file; /* opts.out */
};

static int add_request(struct generator *g, json_t *row, const char *file, int64_t line)
{
    const struct data_opts opts = { .string_prompts_user = g->o->prompts_user,
                                    .vocab_size = (int32_t)g->arch.V };
    if (MEM_GROW(&g->req, &g->cap, g->n + 1) < 0 || MEM_GROW(&g->row, &g->row_cap, g->n + 1) < 0) {
        json_decref(row);
        return ERR_OOM;
    }
    g->row[g->n] = row;
    struct sample_request *r = &g->req[g->n++];
    memset(r, 0, sizeof *r);
    r->max_tokens = g->o->max_tokens;
    TRY(data_encode_prompt(&r->prompt, &r->end, row, &opts, g->tok, g->tmpl, file, line));
    if (r->prompt.n + g->o->max_tokens > g->arch.max_positions)
        return err_at(ERR_INPUT, file, line, 0,
                      "prompt of %lld tokens and %lld new ones exceed the model's "
                      "max_position_embeddings, %lld; lower --max-tokens",
                      (long long)r->prompt.n, (long long)g->o->max_tokens,
                      (long long)g->arch.max_positions);
    return 0;
}

static int read_prompts(struct generator *g)
{
    struct line_reader *lines = NULL;
    char *line;
    size_t len;
    int rc;
    if (g->o->prompt) {
        json_t *row = json_pack("{s:s}", "prompt", g->o->prompt);
        if (!row) return err_set(ERR_INPUT, "--prompt: not valid UTF-8");
        return add_request(g, row, "--prompt", 0);
    }
    TRY(lines_open(&lines, g->o->prompts));
    while ((rc = lines_next(lines, &line, &len)) > 0) {
        struct json_doc d = { 0 };
        if (strspn(line, " \t") == len) continue;
        rc = json_doc_parse_any(&d, g->o->prompts, lines_number(lines), line, len);
        if (rc == 0) rc = add_request(g, json_incref(d.root), g->o->prompts, lines_number(lines));
        json_doc_release(&d);
        if (rc < 0) break;
    }
    lines_close(lines);
    if (rc == 0 && g->n == 0) rc = err_set(ERR_INPUT, "%s: has no prompts", g->o->prompts);
    return rc;
}

static int open_model(struct generator *g)
{
    int64_t longest = 1;
    for (int64_t i = 0; i < g->n; i++)
        longest = MAX(longest, g->req[i].prompt.n);
    TRY(backend_choose(&g->be, g->o->backend, g->o->threads));
    g->be_open = true;
    TRY(model_init(&g->model, &g->be, &g->arch, g->o->bf16 ? DT_BF16 : DT_F32));
    TRY(model_plan_weights(&g->model, &g->plan, false));
    TRY(decoder_plan(&g->dec, &g->model, &g->plan, MIN(g->o->batch, g->n),
                     longest + g->o->max_tokens, longest));
    TRY(plan_grant(&g->plan, &g->be));
    TRY(model_ready(&g->model));
    TRY(decoder_ready(&g->dec));
    TRY(MEM_NEW(&g->work, g->arch.V));
    return model_load(&g->model, g->o->model);
}

static int answer_all(struct generator *g)
{
    const struct sampler s = { .dec = &g->dec,
                               .top_k = g->o->top_k,
                               .temperature = g->o->temperature,
                               .top_p = g->o->top_p,
                               .seed = g->o->seed,
                               .kind = RNG_SAMPLE,
                               .eos = tokenizer_eos(g->tok),
                               .work = g->work };
    for (int64_t i = 0; i < g->n; i++)
        g->req[i].index = i;
    return sample_answers(&s, g->req, g->n);
}

static json_t *id_list(const struct ids *v)
{
    json_t *a = json_array();
    for (int64_t i = 0; a && i < v->n; i++)
        json_array_append_new(a, json_integer(v->id[i]));
    return a;
}

static int answer_row(const struct generator *g, int64_t i, struct buf *line)
{
    const struct sample_request *r = &g->req[i];
    json_t *row = g->row[i];
    struct buf text = { 0 };
    int rc = tokenizer_decode(g->tok, r->answer.id, r->answer.n, true, &text);
    if (rc == 0 && g->o->prompt && !g->o->out) {
        rc = buf_add(line, text.data ? text.data : "", text.len);
    } else if (rc == 0) {
        /* a row that is a bare string becomes an object with that prompt */
        json_t *o = json_is_object(row) ? json_incref(row) : json_pack("{s:O}", "prompt", row);
        if (!o ||
            json_object_set_new(o, "response",
                                json_stringn(text.data ? text.data : "", text.len)) ||
            json_object_set_new(o, "tokens", id_list(&r->answer)) ||
            json_object_set_new(o, "finish", json_string(r->stopped ? "stop" : "length")))
            rc = err_set(ERR_OOM, "out of memory for an answer");
        if (rc == 0) rc = json_dump(line, o, 0);
        json_decref(o);
    }
    if (rc == 0) rc = buf_adds(line, "\n");
    buf_release(&text);
    return rc;
}

static int write_answers(struct generator *g)
{
    struct buf all = { 0 };
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < g->n; i++)
        rc = answer_row(g, i, &all);
    if (rc == 0 && g->o->out) {
        rc = file_put(&g->file, all.data, all.len);
        if (rc == 0) rc = file_commit(&g->file);
    } else if (rc == 0 && (fwrite(all.data, 1, all.len, stdout) != all.len || fflush(stdout) != 0))
        rc = err_set(ERR_IO, "cannot write to the standard output");
    buf_release(&all);
    return rc;
}

/* An adapter need not bring a tokenizer: its base has one. */
static int text_dir(char **dir, const char *model)
{
    char *path = NULL;
    TRY(path_join(&path, model, "tokenizer.json"));
    const bool own = file_exists(path) || !arch_adapter(model);
    free(path);
    return own ? mem_strdup(dir, model) : arch_adapter_base(dir, model);
}

int generate_run(const struct generate_opts *o)
{
    struct generator g = { .o = o };
    char *dir = NULL;
    int rc;
    TRY_OUT(arch_load(&g.arch, o->model));
    TRY_OUT(text_dir(&dir, o->model));
    TRY_OUT(tokenizer_open(&g.tok, dir));
    TRY_OUT(template_open(&g.tmpl, g.tok, dir, o->chat_template ? o->chat_template : "auto",
                          o->system, NULL));
    TRY_OUT(read_prompts(&g));
    if (o->out && file_create_named(&g.file, o->out) < 0) TRY_OUT(ERR_INPUT); /* before the work */
    TRY_OUT(open_model(&g));
    TRY_OUT(answer_all(&g));
    TRY_OUT(write_answers(&g));
out:
    file_abandon(&g.file);
    plan_release(&g.plan, &g.be); /* first: it writes into the booked views */
    decoder_release(&g.dec);
    model_release(&g.model);
    if (g.be_open) backend_close(&g.be);
    for (int64_t i = 0; i < g.n; i++) {
        json_decref(g.row[i]);
        sample_request_release(&g.req[i]);
    }
    free(g.req);
    free(g.row);
    free(g.work);
    free(dir);
    template_close(g.tmpl);
    tokenizer_close(g.tok);
    return rc;
}
