/* SPDX-License-Identifier: MIT */
#include "tokenizer_text.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

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

const char *text_unicode_version(void)
{
    return utf8proc_version();
}

bool cp_is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

bool cp_is_word(uint32_t cp)
{
    if (cp == 0x200c || cp == 0x200d) return true;
    if (cp >= 0x24b6 && cp <= 0x24e9) return true; /* circled letters are Alphabetic symbols */
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

static bool strip_space(uint32_t cp)
{
    return cp_is_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

void text_strip(const char **s, size_t *len)
{
    uint32_t cp;
    while (*len > 0) {
        const int n = utf8_step(*s, *len, &cp);
        if (n < 0 || !strip_space(cp)) break;
        *s += n;
        *len -= (size_t)n;
    }
    while (*len > 0) {
        const size_t at = utf8_back(*s, *len);
        if (utf8_step(*s + at, *len - at, &cp) < 0 || !strip_space(cp)) break;
        *len = at;
    }
}

static int class_of(int32_t cp)
{
    return utf8proc_get_property(cp)->combining_class & 255;
}

static void sort_marks(int32_t *cp, int64_t n, int32_t *tmp)
{
    int64_t count[256] = { 0 }, at = 0;
    for (int64_t i = 0; i < n; i++)
        count[class_of(cp[i])]++;
    for (int c = 0; c < 256; c++) {
        const int64_t here = count[c];
        count[c] = at;
        at += here;
    }
    for (int64_t i = 0; i < n; i++)
        tmp[count[class_of(cp[i])]++] = cp[i];
    memcpy(cp, tmp, (size_t)n * sizeof *cp);
}

/* utf8proc orders marks by exchanging neighbours, quadratic in the length of a run; a stable counting
 * sort over the 255 classes gives the same order. */
static int order_marks(int32_t *cp, int64_t n, int32_t **tmp, int64_t *cap)
{
    for (int64_t i = 0; i < n;) {
        int64_t end = i;
        bool sorted = true;
        for (int last = 0, c; end < n && (c = class_of(cp[end])) != 0; end++) {
            sorted = sorted && c >= last;
            last = c;
        }
        if (!sorted) {
            TRY(MEM_GROW(tmp, cap, end - i));
            sort_marks(cp + i, end - i, *tmp);
        }
        i = MAX(end, i + 1);
    }
    return 0;
}

/* Neither changes by itself nor combines with what stands before it. Below U+0300 nothing does. */
static bool is_inert(uint32_t cp)
{
    enum { SECOND = 0x8000, JAMO_VOWEL = 0x1160, JAMO_LAST = 0x11ff };
    if (cp < 0x300) return true;
    if (cp >= JAMO_VOWEL && cp <= JAMO_LAST) return false;
    const utf8proc_property_t *p = utf8proc_get_property((int32_t)cp);
    const bool second = p->comb_index != UINT16_MAX && (p->comb_index & SECOND);
    const bool canonical = p->decomp_seqindex != UINT16_MAX && p->decomp_type == 0;
    return p->combining_class == 0 && !second && !canonical;
}

/* True for most texts, without looking at how marks are ordered. */
static bool nfc_already(const char *s, size_t len)
{
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        if ((uint8_t)s[i] < 0xcc) {
            i++;
            continue;
        }
        i += (size_t)utf8_next(s + i, &cp);
        if (!is_inert(cp)) return false;
    }
    return true;
}

int text_nfc(struct buf *b, const char *s, size_t len)
{
    int32_t *cp = NULL, *tmp = NULL;
    int64_t cap = 0, tmp_cap = 0, n = 0;
    int rc = 0, boundary = 0;
    char out[4];
    if (nfc_already(s, len)) return buf_add(b, s, len);
    TRY_OUT(MEM_GROW(&cp, &cap, (int64_t)len + 16));
    for (size_t i = 0; i < len;) {
        uint32_t c;
        i += (size_t)utf8_next(s + i, &c);
        if (c < 0xc0) { /* no decomposition */
            TRY_OUT(MEM_GROW(&cp, &cap, n + 1));
            cp[n++] = (int32_t)c;
            continue;
        }
        TRY_OUT(MEM_GROW(&cp, &cap, n + 16));
        const utf8proc_ssize_t k =
            utf8proc_decompose_char((int32_t)c, cp + n, 16, UTF8PROC_DECOMPOSE, &boundary);
        BUG_IF(k < 0 || k > 16); /* the longest canonical decomposition has 4 */
        n += k;
    }
    TRY_OUT(order_marks(cp, n, &tmp, &tmp_cap));
    n = utf8proc_normalize_utf32(cp, n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    BUG_IF(n < 0);
    for (int64_t i = 0; i < n; i++)
        TRY_OUT(buf_add(b, out, (size_t)utf8_put(out, (uint32_t)cp[i])));
out:
    free(tmp);
    free(cp);
    return rc;
}
