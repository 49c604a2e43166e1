/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 1 << 26 };

static uint64_t text_hash(const char *s, size_t len)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

int32_t vocab_find(const struct tokenizer *t, const char *s, size_t len)
{
    if (t->slots == 0 || len == 0) return -1;
    for (uint64_t i = text_hash(s, len);; i++) {
        const int32_t v = t->slot[i & (uint64_t)(t->slots - 1)];
        if (v == 0) return -1;
        const struct token *k = &t->tok[v - 1];
        if (k->len == len && memcmp(t->text + k->at, s, len) == 0) return v - 1;
    }
}

static void vocab_insert(struct tokenizer *t, int32_t id)
{
    const struct token *k = &t->tok[id];
    uint64_t i = text_hash(t->text + k->at, k->len);
    while (t->slot[i & (uint64_t)(t->slots - 1)] != 0)
        i++;
    t->slot[i & (uint64_t)(t->slots - 1)] = id + 1;
}

int trie_add(struct trie *t, const char *s, size_t len, int32_t added)
{
    if (t->n == 0) {
        TRY(MEM_GROW(&t->node, &t->cap, 1));
        memset(&t->node[t->n++], 0, sizeof *t->node);
    }
    int32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t c = t->node[at].child;
        while (c && t->node[c].byte != (uint8_t)s[i])
            c = t->node[c].next;
        if (!c) {
            if (t->n >= INT32_MAX) return err_set(ERR_INPUT, "added tokens of over 2 GiB");
            TRY(MEM_GROW(&t->node, &t->cap, t->n + 1));
            c = (int32_t)t->n++;
            t->node[c] = (struct trie_node){ .next = t->node[at].child, .byte = (uint8_t)s[i] };
            t->node[at].child = c;
        }
        at = c;
    }
    if (len && t->node[at].added == 0) t->node[at].added = added + 1;
    return 0;
}

int32_t trie_match(const struct trie *t, const char *s, size_t len, size_t *bytes)
{
    int32_t found = -1, at = 0;
    if (t->n == 0) return -1;
    for (size_t i = 0; i < len; i++) {
        int32_t c = t->node[at].child;
        while (c && t->node[c].byte != (uint8_t)s[i])
            c = t->node[c].next;
        if (!c) break;
        at = c;
        if (t->node[at].added) {
            found = t->node[at].added - 1;
            *bytes = i + 1;
        }
    }
    return found;
}

int member_bool(bool *out, const struct json_doc *d, const json_t *o, const char *at,
                const char *key, bool dflt)
{
    const json_t *v = json_object_get(o, key);
    char where[200];
    snprintf(where, sizeof where, "%s/%s", at, key);
    if (v && !json_is_null(v) && !json_is_boolean(v))
        return json_err(ERR_INPUT, d, where, "%s is neither true nor false", key);
    *out = v && !json_is_null(v) ? json_is_true(v) : dflt;
    return 0;
}

int member_text(const char **out, const struct json_doc *d, const json_t *o, const char *at,
                const char *key)
{
    const json_t *v = json_object_get(o, key);
    char where[200];
    snprintf(where, sizeof where, "%s/%s", at, key);
    if (!v || !json_is_string(v)) return json_err(ERR_INPUT, d, where, "%s is not a string", key);
    *out = json_string_value(v);
    return 0;
}

/* The id at a place, checked against the table's size. */
static int id_at(int32_t *out, const struct json_doc *d, const char *where, const json_t *v,
                 int64_t limit)
{
    if (!json_is_integer(v)) return json_err(ERR_INPUT, d, where, "a token's id is not an integer");
    const json_int_t id = json_integer_value(v);
    if (id < 0 || id >= limit)
        return json_err(ERR_INPUT, d, where,
                        "the id %lld is out of range: the ids here are 0 to %lld, without a gap",
                        (long long)id, (long long)limit - 1);
    *out = (int32_t)id;
    return 0;
}

static void token_set(struct tokenizer *t, int32_t id, const char *s, size_t len, size_t *used)
{
    struct token *k = &t->tok[id];
    k->at = *used;
    k->len = (uint32_t)len;
    memcpy(t->text + *used, s, len);
    *used += len + 1;
    t->size = MAX(t->size, id + 1);
    vocab_insert(t, id);
}

static int vocab_error(const struct json_doc *d, const char *key, int32_t id, int64_t limit)
{
    char *where, shown[80];
    TRY(json_pointer_join(&where, "/model/vocab", key));
    const json_t *v =
        json_object_get(json_object_get(json_object_get(d->root, "model"), "vocab"), key);
    int rc;
    if (*key == 0)
        rc = json_err(ERR_INPUT, d, where, "a token without text");
    else if (id < 0)
        rc = id_at(&id, d, where, v, limit);
    else
        rc = json_err(ERR_INPUT, d, where, "\"%s\" has the id %d, which another token has",
                      err_quote(shown, sizeof shown, key, strlen(key)), id);
    free(where);
    return rc;
}

static int load_model_vocab(struct tokenizer *t, const struct json_doc *d, json_t *vocab,
                            int64_t limit, size_t *used)
{
    const char *key;
    json_t *v;
    json_object_foreach(vocab, key, v)
    {
        const size_t len = strlen(key);
        const json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (len == 0 || id < 0 || id >= limit) return vocab_error(d, key, -1, limit);
        if (t->tok[id].len) return vocab_error(d, key, (int32_t)id, limit);
        token_set(t, (int32_t)id, key, len, used);
        t->tok[id].in_vocab = true;
        t->longest = MAX(t->longest, len);
    }
    return 0;
}

/* Unigram's list of [text, score], by id. */
static int load_model_pieces(struct tokenizer *t, const struct json_doc *d, const json_t *vocab,
                             size_t *used)
{
    char where[64], shown[80];
    size_t i;
    json_t *v;
    TRY(MEM_NEW(&t->unigram.score, (int64_t)json_array_size(vocab)));
    json_array_foreach(vocab, i, v)
    {
        const char *s = json_string_value(json_array_get(v, 0));
        const json_t *score = json_array_get(v, 1);
        snprintf(where, sizeof where, "/model/vocab/%zu", i);
        if (json_array_size(v) != 2 || !s || !json_is_number(score))
            return json_err(ERR_INPUT, d, where, "is not a list of a token's text and its score");
        const size_t len = strlen(s);
        if (len == 0) return json_err(ERR_INPUT, d, where, "a token without text");
        if (vocab_find(t, s, len) >= 0)
            return json_err(ERR_INPUT, d, where, "\"%s\" is in model.vocab twice",
                            err_quote(shown, sizeof shown, s, len));
        token_set(t, (int32_t)i, s, len, used);
        t->tok[i].in_vocab = true;
        t->longest = MAX(t->longest, len);
        t->unigram.score[i] = unigram_score(json_number_value(score));
    }
    return 0;
}

static int load_added(struct tokenizer *t, const struct json_doc *d, int32_t i, const json_t *o,
                      int64_t limit, size_t *used)
{
    char at[64], where[96], shown[80];
    const char *s;
    int32_t id = -1;
    struct added_token *a = &t->added[i];
    snprintf(at, sizeof at, "/added_tokens/%d", i);
    snprintf(where, sizeof where, "%s/id", at);
    if (!json_is_object(o)) return json_err(ERR_INPUT, d, at, "an added token is not an object");
    TRY(member_text(&s, d, o, at, "content"));
    TRY(id_at(&id, d, where, json_object_get(o, "id"), limit));
    TRY(member_bool(&a->special, d, o, at, "special", false));
    TRY(member_bool(&a->lstrip, d, o, at, "lstrip", false));
    TRY(member_bool(&a->rstrip, d, o, at, "rstrip", false));
    TRY(member_bool(&a->single_word, d, o, at, "single_word", false));
    TRY(member_bool(&a->normalized, d, o, at, "normalized", !a->special));
    const size_t len = strlen(s);
    a->id = id;
    err_quote(shown, sizeof shown, s, len);
    if (len == 0) return json_err(ERR_INPUT, d, at, "an added token without text");
    const int32_t same = vocab_find(t, s, len);
    if (same >= 0 && same != id)
        return json_err(ERR_INPUT, d, where, "\"%s\" has the id %d here and %d elsewhere", shown,
                        id, same);
    if (same < 0 && t->tok[id].len)
        return json_err(ERR_INPUT, d, where, "\"%s\" has the id %d, which another token has", shown,
                        id);
    if (same >= 0 && t->tok[id].added)
        return json_err(ERR_INPUT, d, at, "\"%s\" is added twice", shown);
    if (same < 0 && id != t->size)
        return json_err(ERR_INPUT, d, where,
                        "\"%s\" has the id %d, but the next free one is %d; the tokenizers library "
                        "would renumber it",
                        shown, id, t->size);
    if (same < 0) token_set(t, id, s, len, used);
    t->tok[id].added = i + 1;
    return 0;
}

/* Bytes that all token texts need. */
static int64_t text_bytes(json_t *vocab, const json_t *added)
{
    const char *key;
    json_t *v;
    int64_t n = 0;
    size_t i;
    json_object_foreach(vocab, key, v) n += (int64_t)strlen(key) + 1;
    json_array_foreach(vocab, i, v) n += (int64_t)json_string_length(json_array_get(v, 0)) + 1;
    json_array_foreach(added, i, v) n +=
        (int64_t)json_string_length(json_object_get(v, "content")) + 1;
    return n;
}

int tokenizer_load_vocab(struct tokenizer *t, const struct json_doc *d)
{
    json_t *vocab = json_object_get(json_object_get(d->root, "model"), "vocab");
    json_t *added = json_object_get(d->root, "added_tokens"), *v;
    size_t i, used = 0;
    const bool list = json_is_array(vocab);
    if (!(t->is_unigram ? list : json_is_object(vocab)) ||
        json_object_size(vocab) + json_array_size(vocab) == 0)
        return json_err(ERR_INPUT, d, "/model/vocab", "model.vocab is not %s",
                        t->is_unigram ? "a list of tokens and scores"
                                      : "an object of tokens and ids");
    if (added && !json_is_null(added) && !json_is_array(added))
        return json_err(ERR_INPUT, d, "/added_tokens", "added_tokens is not a list");
    const int64_t n_vocab = (int64_t)(json_object_size(vocab) + json_array_size(vocab)),
                  n_added = (int64_t)json_array_size(added);
    if (n_vocab + n_added > TOKENS_MAX)
        return json_err(ERR_INPUT, d, "/model/vocab", "%lld tokens; at most %d can be used",
                        (long long)(n_vocab + n_added), TOKENS_MAX);
    for (t->slots = 16; t->slots < 2 * (n_vocab + n_added);)
        t->slots *= 2;
    TRY(MEM_NEW(&t->slot, t->slots));
    TRY(MEM_NEW(&t->tok, n_vocab + n_added));
    TRY(MEM_NEW(&t->added, n_added));
    TRY(MEM_NEW(&t->text, text_bytes(vocab, added)));
    t->n_added = (int32_t)n_added;
    if (list)
        TRY(load_model_pieces(t, d, vocab, &used));
    else
        TRY(load_model_vocab(t, d, vocab, n_vocab, &used));
    json_array_foreach(added, i, v) TRY(load_added(t, d, (int32_t)i, v, n_vocab + n_added, &used));
    return 0;
}

int tokenizer_index_added(struct tokenizer *t)
{
    struct scratch k = { 0 };
    int rc = 0;
    for (int32_t i = 0; i < t->n_added; i++) {
        const struct added_token *a = &t->added[i];
        const char *s = t->text + t->tok[a->id].at;
        size_t len = t->tok[a->id].len;
        TRY_OUT(trie_add(&t->all, s, len, i));
        if (a->normalized) TRY_OUT(norm_run(t, &k, s, len, &s, &len));
        TRY_OUT(trie_add(a->normalized ? &t->norm : &t->raw, s, len, i));
    }
out:
    scratch_release(&k);
    return rc;
}

static int merge_error(const struct json_doc *d, int64_t i, const char *what, const char *s,
                       size_t len)
{
    char where[64], shown[80];
    snprintf(where, sizeof where, "/model/merges/%lld", (long long)i);
    err_quote(shown, sizeof shown, s, len);
    return json_err(ERR_INPUT, d, where, "the merge \"%s\" %s", shown, what);
}

/* Both spellings: "a b", or ["a", "b"], whose parts may hold spaces. */
static int merge_parts(const struct json_doc *d, int64_t i, const json_t *v, const char *part[2],
                       size_t len[2])
{
    if (json_is_string(v)) {
        const char *s = json_string_value(v), *gap = strchr(s, ' ');
        const size_t n = strlen(s);
        if (!gap || strchr(gap + 1, ' ') || gap == s || gap[1] == 0)
            return merge_error(d, i, "is not two tokens with one space between them", s, n);
        part[0] = s;
        len[0] = (size_t)(gap - s);
        part[1] = gap + 1;
        len[1] = n - len[0] - 1;
        return 0;
    }
    for (size_t k = 0; k < 2; k++) {
        const json_t *p = json_array_get(v, k);
        if (json_array_size(v) != 2 || !json_is_string(p) || json_string_length(p) == 0)
            return merge_error(d, i, "is not a list of two tokens", "", 0);
        part[k] = json_string_value(p);
        len[k] = json_string_length(p);
    }
    return 0;
}

static int merge_id(const struct tokenizer *t, const struct json_doc *d, int64_t i, int32_t *out,
                    const char *s, size_t len)
{
    *out = vocab_find(t, s, len);
    if (*out < 0 || !t->tok[*out].in_vocab)
        return merge_error(d, i, "is or gives a token that model.vocab lacks", s, len);
    return 0;
}

int tokenizer_load_merges(struct tokenizer *t, const struct json_doc *d)
{
    const json_t *merges = json_object_get(json_object_get(d->root, "model"), "merges");
    const int64_t n = (int64_t)json_array_size(merges);
    struct buf joined = { 0 };
    int rc = 0;
    if (!json_is_array(merges))
        return json_err(ERR_INPUT, d, "/model/merges", "model.merges is not a list");
    if (n > TOKENS_MAX)
        return json_err(ERR_INPUT, d, "/model/merges", "more than %d merges", TOKENS_MAX);
    for (t->merges = 16; t->merges < 2 * n;)
        t->merges *= 2;
    TRY(MEM_NEW(&t->merge, t->merges));
    for (int64_t i = 0; i < n; i++) {
        const char *part[2];
        size_t len[2];
        int32_t left, right, id;
        TRY_OUT(merge_parts(d, i, json_array_get(merges, (size_t)i), part, len));
        TRY_OUT(merge_id(t, d, i, &left, part[0], len[0]));
        TRY_OUT(merge_id(t, d, i, &right, part[1], len[1]));
        buf_clear(&joined);
        TRY_OUT(buf_add(&joined, part[0], len[0]));
        TRY_OUT(buf_add(&joined, part[1], len[1]));
        TRY_OUT(merge_id(t, d, i, &id, joined.data, joined.len));
        /* a pair that is listed twice has its last rank, as in the tokenizers library */
        *merge_slot(t, left, right) = (struct merge){
            .pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right,
            .rank1 = (int32_t)i + 1,
            .id = id,
        };
    }
out:
    buf_release(&joined);
    return rc;
}
