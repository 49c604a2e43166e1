/* SPDX-License-Identifier: MIT */
#include "data_rows.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void row_release(struct row *r)
{
    free(r->error);
    form_release(&r->form);
    ids_release(&r->prompt);
    ids_release(&r->chosen);
    ids_release(&r->rejected);
    memset(r, 0, sizeof *r);
}

static void row_fail(struct row *r, enum row_state state, int rc)
{
    r->state = rc == ERR_INPUT ? state : ROW_FAILED;
    r->rc = rc;
    if (mem_strdup(&r->error, err_msg()) < 0) { /* the message is lost, the state is not */
        r->state = ROW_FAILED;
        r->rc = ERR_OOM;
    }
}

const char *drop_text(enum drop_why why)
{
    static const char *const text[DROP_WHYS] = {
        [DROP_CHOSEN_EMPTY] = "chosen is empty",
        [DROP_RESPONSE_EMPTY] = "the response is empty",
        [DROP_REJECTED_EMPTY] = "rejected is empty",
        [DROP_PROMPT_NO_TOKEN] = "the prompt has no token",
        [DROP_RESPONSE_NO_TOKEN] = "a response has no token",
        [DROP_SAME_TEXT] = "chosen and rejected are the same text",
        [DROP_SAME_TOKENS] = "chosen and rejected are the same tokens",
        [DROP_SAME_ONCE_CUT] = "chosen and rejected are equal once cut to max_length",
    };
    return text[why];
}

static void row_drop(struct row *r, enum row_state state, enum drop_why why)
{
    r->state = state;
    r->why = why;
}

/* Code points of Unicode's White_Space property outside ASCII. */
static bool is_space(uint32_t c)
{
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Nothing but white space; the text is valid UTF-8. */
static bool is_blank(const struct text *t)
{
    const unsigned char *s = (const unsigned char *)t->s;
    for (size_t i = 0; i < t->len; i++) {
        uint32_t c = s[i];
        if (c < 0x80) {
            if (c != ' ' && (c < '\t' || c > '\r')) return false;
            continue;
        }
        if (c >= 0xc0 && c < 0xe0 && i + 1 < t->len) {
            c = (c & 0x1f) << 6 | (s[i + 1] & 0x3f);
            i += 1;
        } else if (c >= 0xe0 && c < 0xf0 && i + 2 < t->len) {
            c = (c & 0x0f) << 12 | (uint32_t)(s[i + 1] & 0x3f) << 6 | (s[i + 2] & 0x3f);
            i += 2;
        } else {
            return false;
        }
        if (!is_space(c)) return false;
    }
    return true;
}

static bool ids_equal(const struct ids *a, const struct ids *b)
{
    return a->n == b->n && !memcmp(a->id, b->id, (size_t)a->n * sizeof *a->id);
}

/* --- special tokens in the text
 * -------------------------------------------------------------------------------- */

static int special_check(struct row *r, const struct row_rules *q, const struct place *p,
                         const char *s, size_t len, const char *pointer)
{
    const char *name = "";
    size_t at = 0;
    if (!tokenizer_find_special(q->tok, s, len, &at, &name)) return 0;
    if (!r->special) r->note.special = tokenizer_id(q->tok, name);
    r->special = true;
    if (q->opts->specials != DATA_SPECIALS_ERROR) return 0;
    return place_err(p, pointer,
                     "the text holds the special token \"%s\" at byte %zu; set data.special_tokens "
                     "to \"text\" or "
                     "\"allow\" to let it pass",
                     name, at);
}

static int special_check_prompt(struct row *r, const struct row_rules *q, const struct place *p)
{
    const struct form *f = &r->form;
    char at[POINTER_MAX + 32];
    if (!f->conversation) return special_check(r, q, p, f->prompt.s, f->prompt.len, f->prompt.at);
    for (int64_t i = 0; i < f->n_msg; i++) {
        snprintf(at, sizeof at, "%s/%lld/content", f->prompt.at, (long long)i);
        TRY(special_check(r, q, p, f->msg[i].content, f->msg[i].content_len, at));
    }
    return 0;
}

/* --- tokens
 * ----------------------------------------------------------------------------------------------------
 */

static enum special_mode mode_of(const struct row_rules *q)
{
    return q->opts->specials == DATA_SPECIALS_ALLOW ? SPECIALS_MATCH : SPECIALS_AS_TEXT;
}

static int no_end_token(const struct row *r, const struct place *p)
{
    if (r->form.conversation)
        return place_err(p, "",
                         "the chat template's end-of-turn token is not in the tokenizer, so that "
                         "no response can "
                         "end; set data.chat_template to the model's own");
    return place_err(
        p, "",
        "the tokenizer has no EOS token to end a raw text with; set \"eos_token\" in the model's "
        "tokenizer_config.json, or data.string_prompts to \"user\"");
}

static int vocab_check(struct row *r, const struct row_rules *q, const struct place *p,
                       const struct ids *v, const char *pointer)
{
    const int32_t size = q->opts->vocab_size;
    if (size <= 0) return 0;
    for (int64_t i = 0; i < v->n; i++) {
        if (v->id[i] >= 0 && v->id[i] < size) continue;
        r->state = ROW_UNFIT;
        return place_err(p, pointer,
                         "token id %d is outside the model's vocabulary of %d; the tokenizer is "
                         "not this model's",
                         v->id[i], size);
    }
    return 0;
}

/* What tokenizer and template say knows no place. */
static int placed(int rc, const struct place *p, const char *pointer)
{
    return rc == ERR_INPUT ? place_err(p, pointer, "%s", err_msg()) : rc;
}

int row_encode_prompt(struct row *r, const struct row_rules *q, const struct place *p)
{
    const struct form *f = &r->form;
    const int32_t bos = tokenizer_bos(q->tok);
    r->state = ROW_BAD;
    TRY(special_check_prompt(r, q, p));
    r->prompt.n = 0;
    TRY(placed(
        f->conversation
            ? template_encode(q->tmpl, f->msg, f->n_msg, true, mode_of(q), &r->prompt)
            : template_encode_raw(q->tmpl, f->prompt.s, f->prompt.len, mode_of(q), &r->prompt),
        p, f->prompt.at));
    int64_t extra = 0; /* a text that spells BOS itself gets no second one */
    while (bos >= 0 && extra + 1 < r->prompt.n && r->prompt.id[extra] == bos &&
           r->prompt.id[extra + 1] == bos)
        extra++;
    if (extra && q->opts->specials == DATA_SPECIALS_ALLOW) {
        r->prompt.n -= extra;
        memmove(r->prompt.id, r->prompt.id + extra, (size_t)r->prompt.n * sizeof *r->prompt.id);
    }
    TRY(vocab_check(r, q, p, &r->prompt, f->prompt.at));
    r->end = template_end(q->tmpl, f->conversation);
    if (r->end < 0) {
        r->state = ROW_UNFIT;
        return no_end_token(r, p);
    }
    r->state = ROW_OK;
    return 0;
}

/* Text and end token; *empty: the tokenizer makes nothing of the text. */
static int encode_response(struct row *r, const struct row_rules *q, const struct place *p,
                           const struct text *t, struct ids *out, bool *empty)
{
    r->state = ROW_BAD;
    TRY(special_check(r, q, p, t->s, t->len, t->at));
    out->n = 0;
    TRY(placed(
        template_encode_response(q->tmpl, r->form.conversation, t->s, t->len, mode_of(q), out), p,
        t->at));
    *empty = *empty || out->n == 0;
    /* only where special_tokens is "allow" can the text bring its own end token */
    if (out->n == 0 || out->id[out->n - 1] != r->end || mode_of(q) == SPECIALS_AS_TEXT)
        TRY(ids_add(out, r->end));
    if (out->n > INT32_MAX / 4) return place_err(p, t->at, "the text has too many tokens");
    TRY(vocab_check(r, q, p, out, t->at));
    r->state = ROW_OK;
    return 0;
}

/* --- cutting
 * ---------------------------------------------------------------------------------------------------
 */

bool prompt_keep_last(struct ids *v, int64_t max, int32_t bos)
{
    const int64_t first = bos >= 0 && v->n > 0 && v->id[0] == bos, keep = max - first;
    if (v->n <= max) return false;
    memmove(v->id + first, v->id + v->n - keep, (size_t)keep * sizeof *v->id);
    v->n = max;
    return true;
}

static void cut(struct row *r, const struct row_rules *q)
{
    const struct data_opts *o = q->opts;
    struct ids *const parts[2] = { &r->chosen, &r->rejected };
    const int32_t n_parts = r->form.has_rejected ? 2 : 1;
    const int64_t longer = MAX(r->chosen.n, r->form.has_rejected ? r->rejected.n : 0);
    if (r->prompt.n + longer <= o->max_length) return;
    r->cut_prompt = prompt_keep_last(&r->prompt, o->max_prompt_length, tokenizer_bos(q->tok));
    for (int32_t i = 0; i < n_parts; i++) {
        const int64_t room = o->max_length - r->prompt.n;
        if (parts[i]->n <= room) continue;
        parts[i]->n = room; /* the end token, being last, is cut too */
        r->cut_responses++;
    }
}

/* --- one row
 * ---------------------------------------------------------------------------------------------------
 */

static int row_tokens(struct row *r, const struct row_rules *q, const struct place *p)
{
    const struct form *f = &r->form;
    bool empty = false;
    TRY(row_encode_prompt(r, q, p));
    TRY(encode_response(r, q, p, &f->chosen, &r->chosen, &empty));
    if (f->has_rejected) TRY(encode_response(r, q, p, &f->rejected, &r->rejected, &empty));
    if (r->prompt.n == 0)
        row_drop(r, ROW_EMPTY, DROP_PROMPT_NO_TOKEN);
    else if (empty)
        row_drop(r, ROW_EMPTY, DROP_RESPONSE_NO_TOKEN);
    else if (f->has_rejected && ids_equal(&r->chosen, &r->rejected))
        row_drop(r, ROW_EQUAL, DROP_SAME_TOKENS);
    if (r->state != ROW_OK) return 0;
    if (q->opts->notes) {
        r->state = ROW_BAD;
        TRY(row_note_make(r, q, mode_of(q)));
        r->state = ROW_OK;
    }
    cut(r, q);
    if (f->has_rejected && ids_equal(&r->chosen, &r->rejected))
        row_drop(r, ROW_CUT, DROP_SAME_ONCE_CUT);
    return 0;
}

static int row_judge(struct row *r, const struct row_rules *q, const struct place *p)
{
    const struct form *f = &r->form;
    if (is_blank(&f->chosen))
        row_drop(r, ROW_EMPTY, f->has_rejected ? DROP_CHOSEN_EMPTY : DROP_RESPONSE_EMPTY);
    else if (f->has_rejected && is_blank(&f->rejected))
        row_drop(r, ROW_EMPTY, DROP_REJECTED_EMPTY);
    else if (f->has_rejected && f->chosen.len == f->rejected.len &&
             !memcmp(f->chosen.s, f->rejected.s, f->chosen.len))
        row_drop(r, ROW_EQUAL, DROP_SAME_TEXT);
    return r->state == ROW_OK ? row_tokens(r, q, p) : 0;
}

void row_make(struct row *r, const struct row_rules *q, const char *file, int64_t line,
              int64_t column, const char *text, size_t len)
{
    struct json_doc doc = { 0 };
    struct place p = { &doc, file, line };
    free(r->error);
    r->error = NULL;
    r->line = line;
    r->rc = 0;
    r->state = ROW_OK;
    r->special = r->cut_prompt = false;
    r->note.special = -1;
    r->cut_responses = 0;
    int rc = json_doc_parse_at(&doc, file, line, column, text, len);
    if (rc >= 0) rc = form_read(&r->form, doc.root, q->kind, q->opts->string_prompts_user, &p);
    if (rc < 0) {
        row_fail(r, ROW_BAD, rc);
    } else {
        rc = row_judge(r, q, &p);
        if (rc < 0) row_fail(r, r->state, rc);
    }
    json_doc_release(&doc);
}
