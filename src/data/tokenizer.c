/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include "../base/sha256.h"
#include "../io/file.h"
#include <stdlib.h>
#include <string.h>

void ids_release(struct ids *v)
{
    free(v->id);
    memset(v, 0, sizeof *v);
}

int ids_add(struct ids *v, int32_t id)
{
    return ids_append(v, &id, 1);
}

int ids_append(struct ids *v, const int32_t *id, int64_t n)
{
    if (n == 0) return 0;
    TRY(MEM_GROW(&v->id, &v->cap, v->n + n));
    memcpy(v->id + v->n, id, (size_t)n * sizeof *id);
    v->n += n;
    return 0;
}

int tokenizer_open(struct tokenizer **out, const char *dir)
{
    struct json_doc d = { 0 };
    struct tokenizer *t = NULL;
    struct sha256 sum;
    int rc = 0;
    *out = NULL;
    TRY_OUT(MEM_NEW(&t, 1));
    TRY_OUT(scratch_pool_open(&t->pool));
    TRY_OUT(path_join(&t->path, dir, "tokenizer.json"));
    TRY_OUT(json_doc_read(&d, t->path));
    if (!json_is_object(d.root)) TRY_OUT(json_err(ERR_INPUT, &d, "", "is not a JSON object"));
    TRY_OUT(tokenizer_load_pipeline(t, &d));
    TRY_OUT(tokenizer_load_special(t, &d, dir));
    sha256_init(&sum);
    sha256_add(&sum, d.text, d.len);
    sha256_hex(&sum, t->digest);
    *out = t;
    t = NULL;
out:
    tokenizer_close(t);
    json_doc_release(&d);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    for (int i = 0; i < STEPS_MAX; i++) {
        norm_release(&t->norms[i]);
        pretok_release(&t->pretoks[i]);
        free(t->decodes[i].from);
        free(t->decodes[i].to);
    }
    scratch_pool_close(t->pool);
    free(t->raw.node);
    free(t->norm.node);
    free(t->all.node);
    free(t->merge);
    unigram_release(&t->unigram);
    free(t->added);
    free(t->slot);
    free(t->text);
    free(t->tok);
    free(t->path);
    free(t);
}

/* A stretch of text between two matched tokens, or the whole of it. */
struct stretch {
    const struct tokenizer *t;
    struct scratch *k;
    struct ids *out;
};

static int encode_normalised(const struct stretch *e, const char *s, size_t len, bool first)
{
    const struct pieces *v;
    const char *text;
    TRY(pretok_run(e->t, e->k, s, len, first, &text, &v));
    for (int64_t i = 0; i < v->n; i++)
        TRY(word_encode(e->t, e->k, text + v->v[i].at, v->v[i].len, e->out));
    return 0;
}

static bool word_before(const char *s, size_t at)
{
    uint32_t cp;
    if (at == 0) return false;
    utf8_next(s + utf8_back(s, at), &cp);
    return cp_is_word(cp);
}

static bool word_after(const char *s, size_t len, size_t at)
{
    uint32_t cp;
    if (at >= len) return false;
    utf8_next(s + at, &cp);
    return cp_is_word(cp);
}

/* Longest match at s[at] that may stand there, grown by the white space that it takes along; `from`: how
 * far back it may grow. */
static int32_t added_at(const struct tokenizer *t, const struct trie *trie, const char *s,
                        size_t len, size_t from, size_t at, size_t *start, size_t *end,
                        size_t *bytes)
{
    uint32_t cp;
    const int32_t i = trie_match(trie, s + at, len - at, bytes);
    if (i < 0) return -1;
    const struct added_token *a = &t->added[i];
    *start = at;
    *end = at + *bytes;
    if (a->single_word && (word_before(s, at) || word_after(s, len, *end))) return -2;
    while (a->lstrip && *start > from) {
        const size_t back = utf8_back(s, *start);
        utf8_next(s + back, &cp);
        if (!cp_is_space(cp)) break;
        *start = back;
    }
    while (a->rstrip && *end < len) {
        const int n = utf8_next(s + *end, &cp);
        if (!cp_is_space(cp)) break;
        *end += (size_t)n;
    }
    return i;
}

typedef int encode_rest(const struct stretch *e, const char *s, size_t len, bool first);

/* Leftmost-longest matches of the trie's tokens become their ids, what is between goes to `rest`. */
static int encode_around(const struct stretch *e, const struct trie *trie, const char *s,
                         size_t len, bool first, encode_rest *rest)
{
    size_t from = 0, at = 0, start, end, bytes = 0;
    while (trie->n && at < len) {
        const int32_t i = added_at(e->t, trie, s, len, from, at, &start, &end, &bytes);
        if (i < 0) { /* a match that may not stand here is passed over whole */
            at += i == -2 ? bytes : 1;
            continue;
        }
        if (start > from) TRY(rest(e, s + from, start - from, first && from == 0));
        TRY(ids_add(e->out, e->t->added[i].id));
        from = at = end;
    }
    return from < len ? rest(e, s + from, len - from, first && from == 0) : 0;
}

static int encode_plain(const struct stretch *e, const char *s, size_t len, bool first)
{
    TRY(norm_run(e->t, e->k, s, len, &s, &len));
    return encode_normalised(e, s, len, first);
}

static int encode_matching(const struct stretch *e, const char *s, size_t len, bool first)
{
    TRY(norm_run(e->t, e->k, s, len, &s, &len));
    return encode_around(e, &e->t->norm, s, len, first, encode_normalised);
}

int tokenizer_encode_part(const struct tokenizer *t, const char *text, size_t len, bool first,
                          enum special_mode mode, struct ids *out)
{
    struct stretch e = { t, NULL, out };
    const int64_t before = out->n;
    const size_t bad = utf8_check(text, len);
    int rc;
    if (bad < len)
        return err_set(ERR_INPUT, "the text is not valid UTF-8 at byte %zu (0x%02x)", bad,
                       (uint8_t)text[bad]);
    if (len > INT32_MAX / 2) return err_set(ERR_INPUT, "a text of over 1 GiB");
    if (len == 0) return 0;
    TRY(scratch_take(t->pool, &e.k));
    if (mode == SPECIALS_MATCH)
        rc = encode_around(&e, &t->raw, text, len, first, encode_matching);
    else
        rc = encode_plain(&e, text, len, first);
    scratch_give(t->pool, e.k);
    if (rc < 0) out->n = before;
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                     enum special_mode mode, struct ids *out)
{
    return tokenizer_encode_part(t, text, len, true, mode, out);
}

bool tokenizer_find_special(const struct tokenizer *t, const char *text, size_t len, size_t *at,
                            const char **name)
{
    size_t bytes;
    for (size_t i = 0; t->all.n && i < len; i++) {
        const int32_t a = trie_match(&t->all, text + i, len - i, &bytes);
        if (a < 0) continue;
        *at = i;
        *name = t->text + t->tok[t->added[a].id].at;
        return true;
    }
    return false;
}

void tokenizer_strips(const struct tokenizer *t, int32_t id, bool *left, bool *right)
{
    const int32_t added = id >= 0 && id < t->size ? t->tok[id].added : 0;
    *left = added && t->added[added - 1].lstrip;
    *right = added && t->added[added - 1].rstrip;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token)
{
    return vocab_find(t, token, strlen(token));
}

const char *tokenizer_text(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->size && t->tok[id].len ? t->text + t->tok[id].at : NULL;
}

bool tokenizer_adds_space(const struct tokenizer *t)
{
    bool adds = false;
    for (int32_t i = 0; i < t->n_norms; i++)
        adds = adds || t->norms[i].kind == NORM_PREPEND;
    for (int32_t i = 0; i < t->n_pretoks; i++)
        adds = adds || t->pretoks[i].add_prefix_space ||
               (t->pretoks[i].kind == PRETOK_METASPACE && t->pretoks[i].scheme != METASPACE_NEVER);
    return adds;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->adds_bos;
}

int32_t tokenizer_size(const struct tokenizer *t)
{
    return t->size;
}

void tokenizer_digest(const struct tokenizer *t, char hex[65])
{
    memcpy(hex, t->digest, sizeof t->digest);
}

int tokenizer_identity(const struct tokenizer *t, struct buf *b)
{
    char version[REGEX_VERSION];
    return buf_addf(b, "tokenizer %s %d %d %d utf8proc %s pcre2 %s\n", t->digest, t->bos, t->eos,
                    t->adds_bos, text_unicode_version(), regex_version(version));
}
