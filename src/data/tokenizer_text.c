/* SPDX-License-Identifier: MIT */
#include "tokenizer_text.h"
#include <string.h>

int utf8_step(const char *s, size_t len, uint32_t *cp)
{
    const uint8_t *p = (const uint8_t *)s;
    const uint8_t c = p[0];
    uint8_t lo = 0x80, hi = 0xbf; /* of the second byte */
    int n;
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    if (c < 0xc2 || c > 0xf4) return -1;
    n = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (c == 0xe0) lo = 0xa0;
    if (c == 0xed) hi = 0x9f;
    if (c == 0xf0) lo = 0x90;
    if (c == 0xf4) hi = 0x8f;
    uint32_t v = c & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if ((size_t)i >= len || p[i] < lo || p[i] > hi) return -i;
        v = v << 6 | (p[i] & 0x3f);
        lo = 0x80;
        hi = 0xbf;
    }
    *cp = v;
    return n;
}

size_t utf8_check(const char *s, size_t len)
{
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        const int n = utf8_step(s + i, len - i, &cp);
        if (n < 0) return i;
        i += (size_t)n;
    }
    return len;
}

int utf8_next(const char *s, uint32_t *cp)
{
    const int n = utf8_step(s, 4, cp); /* valid text: bytes past the sequence are not read */
    BUG_IF(n < 0);
    return n;
}

size_t utf8_back(const char *s, size_t at)
{
    do {
        at--;
    } while (at > 0 && ((uint8_t)s[at] & 0xc0) == 0x80);
    return at;
}

int utf8_put(char out[4], uint32_t cp)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

int utf8_add_lossy(struct buf *b, const char *s, size_t len)
{
    uint32_t cp;
    size_t from = 0;
    for (size_t i = 0; i < len;) {
        const int n = utf8_step(s + i, len - i, &cp);
        if (n > 0) {
            i += (size_t)n;
            continue;
        }
        TRY(buf_add(b, s + from, i - from));
        TRY(buf_adds(b, "\xef\xbf\xbd"));
        i += (size_t)-n;
        from = i;
    }
    return buf_add(b, s + from, len - from);
}

bool cp_is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

/* Drop at both ends what is white space, or from `first` to `last`. */
static void trim(const char **s, size_t *len, bool left, bool right, uint32_t first, uint32_t last)
{
    uint32_t cp;
    while (left && *len > 0) {
        const int n = utf8_step(*s, *len, &cp);
        if (n < 0 || !(cp_is_space(cp) || (cp >= first && cp <= last))) break;
        *s += n;
        *len -= (size_t)n;
    }
    while (right && *len > 0) {
        const size_t at = utf8_back(*s, *len);
        if (utf8_step(*s + at, *len - at, &cp) < 0) break;
        if (!(cp_is_space(cp) || (cp >= first && cp <= last))) break;
        *len = at;
    }
}

void text_strip(const char **s, size_t *len)
{
    trim(s, len, true, true, 0x1c, 0x1f);
}

void text_trim(const char **s, size_t *len, bool left, bool right)
{
    trim(s, len, left, right, 1, 0);
}
