/* SPDX-License-Identifier: MIT */
#include "generate.h"
#include "answers.h"
#include "config.h"
#include "refcache.h"
#include "sample.h"
#include "setup.h"
#include "status.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE_BATCHES = 4, /* rows that are answered together, in batches: what a kill can cost */
    PASS_ROWS = 1024,  /* tokens of prompts that are read together */
    STOP_SLACK = 8     /* tokens beside a stop string's bytes that are looked at for it */
};

struct prompt_row {
    json_t *row; /* owned; the answers are added to it */
    json_t *
        turns; /* its "turns": several prompts, each with the answers before it; NULL: one prompt. Borrowed */
    int64_t line, room; /* room: tokens of its longest prompt with the answer */
};
struct generator {
    const struct generate_opts *o;
    struct arch arch;
    struct tokenizer *tok;
    struct chat_template *tmpl;
    struct backend be;
    bool be_open;
    struct prompt_row *row;
    int64_t n, cap, room; /* room: the largest of the rows' */
    struct plan plan;
    struct model model;
    struct decoder dec;
    struct sample_work *work;
    struct sha256 print; /* of everything that the answers depend on */
    struct answers file;
    size_t longest_stop; /* bytes */
    int64_t tokens;      /* drawn so far */
};

static const char *file_of(const struct generator *g)
{
    return g->o->prompts ? g->o->prompts : "--prompt";
}

static int out_of_memory(void)
{
    return err_set(ERR_OOM, "out of memory for an answer");
}

/* Prompts ---------------------------------------------------------------------------------------------------------- */

/* A message of a conversation. A model may say NUL, which no text of a prompt may hold. */
static int add_message(json_t *list, const char *role, const json_t *text)
{
    const char *p = json_string_value(text), *end = p + json_string_length(text);
    struct buf b = { 0 };
    int rc = 0;
    for (const char *nul; rc == 0 && (nul = memchr(p, 0, (size_t)(end - p))); p = nul + 1) {
        rc = buf_add(&b, p, (size_t)(nul - p));
        if (rc == 0) rc = buf_adds(&b, "\xef\xbf\xbd");
    }
    if (rc == 0) rc = buf_add(&b, p, (size_t)(end - p));
    if (rc == 0 && json_array_append_new(
                       list, json_pack("{s:s, s:s%}", "role", role, "content", b.data, b.len)) < 0)
        rc = out_of_memory();
    buf_release(&b);
    return rc;
}

/* The conversation up to turn k, as a row with a "prompt"; the caller owns *out. answers NULL: each stands as a word. */
static int turn_row(const struct prompt_row *r, int64_t k, const json_t *answers, json_t **out)
{
    json_t *list = json_array(), *word = json_string("-");
    int rc = list && word ? 0 : out_of_memory();
    for (int64_t i = 0; rc == 0 && i <= k; i++) {
        rc = add_message(list, "user", json_array_get(r->turns, (size_t)i));
        if (rc == 0 && i < k)
            rc =
                add_message(list, "assistant", answers ? json_array_get(answers, (size_t)i) : word);
    }
    json_decref(word);
    *out = rc == 0 ? json_pack("{s:O}", "prompt", list) : NULL;
    json_decref(list);
    if (rc == 0 && !*out) rc = out_of_memory();
    return rc;
}

/* Ids of a row's prompt of turn k, at most `keep` (0: all). */
static int encode_turn(const struct generator *g, const struct prompt_row *r, int64_t k,
                       const json_t *answers, int64_t keep, struct ids *ids, int32_t *end)
{
    const struct data_opts opts = { .string_prompts_user = g->o->prompts_user,
                                    .vocab_size = (int32_t)g->arch.V,
                                    .max_prompt_length = keep };
    json_t *made = NULL;
    if (r->turns) TRY(turn_row(r, k, answers, &made));
    const int rc = data_encode_prompt(ids, end, made ? made : r->row, &opts, g->tok, g->tmpl,
                                      file_of(g), r->line);
    json_decref(made);
    return rc;
}

static int64_t turns_of(const struct prompt_row *r)
{
    return r->turns ? (int64_t)json_array_size(r->turns) : 1;
}

static int check_turns(const struct generator *g, struct prompt_row *r)
{
    json_t *turns = json_object_get(r->row, "turns");
    static const char *const others[] = { "prompt", "messages", "chosen" };
    if (!turns) return 0;
    for (size_t i = 0; i < COUNT_OF(others); i++)
        if (json_object_get(r->row, others[i])) return 0;
    for (size_t i = 0; i < MAX(json_array_size(turns), (size_t)1); i++)
        if (!json_is_string(json_array_get(turns, i)) ||
            json_string_length(json_array_get(turns, i)) == 0 ||
            memchr(json_string_value(json_array_get(turns, i)), 0,
                   json_string_length(json_array_get(turns, i))))
            return err_at(
                ERR_INPUT, file_of(g), r->line, 0,
                "\"turns\" must be a list of strings, none empty or with a NUL character: what the "
                "user says in each turn");
    r->turns = turns;
    return 0;
}

/* Room for the longest prompt of a row. Of later turns only a guess can be known: answers are encoded again, and may take more tokens than were drawn. */
static int measure(struct generator *g, struct prompt_row *r)
{
    const int64_t last = turns_of(r) - 1, limit = g->arch.max_positions;
    struct ids ids = { 0 };
    int32_t end;
    int rc;
    TRY_OUT(encode_turn(g, r, 0, NULL, 0, &ids, &end));
    r->room = ids.n + g->o->max_tokens;
    if (r->room > limit && (!g->o->cut_prompts || g->o->max_tokens >= limit))
        TRY_OUT(err_at(ERR_INPUT, file_of(g), r->line, 0,
                       "prompt of %lld tokens and %lld new ones exceed the model's "
                       "max_position_embeddings, %lld; lower --max-tokens, or keep the prompt's "
                       "end with --cut-prompts",
                       (long long)ids.n, (long long)g->o->max_tokens, (long long)limit));
    if (last > 0) {
        ids.n = 0;
        TRY_OUT(encode_turn(g, r, last, NULL, 0, &ids, &end));
        r->room = MAX(r->room, ids.n + (last + 2) * g->o->max_tokens);
    }
    r->room = MIN(r->room, limit);
    g->room = MAX(g->room, r->room);
out:
    ids_release(&ids);
    return rc;
}

static int add_row(struct generator *g, json_t *row, int64_t line)
{
    if (MEM_GROW(&g->row, &g->cap, g->n + 1) < 0) {
        json_decref(row);
        return ERR_OOM;
    }
    struct prompt_row *r = &g->row[g->n++];
    *r = (struct prompt_row){ .row = row, .line = line };
    TRY(check_turns(g, r));
    return measure(g, r);
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
        sha256_add(&g->print, g->o->prompt, strlen(g->o->prompt));
        return add_row(g, row, 0);
    }
    TRY(lines_open(&lines, g->o->prompts));
    while ((rc = lines_next(lines, &line, &len)) > 0) {
        struct json_doc d = { 0 };
        if (strspn(line, " \t") == len) continue;
        sha256_add(&g->print, line, len + 1);
        rc = json_doc_parse_any(&d, g->o->prompts, lines_number(lines), line, len);
        if (rc == 0) rc = add_row(g, json_incref(d.root), lines_number(lines));
        json_doc_release(&d);
        if (rc < 0) break;
    }
    lines_close(lines);
    if (rc == 0 && g->n == 0) rc = err_set(ERR_INPUT, "%s: has no prompts", g->o->prompts);
    return rc;
}

/* Answers ---------------------------------------------------------------------------------------------------------- */

/* Decoding costs what it reads of the weights, so float32 on the CPU leaves bfloat16 in memory as it stands in the files: the same numbers. */
static int choose_matrices(struct generator *g)
{
    const bool dense = !g->arch.nf4 && g->arch.lora.rank == 0 && !arch_adapter(g->o->model);
    if (g->o->bf16 || g->be.net || !dense) return 0;
    const int half = model_dir_half(g->o->model);
    g->model.half_matrices = half > 0;
    return MIN(half, 0);
}

static int open_model(struct generator *g)
{
    TRY(backend_choose(&g->be, g->o->backend, g->o->threads, 0));
    g->be_open = true;
    TRY(model_init(&g->model, &g->be, &g->arch, g->o->bf16 ? DT_BF16 : DT_F32));
    TRY(choose_matrices(g));
    TRY(model_plan_weights(&g->model, &g->plan, false));
    const int64_t batch = MIN(g->o->batch, g->n), longest = g->room - g->o->max_tokens;
    TRY(decoder_plan(&g->dec, &g->model, &g->plan, batch, g->room,
                     MAX(longest, MIN(PASS_ROWS, longest * batch))));
    TRY(plan_grant(&g->plan, &g->be));
    TRY(model_ready(&g->model));
    TRY(decoder_ready(&g->dec));
    TRY(MEM_NEW(&g->work, g->arch.V));
    return model_load(&g->model, g->o->model);
}

/* Where the first of the stop strings begins in text; NULL: none is there. */
static const char *find_stop(const struct generator *g, const struct buf *text)
{
    const char *first = NULL;
    for (int32_t i = 0; text->len && i < g->o->n_stops; i++) {
        const char *at = memmem(text->data, text->len, g->o->stops[i], strlen(g->o->stops[i]));
        if (at && (!first || at < first)) first = at;
    }
    return first;
}

/* A sample_stop_fn: has the end of the answer become a stop string? Each token gives a byte at least, but for special ones. */
static int stops_here(void *ctx, const struct sample_request *r, bool *stop)
{
    const struct generator *g = ctx;
    const int64_t n = MIN(r->answer.n, (int64_t)g->longest_stop + STOP_SLACK);
    struct buf text = { 0 };
    *stop = false;
    if (g->o->n_stops == 0) return 0;
    const int rc = tokenizer_decode(g->tok, r->answer.id + r->answer.n - n, n, true, &text);
    if (rc == 0) *stop = find_stop(g, &text) != NULL;
    buf_release(&text);
    return rc;
}

static json_t *id_list(const struct ids *v)
{
    json_t *a = json_array();
    for (int64_t i = 0; a && i < v->n; i++)
        json_array_append_new(a, json_integer(v->id[i]));
    return a;
}

/* Put `value` (taken over) into the row: as it is, or into the list of its turns. */
static int put_answer(const struct prompt_row *r, const char *key, json_t *value)
{
    json_t *list;
    if (!value) return out_of_memory();
    if (!r->turns) return json_object_set_new(r->row, key, value) == 0 ? 0 : out_of_memory();
    list = json_object_get(r->row, key);
    if (!list) {
        list = json_array();
        if (json_object_set_new(r->row, key, list) < 0) list = NULL;
    }
    if (list && json_array_append_new(list, value) == 0) return 0;
    return out_of_memory();
}

static int take_answer(struct generator *g, struct prompt_row *r, const struct sample_request *q)
{
    struct buf text = { 0 };
    int rc = tokenizer_decode(g->tok, q->answer.id, q->answer.n, true, &text);
    const char *stop = rc == 0 ? find_stop(g, &text) : NULL;
    const size_t len = stop ? (size_t)(stop - text.data) : text.len;
    g->tokens += q->answer.n + q->stopped;
    if (rc == 0) rc = put_answer(r, "response", json_stringn(text.data ? text.data : "", len));
    if (rc == 0) rc = put_answer(r, "tokens", id_list(&q->answer));
    if (rc == 0) rc = put_answer(r, "finish", json_string(q->stopped || stop ? "stop" : "length"));
    buf_release(&text);
    return rc;
}

/* What was there under these keys would be mistaken for answers; a row that is a bare string becomes an object with that prompt. */
static int prepare_row(struct prompt_row *r)
{
    static const char *const keys[] = { "response", "tokens", "finish" };
    if (!json_is_object(r->row)) {
        json_t *o = json_pack("{s:O}", "prompt", r->row);
        if (!o) return out_of_memory();
        json_decref(r->row);
        r->row = o;
    }
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        json_object_del(r->row, keys[i]);
    return 0;
}

/* Turn k of rows [first, first + n) that have one. */
static int answer_turn(struct generator *g, int64_t first, int64_t n, int64_t k)
{
    const struct sampler s = { .dec = &g->dec,
                               .top_k = g->o->top_k,
                               .temperature = g->o->temperature,
                               .top_p = g->o->top_p,
                               .seed = g->o->seed,
                               .kind = RNG_SAMPLE,
                               .eos = tokenizer_eos(g->tok),
                               .stop = stops_here,
                               .stop_ctx = g,
                               .work = g->work };
    struct sample_request *req = NULL;
    int64_t m = 0;
    int rc;
    TRY_OUT(MEM_NEW(&req, n));
    for (int64_t i = first; i < first + n; i++) {
        struct prompt_row *r = &g->row[i];
        if (turns_of(r) <= k) continue;
        if (k == 0) TRY_OUT(prepare_row(r));
        struct sample_request *q = &req[m++];
        q->index = i + k * g->n;
        q->max_tokens = g->o->max_tokens;
        TRY_OUT(encode_turn(g, r, k, json_object_get(r->row, "response"),
                            r->room - g->o->max_tokens, &q->prompt, &q->end));
    }
    TRY_OUT(sample_answers(&s, req, m));
    for (int64_t i = first, at = 0; i < first + n; i++)
        if (turns_of(&g->row[i]) > k) TRY_OUT(take_answer(g, &g->row[i], &req[at++]));
out:
    for (int64_t i = 0; req && i < n; i++)
        sample_request_release(&req[i]);
    free(req);
    return rc;
}

/* Rows [first, first + n), which are then written and let go. */
static int answer_piece(struct generator *g, int64_t first, int64_t n)
{
    struct buf lines = { 0 };
    int64_t turns = 1;
    int rc = 0;
    for (int64_t i = first; i < first + n; i++)
        turns = MAX(turns, turns_of(&g->row[i]));
    for (int64_t k = 0; k < turns; k++)
        TRY_OUT(answer_turn(g, first, n, k));
    for (int64_t i = first; i < first + n; i++) {
        struct prompt_row *r = &g->row[i];
        const json_t *text = json_object_get(r->row, "response");
        if (g->o->prompt && !g->o->out)
            TRY_OUT(buf_add(&lines, json_string_value(text), json_string_length(text)));
        else
            TRY_OUT(json_dump(&lines, r->row, 0));
        TRY_OUT(buf_adds(&lines, "\n"));
        json_decref(r->row);
        *r = (struct prompt_row){ 0 };
    }
    rc = answers_add(&g->file, lines.data, lines.len);
out:
    buf_release(&lines);
    return rc;
}

/* What the answers depend on besides the prompts; ends the fingerprint. */
static int fingerprint(struct generator *g, char hex[65])
{
    const struct generate_opts *o = g->o;
    struct buf b = { 0 };
    uint8_t digest[32];
    int rc;
    TRY_OUT(refcache_digest(digest, &g->model));
    sha256_add(&g->print, digest, sizeof digest);
    TRY_OUT(tokenizer_identity(g->tok, &b));
    TRY_OUT(template_identity(g->tmpl, &b));
    TRY_OUT(buf_addf(&b, "|%d|%d|%d|%lld|%lld|%lld|%.17g|%.17g|%llu|%d", o->bf16, o->prompts_user,
                     o->cut_prompts, (long long)o->max_tokens, (long long)o->batch,
                     (long long)o->top_k, o->temperature, o->top_p, (unsigned long long)o->seed,
                     (int)KERNELS_VERSION));
    for (int32_t i = 0; i < o->n_stops; i++)
        TRY_OUT(buf_add(&b, o->stops[i], strlen(o->stops[i]) + 1));
    sha256_add(&g->print, b.data, b.len);
    sha256_hex(&g->print, hex);
out:
    buf_release(&b);
    return rc;
}

/* Pieces are answered apart from each other: in a batch an answer's last bits may depend on its company, and so the company of a row is the same wherever
 * an earlier start has ended. */
static int answer_all(struct generator *g)
{
    const int64_t piece = PIECE_BATCHES * MIN(g->o->batch, g->n);
    const double start = clock_seconds();
    char key[65];
    if (g->o->out) {
        TRY(fingerprint(g, key));
        TRY(answers_resume(&g->file, key, piece, g->n));
        if (g->file.rows)
            fprintf(stderr, "%s: %lld of %lld rows are there already\n", g->o->out,
                    (long long)g->file.rows, (long long)g->n);
    }
    for (int64_t i = g->file.rows; i < g->n; i += piece) {
        const int64_t n = MIN(piece, g->n - i);
        TRY(answer_piece(g, i, n));
        if (!g->o->out) continue;
        const double seconds = clock_seconds() - start;
        fprintf(stderr, "%s: %lld of %lld rows, %lld tokens in %.3g s, %.0f tokens/s\n", g->o->out,
                (long long)(i + n), (long long)g->n, (long long)g->tokens, seconds,
                (double)g->tokens / fmax(seconds, 1e-9));
    }
    return answers_finish(&g->file);
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
    sha256_init(&g.print);
    for (int32_t i = 0; i < o->n_stops; i++)
        g.longest_stop = MAX(g.longest_stop, strlen(o->stops[i]));
    TRY_OUT(arch_load(&g.arch, o->model));
    TRY_OUT(text_dir(&dir, o->model));
    TRY_OUT(tokenizer_open(&g.tok, dir));
    TRY_OUT(template_open(&g.tmpl, g.tok, dir, o->chat_template ? o->chat_template : "auto",
                          o->system, NULL));
    TRY_OUT(read_prompts(&g));
    TRY_OUT(answers_open(&g.file, o->out)); /* before the work */
    TRY_OUT(open_model(&g));
    TRY_OUT(answer_all(&g));
out:
    answers_close(&g.file);
    plan_release(&g.plan, &g.be); /* first: it writes into the booked views */
    decoder_release(&g.dec);
    model_release(&g.model);
    if (g.be_open) backend_close(&g.be);
    for (int64_t i = 0; i < g.n; i++)
        json_decref(g.row[i].row);
    free(g.row);
    free(g.work);
    free(dir);
    template_close(g.tmpl);
    tokenizer_close(g.tok);
    return rc;
}
