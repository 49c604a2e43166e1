/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <string.h>

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

struct merge *merge_slot(const struct tokenizer *t, int32_t left, int32_t right)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint64_t i = mix(pair);; i++) {
        struct merge *m = &t->merge[i & (uint64_t)(t->merges - 1)];
        if (m->rank1 == 0 || m->pair == pair) return m;
    }
}

static const struct merge *merge_find(const struct tokenizer *t, int32_t left, int32_t right)
{
    const struct merge *m = merge_slot(t, left, right);
    return m->rank1 ? m : NULL;
}

static int symbol_add(struct bpe *b, int32_t id)
{
    TRY(MEM_GROW(&b->id, &b->cap, b->n + 1));
    b->id[b->n++] = id;
    return 0;
}

/* A byte-level word: one symbol a byte. */
static int symbols_of_bytes(const struct tokenizer *t, struct bpe *b, const char *s, size_t len)
{
    bool unk = false;
    for (size_t i = 0; i < len; i++) {
        const int32_t id = t->byte_id[(uint8_t)s[i]];
        if (id < 0 && t->unk < 0)
            return err_set(ERR_INPUT, "%s: model.vocab has no token for the byte 0x%02X", t->path,
                           (uint8_t)s[i]);
        if (id >= 0)
            TRY(symbol_add(b, id));
        else if (!(unk && t->fuse_unk))
            TRY(symbol_add(b, t->unk));
        unk = id < 0;
    }
    return 0;
}

bool vocab_has_bytes(const struct tokenizer *t, const char *s, size_t n)
{
    bool all = t->byte_fallback;
    for (size_t i = 0; i < n && all; i++)
        all = t->byte_id[(uint8_t)s[i]] >= 0;
    return all;
}

/* A SentencePiece word: one symbol a character, else its bytes, else the unknown token, which a run of
 * them shares with fuse_unk. As in the tokenizers library an unknown token is put down when the next
 * known character comes, so bytes in between go before it. */
static int symbols_of_chars(const struct tokenizer *t, struct bpe *b, const char *s, size_t len)
{
    bool pending = false;
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        const int n = utf8_next(s + i, &cp);
        const int32_t id = vocab_find(t, s + i, (size_t)n);
        if (id >= 0 && t->tok[id].in_vocab) {
            if (pending) TRY(symbol_add(b, t->unk));
            pending = false;
            TRY(symbol_add(b, id));
        } else if (vocab_has_bytes(t, s + i, (size_t)n)) {
            for (int k = 0; k < n; k++)
                TRY(symbol_add(b, t->byte_id[(uint8_t)s[i + (size_t)k]]));
        } else if (t->unk >= 0) {
            if (pending && !t->fuse_unk) TRY(symbol_add(b, t->unk));
            pending = true;
        } else {
            return err_set(ERR_INPUT,
                           "%s: model.vocab has no token for the character U+%04X, and there is "
                           "neither byte_fallback nor unk_token",
                           t->path, cp);
        }
        i += (size_t)n;
    }
    return pending ? symbol_add(b, t->unk) : 0;
}

static void heap_swap(struct bpe *b, int64_t i, int64_t j)
{
    const struct bpe_candidate x = b->heap[i];
    b->heap[i] = b->heap[j];
    b->heap[j] = x;
    b->work++;
}

static void heap_up(struct bpe *b, int64_t i)
{
    for (; i > 0 && b->heap[i].key < b->heap[(i - 1) / 2].key; i = (i - 1) / 2)
        heap_swap(b, i, (i - 1) / 2);
}

static void heap_down(struct bpe *b)
{
    for (int64_t i = 0, k; (k = 2 * i + 1) < b->heap_n; i = k) {
        if (k + 1 < b->heap_n && b->heap[k + 1].key < b->heap[k].key) k++;
        if (b->heap[i].key <= b->heap[k].key) return;
        heap_swap(b, i, k);
    }
}

/* Put the merge of symbol i with the one after it, if there is one, into the heap. */
static int candidate(const struct tokenizer *t, struct bpe *b, int64_t i)
{
    if (i < 0 || b->next[i] < 0) return 0;
    const struct merge *m = merge_find(t, b->id[i], b->id[b->next[i]]);
    b->work++;
    if (!m) return 0;
    TRY(MEM_GROW(&b->heap, &b->heap_cap, b->heap_n + 1));
    b->heap[b->heap_n].key = (uint64_t)(uint32_t)m->rank1 << 32 | (uint32_t)i;
    b->heap[b->heap_n].id = m->id;
    heap_up(b, b->heap_n++);
    return 0;
}

static int merge_all(const struct tokenizer *t, struct bpe *b)
{
    TRY(MEM_GROW(&b->prev, &b->prev_cap, b->n));
    TRY(MEM_GROW(&b->next, &b->next_cap, b->n));
    for (int64_t i = 0; i < b->n; i++) {
        b->prev[i] = (int32_t)i - 1;
        b->next[i] = i + 1 < b->n ? (int32_t)i + 1 : -1;
    }
    b->heap_n = 0;
    for (int64_t i = 0; i + 1 < b->n; i++)
        TRY(candidate(t, b, i));
    while (b->heap_n > 0) {
        const int32_t i = (int32_t)(uint32_t)b->heap[0].key, id = b->heap[0].id;
        b->heap[0] = b->heap[--b->heap_n];
        heap_down(b);
        const int32_t j = b->next[i];
        if (b->id[i] < 0 || j < 0) continue;
        const struct merge *m = merge_find(t, b->id[i], b->id[j]);
        b->work++;
        if (!m || m->id != id) continue; /* one of the two has changed since */
        b->id[i] = id;
        b->id[j] = -1;
        b->next[i] = b->next[j];
        if (b->next[j] >= 0) b->prev[b->next[j]] = i;
        TRY(candidate(t, b, b->prev[i]));
        TRY(candidate(t, b, i));
    }
    return 0;
}

/* Most words are short: looking at all neighbours each time beats a heap there. */
static int merge_short(const struct tokenizer *t, struct bpe *b)
{
    enum { SHORT_MAX = 24 };
    int32_t rank[SHORT_MAX], id[SHORT_MAX];
    int64_t n = b->n;
    if (n > SHORT_MAX) return merge_all(t, b);
    for (int64_t i = 0; i + 1 < n; i++) {
        const struct merge *m = merge_find(t, b->id[i], b->id[i + 1]);
        rank[i] = m ? m->rank1 : INT32_MAX;
        id[i] = m ? m->id : -1;
    }
    while (n > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        b->id[best] = id[best];
        n--;
        memmove(b->id + best + 1, b->id + best + 2, (size_t)(n - best - 1) * sizeof *b->id);
        memmove(rank + best, rank + best + 1, (size_t)(n - best - 1) * sizeof *rank);
        memmove(id + best, id + best + 1, (size_t)(n - best - 1) * sizeof *id);
        for (int64_t i = MAX(best - 1, 0); i <= best && i + 1 < n; i++) {
            const struct merge *m = merge_find(t, b->id[i], b->id[i + 1]);
            rank[i] = m ? m->rank1 : INT32_MAX;
            id[i] = m ? m->id : -1;
        }
    }
    b->n = n;
    return 0;
}

/* With ignore_merges a word that is a token is that token, whatever its merges say. Special tokens are
 * left out: text must not become one. */
static int32_t whole_word(const struct tokenizer *t, struct scratch *k, const char *s, size_t len,
                          int *rc)
{
    char out[4];
    *rc = 0;
    if (!t->ignore_merges || len > t->longest) return -1;
    if (t->byte_level) {
        buf_clear(&k->mapped);
        for (size_t i = 0; i < len && *rc == 0; i++)
            *rc = buf_add(&k->mapped, out, (size_t)utf8_put(out, byte_level_char((uint8_t)s[i])));
        if (*rc < 0) return -1;
        s = k->mapped.data;
        len = k->mapped.len;
    }
    const int32_t id = vocab_find(t, s, len);
    if (id < 0 || !t->tok[id].in_vocab) return -1;
    if (t->tok[id].added && t->added[t->tok[id].added - 1].special) return -1;
    return id;
}

static int encode_word(const struct tokenizer *t, struct scratch *k, const char *s, size_t len,
                       struct ids *out)
{
    struct bpe *b = &k->bpe;
    int rc;
    if (len > INT32_MAX - 1) return err_set(ERR_INPUT, "a text of over 2 GiB");
    if (t->is_unigram) return unigram_encode(t, k, s, len, out);
    const int32_t whole = whole_word(t, k, s, len, &rc);
    TRY(rc);
    if (whole >= 0) return ids_add(out, whole);
    b->n = 0;
    if (t->byte_level)
        TRY(symbols_of_bytes(t, b, s, len));
    else
        TRY(symbols_of_chars(t, b, s, len));
    TRY(merge_short(t, b));
    for (int64_t i = 0; i < b->n; i++)
        if (b->id[i] >= 0) TRY(ids_add(out, b->id[i]));
    return 0;
}

static void word_key(uint64_t key[3], const char *s, size_t len)
{
    char text[3 * sizeof *key] = { 0 };
    memcpy(text, s, len);
    text[WORD_BYTES] = (char)len;
    memcpy(key, text, sizeof text);
}

int word_encode(const struct tokenizer *t, struct scratch *k, const char *s, size_t len,
                struct ids *out)
{
    const int64_t before = out->n;
    uint64_t key[3];
    if (len == 0) return 0;
    if (len > WORD_BYTES) return encode_word(t, k, s, len, out);
    if (!k->words) TRY(MEM_NEW(&k->words, WORD_SLOTS));
    word_key(key, s, len);
    const uint64_t hash = mix(key[0] ^ key[1] * 0x9e3779b97f4a7c15u ^ key[2] * 0xc2b2ae3d27d4eb4fu);
    struct word *w = &k->words[hash % WORD_SLOTS];
    if (w->text[0] == key[0] && w->text[1] == key[1] && w->text[2] == key[2])
        return ids_append(out, w->id, w->n);
    TRY(encode_word(t, k, s, len, out));
    const int64_t n = out->n - before;
    if (n > WORD_IDS) return 0;
    memcpy(w->text, key, sizeof w->text);
    memcpy(w->id, out->id + before, (size_t)n * sizeof *w->id);
    w->n = (int32_t)n;
    return 0;
}
