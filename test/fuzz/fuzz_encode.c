/* SPDX-License-Identifier: MIT
 * Text through the encoder against a slow oracle: merges are applied one by one, the lowest rank first, the leftmost of equals. The
 * merges are a fixed set over a few letters; NFC is checked against utf8proc's own on the same bytes. */
#include "../tokenizer_fixture.h"
#include "../../src/data/tokenizer_text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MERGES = 60, BYTES = 256, TEXT_MAX = 600 };
static struct {
    int32_t left, right;
} merge[MERGES];
static char text_of[BYTES + MERGES][64];
static struct tokenizer *tok;
static char *dir;

static void clean(void)
{
    tokenizer_close(tok);
    fixture_remove(dir);
}

/* Pairs of earlier tokens, drawn from a fixed sequence, whose text is new. */
static void begin(void)
{
    static const char letters[] = "abcxy ";
    struct buf vocab = { 0 }, merges = { 0 };
    uint32_t x = 12345;
    int32_t n = 0, known[6 + MERGES];
    for (int i = 0; i < 6; i++) {
        known[i] = letters[i];
        snprintf(text_of[known[i]], sizeof text_of[0], "%s",
                 letters[i] == ' ' ? "\xc4\xa0" : (char[]){ letters[i], 0 });
    }
    while (n < MERGES) {
        x = x * 1664525u + 1013904223u;
        const int32_t l = known[(x >> 8 & 0xff) % (uint32_t)(6 + n)],
                      r = known[(x >> 16) % (uint32_t)(6 + n)];
        char text[200];
        bool old = false;
        snprintf(text, sizeof text, "%s%s", text_of[l], text_of[r]);
        for (int32_t i = 0; i < BYTES + n; i++)
            old = old || strcmp(text_of[i], text) == 0;
        if (old || strlen(text) >= 24) continue;
        merge[n].left = l;
        merge[n].right = r;
        known[6 + n] = BYTES + n;
        snprintf(text_of[BYTES + n], sizeof text_of[0], "%s", text);
        buf_addf(&vocab, "%s\"%s\": %d", n ? ", " : "", text, BYTES + n);
        buf_addf(&merges, "%s[\"%s\", \"%s\"]", n ? ", " : "[", text_of[l], text_of[r]);
        n++;
    }
    buf_adds(&merges, "]");
    dir = fixture_dir();
    tok = fixture_open(
        dir, fixture_bytes(&(struct fixture){ .vocab = vocab.data, .merges = merges.data }));
    buf_release(&vocab);
    buf_release(&merges);
    atexit(clean);
}

static int64_t slow_encode(int32_t *id, const uint8_t *s, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        id[i] = s[i];
    for (;;) {
        int best = MERGES;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < n; i++)
            for (int m = 0; m < best; m++)
                if (merge[m].left == id[i] && merge[m].right == id[i + 1]) {
                    best = m;
                    at = i;
                }
        if (best == MERGES) return n;
        id[at] = BYTES + best;
        memmove(id + at + 1, id + at + 2, (size_t)(n - at - 2) * sizeof *id);
        n--;
    }
}

static void check_nfc(const char *s, size_t len)
{
    struct buf b = { 0 };
    char *z = strndup(s, len);
    BUG_IF(!z || text_normalize(&b, TEXT_NFC, s, len) < 0);
    utf8proc_uint8_t *want = utf8proc_NFC((const utf8proc_uint8_t *)z);
    BUG_IF(!want || strlen((const char *)want) != b.len || (b.len && memcmp(want, b.data, b.len)));
    free(want);
    free(z);
    buf_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int32_t want[TEXT_MAX];
    struct ids v = { 0 };
    if (size > TEXT_MAX) return 0;
    if (!tok) begin();
    const char *s = (const char *)data;
    const int rc = tokenizer_encode(tok, s, size, SPECIALS_AS_TEXT, &v);
    if (utf8_check(s, size) < size) {
        BUG_IF(rc != ERR_INPUT || v.n != 0);
        return 0;
    }
    const int64_t n = slow_encode(want, data, (int64_t)size);
    BUG_IF(rc < 0 || v.n != n || (n && memcmp(v.id, want, (size_t)n * sizeof *want)));
    ids_release(&v);
    if (size && !memchr(s, 0, size)) check_nfc(s, size);
    return 0;
}
