/* SPDX-License-Identifier: MIT */
#include "data_rows.h"
#include <string.h>

static uint64_t hash_ids(const struct ids *v)
{
    uint64_t h = 0x9e3779b97f4a7c15u + (uint64_t)v->n;
    for (int64_t i = 0; i < v->n; i++) {
        h = (h ^ (uint32_t)v->id[i]) * 0xbf58476d1ce4e5b9u;
        h ^= h >> 29;
    }
    return h;
}

/* Prompt and response encoded as one text. */
static int encode_joint(struct form *f, const struct row_rules *q, const struct text *t,
                        enum special_mode mode, struct ids *out)
{
    struct buf b = { 0 };
    int rc = 0;
    if (f->conversation) {
        TRY(MEM_GROW(&f->msg, &f->cap_msg, f->n_msg + 1));
        f->msg[f->n_msg] = (struct message){ "assistant", t->s, t->len };
        return template_encode(q->tmpl, f->msg, f->n_msg + 1, false, mode, out);
    }
    TRY_OUT(buf_add(&b, f->prompt.s, f->prompt.len));
    TRY_OUT(buf_add(&b, t->s, t->len));
    rc = template_encode_raw(q->tmpl, b.data ? b.data : "", b.len, mode, out);
out:
    buf_release(&b);
    return rc;
}

/* Does the joint encoding begin with other ids than the prompt's and the response's (without its end token)? */
static int joint_differs(struct row *r, const struct row_rules *q, const struct text *t,
                         const struct ids *response, enum special_mode mode, bool *differs)
{
    struct ids joint = { 0 };
    const int64_t np = r->prompt.n, n = response->n - 1;
    const int rc = encode_joint(&r->form, q, t, mode, &joint);
    if (rc == 0 &&
        (joint.n < np + n || memcmp(joint.id, r->prompt.id, (size_t)np * sizeof *joint.id) ||
         memcmp(joint.id + np, response->id, (size_t)n * sizeof *joint.id)))
        *differs = true;
    ids_release(&joint);
    return rc;
}

/* Does the text spell the end token, or do the ids hold it before the last one? */
static bool end_doubled(const struct row *r, const struct row_rules *q, const struct text *t,
                        const struct ids *v)
{
    const char *end = tokenizer_text(q->tok, r->end);
    const size_t n = strlen(end);
    size_t len = t->len;
    while (len && strchr(" \n\r\t", t->s[len - 1]))
        len--;
    return (len >= n && !memcmp(t->s + len - n, end, n)) || (v->n > 1 && v->id[v->n - 2] == r->end);
}

int row_note_make(struct row *r, const struct row_rules *q, enum special_mode mode)
{
    struct example_note *note = &r->note;
    const struct form *f = &r->form;
    const int32_t bos = tokenizer_bos(q->tok);
    const char *bos_text = bos < 0 ? NULL : tokenizer_text(q->tok, bos);
    note->np = (int32_t)r->prompt.n;
    note->nw = (int32_t)r->chosen.n;
    note->prompt_hash = hash_ids(&r->prompt);
    note->chosen_hash = hash_ids(&r->chosen);
    note->joint_differs = note->bos_doubled = false;
    note->bos_missing = tokenizer_adds_bos(q->tok) && (r->prompt.n == 0 || r->prompt.id[0] != bos);
    if (bos_text && !f->conversation)
        note->bos_doubled =
            tokenizer_adds_bos(q->tok) && !strncmp(f->prompt.s, bos_text, strlen(bos_text));
    if (r->prompt.n > 1 && bos >= 0 && r->prompt.id[0] == bos && r->prompt.id[1] == bos)
        note->bos_doubled = true;
    note->end_doubled = end_doubled(r, q, &f->chosen, &r->chosen);
    TRY(joint_differs(r, q, &f->chosen, &r->chosen, mode, &note->joint_differs));
    note->nl = 0;
    note->rejected_hash = 0;
    if (!f->has_rejected) return 0;
    note->nl = (int32_t)r->rejected.n;
    note->rejected_hash = hash_ids(&r->rejected);
    note->end_doubled = note->end_doubled || end_doubled(r, q, &f->rejected, &r->rejected);
    return joint_differs(r, q, &f->rejected, &r->rejected, mode, &note->joint_differs);
}
