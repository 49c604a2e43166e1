/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

/* Units of a double array (its bits: 0-7 label, 8 has a leaf, 9 the offset is in 256s, 10-30 offset, 31 a leaf, whose bits 0-30 are its
 * value), and the replacements, each ended by a NUL, to which the leaves' values point. */
struct charsmap {
    uint32_t *unit; /* [units] */
    size_t units;
    char *text; /* in bytes */
    size_t text_len;
    uint8_t *bytes;
};

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Padded base64 into out[0..len / 4 * 3); false where it is not that. */
static bool base64_decode(uint8_t *out, size_t *n, const char *s, size_t len)
{
    *n = 0;
    if (len % 4 != 0) return false;
    for (size_t i = 0; i < len; i += 4) {
        const int pad = i + 4 < len ? 0 : (s[i + 3] == '=') + (s[i + 3] == '=' && s[i + 2] == '=');
        uint32_t v = 0;
        for (size_t k = 0; k < 4; k++) {
            const int digit = (int)k >= 4 - pad ? 0 : base64_digit(s[i + k]);
            if (digit < 0) return false;
            v = v << 6 | (uint32_t)digit;
        }
        for (int k = 0; k < 3 - pad; k++)
            out[(*n)++] = (uint8_t)(v >> (16 - 8 * k));
        if (pad && v & (pad == 1 ? 0xFFu : 0xFFFFu)) return false;
    }
    return true;
}

static uint32_t read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int charsmap_parse(struct charsmap *m, const char *base64)
{
    const size_t len = strlen(base64);
    size_t n;
    TRY(MEM_NEW(&m->bytes, (int64_t)(len / 4 * 3 + 3)));
    if (!base64_decode(m->bytes, &n, base64, len))
        return err_set(ERR_INPUT, "precompiled_charsmap is not base64");
    const uint32_t size = n < 4 ? 0 : read_u32(m->bytes);
    if (size < 4 || size % 4 != 0 || size > n - 4)
        return err_set(ERR_INPUT, "precompiled_charsmap is cut short: its trie is not there");
    m->units = size / 4;
    TRY(MEM_NEW(&m->unit, (int64_t)m->units));
    for (size_t i = 0; i < m->units; i++)
        m->unit[i] = read_u32(m->bytes + 4 + 4 * i);
    m->text = (char *)m->bytes + 4 + size;
    m->text_len = n - 4 - size;
    if (utf8_check(m->text, m->text_len) < m->text_len)
        return err_set(ERR_INPUT, "precompiled_charsmap has replacements that are not UTF-8");
    return 0;
}

int charsmap_open(struct charsmap **out, const char *base64)
{
    int rc;
    TRY(MEM_NEW(out, 1));
    rc = charsmap_parse(*out, base64);
    if (rc == 0) return 0;
    charsmap_close(*out);
    *out = NULL;
    return rc;
}

void charsmap_close(struct charsmap *m)
{
    if (!m) return;
    free(m->unit);
    free(m->bytes);
    free(m);
}

static size_t unit_offset(uint32_t u)
{
    return (size_t)(u >> 10) << ((u & 1u << 9) >> 6);
}

/* The replacement of the shortest entry that starts s[0..len), with 1; 0: there is none. */
static int replacement(const struct charsmap *m, const char *s, size_t len, const char **to,
                       size_t *to_len)
{
    size_t at = unit_offset(m->unit[0]);
    for (size_t i = 0; i < len && s[i] != 0; i++) {
        at ^= (uint8_t)s[i];
        if (at >= m->units || (m->unit[at] & (1u << 31 | 0xFF)) != (uint8_t)s[i]) return 0;
        const uint32_t u = m->unit[at];
        at ^= unit_offset(u);
        if (!(u >> 8 & 1)) continue;
        const size_t from = at < m->units ? m->unit[at] & ~(1u << 31) : m->text_len + 1;
        if (from > m->text_len || (from < m->text_len && ((uint8_t)m->text[from] & 0xC0) == 0x80))
            return err_set(ERR_INPUT, "precompiled_charsmap: an entry points to no replacement");
        *to = m->text + from;
        *to_len = strnlen(*to, m->text_len - from);
        return 1;
    }
    return 0;
}

int charsmap_apply(const struct charsmap *m, struct buf *b, const char *s, size_t len)
{
    enum { WHOLE_MAX = 5 };
    const char *to;
    size_t to_len, n;
    uint32_t cp;
    for (size_t at = 0; at < len; at += n) {
        int found = 0;
        n = text_grapheme(s + at, len - at);
        if (n <= WHOLE_MAX) {
            TRY(found = replacement(m, s + at, n, &to, &to_len));
            if (found) TRY(buf_add(b, to, to_len));
        }
        for (size_t i = at, k; !found && i < at + n; i += k) {
            k = (size_t)utf8_next(s + i, &cp);
            int one;
            TRY(one = replacement(m, s + i, k, &to, &to_len));
            TRY(one ? buf_add(b, to, to_len) : buf_add(b, s + i, k));
        }
    }
    return 0;
}
