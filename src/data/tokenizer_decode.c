/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

/* Strings one after the other: item i is text[end[i-1] .. end[i]). */
struct items {
    struct buf text;
    int64_t *end;
    int64_t n, cap;
};

static int item_end(struct items *v)
{
    TRY(MEM_GROW(&v->end, &v->cap, v->n + 1));
    v->end[v->n++] = (int64_t)v->text.len;
    return 0;
}

static const char *item(const struct items *v, int64_t i, size_t *len)
{
    const int64_t at = i ? v->end[i - 1] : 0;
    *len = (size_t)(v->end[i] - at);
    return v->text.data ? v->text.data + at : "";
}

/* A token of characters that all stand for bytes becomes those bytes; another one is text as it is. */
static int byte_level_item(struct buf *b, const char *s, size_t len)
{
    const size_t start = b->len;
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        i += (size_t)utf8_next(s + i, &cp);
        const int byte = byte_level_byte(cp);
        if (byte < 0) {
            b->len = start;
            return buf_add(b, s, len);
        }
        const char c = (char)byte;
        TRY(buf_add(b, &c, 1));
    }
    return 0;
}

static int decode_byte_level(const struct items *in, struct items *out)
{
    struct buf bytes = { 0 };
    size_t len;
    int rc = 0;
    for (int64_t i = 0; i < in->n; i++) {
        const char *s = item(in, i, &len);
        TRY_OUT(byte_level_item(&bytes, s, len));
    }
    if (bytes.len) TRY_OUT(utf8_add_lossy(&out->text, bytes.data, bytes.len));
    TRY_OUT(item_end(out));
out:
    buf_release(&bytes);
    return rc;
}

static int decode_replace(const struct decode_step *p, const struct items *in, struct items *out)
{
    const size_t n = strlen(p->from);
    size_t len;
    for (int64_t i = 0; i < in->n; i++) {
        const char *s = item(in, i, &len), *end = s + len, *hit;
        while (s < end && (hit = memmem(s, (size_t)(end - s), p->from, n))) {
            TRY(buf_add(&out->text, s, (size_t)(hit - s)));
            TRY(buf_adds(&out->text, p->to));
            s = hit + n;
        }
        TRY(buf_add(&out->text, s, (size_t)(end - s)));
        TRY(item_end(out));
    }
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* <0xNN>, two hexadecimal digits; -1: another text. */
static int byte_token(const char *s, size_t len)
{
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    const int hi = hex_digit(s[3]), lo = hex_digit(s[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

/* A run of bytes that is not UTF-8 as a whole becomes one U+FFFD a byte. */
static int flush_bytes(struct buf *bytes, struct items *out)
{
    if (bytes->len == 0) return 0;
    if (utf8_check(bytes->data, bytes->len) == bytes->len) {
        TRY(buf_add(&out->text, bytes->data, bytes->len));
    } else {
        for (size_t i = 0; i < bytes->len; i++)
            TRY(buf_adds(&out->text, "\xef\xbf\xbd"));
    }
    bytes->len = 0;
    return item_end(out);
}

static int decode_byte_fallback(const struct items *in, struct items *out)
{
    struct buf bytes = { 0 };
    size_t len;
    int rc = 0;
    for (int64_t i = 0; i < in->n; i++) {
        const char *s = item(in, i, &len);
        const int b = byte_token(s, len);
        if (b >= 0) {
            const char c = (char)b;
            TRY_OUT(buf_add(&bytes, &c, 1));
            continue;
        }
        TRY_OUT(flush_bytes(&bytes, out));
        TRY_OUT(buf_add(&out->text, s, len));
        TRY_OUT(item_end(out));
    }
    TRY_OUT(flush_bytes(&bytes, out));
out:
    buf_release(&bytes);
    return rc;
}

static int decode_strip(const struct decode_step *p, const struct items *in, struct items *out)
{
    const size_t n = strlen(p->from);
    size_t len;
    for (int64_t i = 0; i < in->n; i++) {
        const char *s = item(in, i, &len);
        for (int64_t k = 0; k < p->start && len >= n && memcmp(s, p->from, n) == 0; k++) {
            s += n;
            len -= n;
        }
        for (int64_t k = 0; k < p->stop && len >= n && memcmp(s + len - n, p->from, n) == 0; k++)
            len -= n;
        TRY(buf_add(&out->text, s, len));
        TRY(item_end(out));
    }
    return 0;
}

/* Marks become spaces; those of the first token, which the encoder put there, go. */
static int decode_metaspace(const struct decode_step *p, const struct items *in, struct items *out)
{
    const size_t n = strlen(p->from);
    size_t len;
    for (int64_t i = 0; i < in->n; i++) {
        const char *s = item(in, i, &len), *end = s + len;
        while (s < end) {
            if ((size_t)(end - s) >= n && memcmp(s, p->from, n) == 0) {
                if (i > 0 || p->keep_first) TRY(buf_add(&out->text, " ", 1));
                s += n;
            } else {
                TRY(buf_add(&out->text, s++, 1));
            }
        }
        TRY(item_end(out));
    }
    return 0;
}

static int decode_fuse(const struct items *in, struct items *out)
{
    if (in->text.len) TRY(buf_add(&out->text, in->text.data, in->text.len));
    return item_end(out);
}

static int decode_step(const struct decode_step *p, const struct items *in, struct items *out)
{
    out->text.len = 0;
    out->n = 0;
    switch (p->kind) {
    case DECODE_BYTE_LEVEL:
        return decode_byte_level(in, out);
    case DECODE_REPLACE:
        return decode_replace(p, in, out);
    case DECODE_BYTE_FALLBACK:
        return decode_byte_fallback(in, out);
    case DECODE_FUSE:
        return decode_fuse(in, out);
    case DECODE_STRIP:
        return decode_strip(p, in, out);
    case DECODE_METASPACE:
        return decode_metaspace(p, in, out);
    }
    return 0;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *id, int64_t n, bool skip_special,
                     struct buf *b)
{
    struct items v[2] = { 0 };
    int rc = 0;
    for (int64_t i = 0; i < n; i++) {
        if (id[i] < 0 || id[i] >= t->size || t->tok[id[i]].len == 0) continue;
        const struct token *k = &t->tok[id[i]];
        if (skip_special && k->added && t->added[k->added - 1].special) continue;
        /* without decoders words stand apart, as nothing says how they go together */
        if (t->n_decodes == 0 && v[0].n > 0) TRY_OUT(buf_add(&v[0].text, " ", 1));
        TRY_OUT(buf_add(&v[0].text, t->text + k->at, k->len));
        TRY_OUT(item_end(&v[0]));
    }
    if (v[0].n == 0) goto out;
    for (int32_t i = 0; i < t->n_decodes; i++)
        TRY_OUT(decode_step(&t->decodes[i], &v[i & 1], &v[(i & 1) ^ 1]));
    const struct buf *text = &v[t->n_decodes & 1].text;
    if (text->len) TRY_OUT(utf8_add_lossy(b, text->data, text->len));
out:
    for (int i = 0; i < 2; i++) {
        buf_release(&v[i].text);
        free(v[i].end);
    }
    return rc;
}
