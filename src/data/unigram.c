/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double UNK_PENALTY = 10.0;

void unigram_release(struct unigram *u)
{
    free(u->score);
    free(u->node);
    free(u->slot);
    memset(u, 0, sizeof *u);
}

static uint64_t edge_hash(int32_t parent, uint8_t byte)
{
    const uint64_t h = ((uint64_t)(uint32_t)parent << 8 | byte) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

/* The slot of a node's child: its number, or the free slot (0) where it would go. */
static int32_t *edge_slot(const struct unigram *u, int32_t parent, uint8_t byte)
{
    for (uint64_t i = edge_hash(parent, byte);; i++) {
        int32_t *slot = &u->slot[i & (uint64_t)(u->slots - 1)];
        if (*slot == 0) return slot;
        const struct unigram_node *k = &u->node[*slot];
        if (k->parent == parent && k->byte == byte) return slot;
    }
}

static int node_add(struct unigram *u, int32_t parent, uint8_t byte)
{
    TRY(MEM_GROW(&u->node, &u->cap, u->n + 1));
    u->node[u->n++] = (struct unigram_node){ .parent = parent, .id = -1, .byte = byte };
    return 0;
}

static int piece_add(struct unigram *u, const char *s, size_t len, int32_t id)
{
    int32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t *slot = edge_slot(u, at, (uint8_t)s[i]);
        if (*slot == 0) {
            TRY(node_add(u, at, (uint8_t)s[i]));
            *slot = (int32_t)u->n - 1;
        }
        at = *slot;
    }
    u->node[at].id = id;
    return 0;
}

double unigram_score(double x)
{
    char text[32], power[16];
    int exponent = 0;
    uint64_t digits = 0;
    if (x == 0 || !isfinite(x)) return x;
    for (int places = 14; places <= 16; places++) {
        snprintf(text, sizeof text, "%.*e", places, fabs(x));
        if (strtod(text, NULL) == fabs(x)) break;
    }
    const char *s = text; /* "d.dddde-NN" */
    for (bool point = false; *s != 'e'; s++) {
        if (*s >= '0' && *s <= '9') {
            digits = digits * 10 + (uint64_t)(*s - '0');
            exponent -= point;
        } else {
            point = true;
        }
    }
    int power_of_ten = 0;
    for (const char *p = s + 2; *p; p++)
        power_of_ten = power_of_ten * 10 + (*p - '0');
    exponent += s[1] == '-' ? -power_of_ten : power_of_ten;
    for (; digits % 10 == 0; digits /= 10)
        exponent++;
    double y = (double)digits;
    for (; exponent < -308; exponent += 308)
        y /= 1e308;
    snprintf(power, sizeof power, "1e%d", abs(exponent));
    y = exponent < 0 ? y / strtod(power, NULL) : y * strtod(power, NULL);
    return x < 0 ? -y : y;
}

int unigram_index(struct tokenizer *t)
{
    struct unigram *u = &t->unigram;
    int64_t bytes = 0, pieces = 0;
    double least = INFINITY;
    for (; pieces < t->size && t->tok[pieces].in_vocab; pieces++) {
        bytes += t->tok[pieces].len;
        least = MIN(least, u->score[pieces]);
    }
    if (bytes > INT32_MAX / 4)
        return err_set(ERR_INPUT, "%s: model.vocab has over 512 MiB of text", t->path);
    u->unk_score = least - UNK_PENALTY;
    for (u->slots = 16; u->slots < 2 * bytes;)
        u->slots *= 2;
    TRY(MEM_NEW(&u->slot, u->slots));
    TRY(node_add(u, -1, 0));
    for (int64_t i = 0; i < pieces; i++)
        TRY(piece_add(u, t->text + t->tok[i].at, t->tok[i].len, (int32_t)i));
    return 0;
}

/* The piece `id` from `from` to `to`, if it beats what ends at `to` so far; the first of equals stays. */
static bool offer(struct unigram_best *best, int64_t from, int64_t to, double score, int32_t id)
{
    const double sum = score + best[from].score;
    if (best[to].start >= 0 && !(sum > best[to].score)) return false;
    best[to].score = sum;
    best[to].start = (int32_t)from;
    best[to].id = id;
    return true;
}

/* Offer all pieces that start at s[at]; a character that is no piece of its own is offered as unknown. */
static int offer_from(const struct tokenizer *t, struct unigram_best *best, const char *s,
                      size_t len, size_t at, size_t *bytes)
{
    const struct unigram *u = &t->unigram;
    uint32_t cp;
    bool alone = false;
    *bytes = (size_t)utf8_next(s + at, &cp);
    int32_t node = 0;
    for (size_t i = at; i < len; i++) {
        node = *edge_slot(u, node, (uint8_t)s[i]);
        if (node == 0) break;
        const int32_t id = u->node[node].id;
        if (id < 0) continue;
        offer(best, (int64_t)at, (int64_t)i + 1, u->score[id], id);
        alone = alone || i + 1 - at == *bytes;
    }
    if (alone || !offer(best, (int64_t)at, (int64_t)(at + *bytes), u->unk_score, t->unk)) return 0;
    if (t->unk >= 0) return 0;
    return err_set(ERR_INPUT,
                   "%s: model.vocab has no token for the character U+%04X, and there is no unk_id",
                   t->path, cp);
}

/* A run of unknowns: the token of just that text, else its bytes, else the unknown token. */
static int unknown_add(const struct tokenizer *t, const char *s, size_t len, struct ids *out)
{
    const int32_t id = vocab_find(t, s, len);
    if (id >= 0 && t->tok[id].in_vocab) return ids_add(out, id);
    if (!vocab_has_bytes(t, s, len)) return ids_add(out, t->unk);
    for (size_t i = 0; i < len; i++)
        TRY(ids_add(out, t->byte_id[(uint8_t)s[i]]));
    return 0;
}

int unigram_encode(const struct tokenizer *t, struct scratch *k, const char *s, size_t len,
                   struct ids *out)
{
    size_t bytes;
    TRY(MEM_GROW(&k->best, &k->best_cap, (int64_t)len + 1));
    struct unigram_best *best = k->best;
    for (size_t i = 0; i <= len; i++)
        best[i] = (struct unigram_best){ .start = -1 };
    for (size_t at = 0; at < len; at += bytes)
        TRY(offer_from(t, best, s, len, at, &bytes));
    for (int32_t at = (int32_t)len; at > 0; at = best[at].start)
        best[best[at].start].end = at;
    for (int32_t at = 0, end; at < (int32_t)len; at = end) {
        end = best[at].end;
        if (t->unk < 0 || best[end].id != t->unk) {
            TRY(ids_add(out, best[end].id));
            continue;
        }
        while (end < (int32_t)len && best[best[end].end].id == t->unk)
            end = best[end].end;
        TRY(unknown_add(t, s + at, (size_t)(end - at), out));
    }
    return 0;
}
