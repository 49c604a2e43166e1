/* SPDX-License-Identifier: MIT */
#include "tokenizer_text.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

const char *text_unicode_version(void)
{
    return utf8proc_version();
}

/* --- classes and case
 *
 * The tokenizers library takes each from tables of another version of Unicode: \w from 16, punctuation from 8, accents from 9, case from 17. Here
 * they are those of utf8proc, but for these code points. Ranges run over what utf8proc does not have in the class anyway. */

struct range {
    uint32_t first, last;
};

static bool in_ranges(const struct range *r, size_t n, uint32_t cp)
{
    for (size_t i = 0; i < n && cp >= r[i].first; i++)
        if (cp <= r[i].last) return true;
    return false;
}

static bool category_in(uint32_t cp, uint32_t mask)
{
    return mask >> utf8proc_category((utf8proc_int32_t)cp) & 1;
}

#define CATEGORY(c) (1u << UTF8PROC_CATEGORY_##c)
static const uint32_t MARKS = CATEGORY(MN) | CATEGORY(MC) | CATEGORY(ME);
static const uint32_t WORDS = CATEGORY(LU) | CATEGORY(LL) | CATEGORY(LT) | CATEGORY(LM) |
                              CATEGORY(LO) | CATEGORY(MN) | CATEGORY(MC) | CATEGORY(ME) |
                              CATEGORY(ND) | CATEGORY(NL) | CATEGORY(PC);
static const uint32_t PUNCTUATION = CATEGORY(PC) | CATEGORY(PD) | CATEGORY(PS) | CATEGORY(PE) |
                                    CATEGORY(PI) | CATEGORY(PF) | CATEGORY(PO);

bool cp_is_word(uint32_t cp)
{
    static const struct range more[] = {
        { 0x897, 0x897 },     { 0x1C89, 0x1C8A },   { 0x200C, 0x200D },   { 0x24B6, 0x24E9 },
        { 0xA7CB, 0xA7CD },   { 0xA7DA, 0xA7DC },   { 0x105C0, 0x105F3 }, { 0x10D40, 0x10D65 },
        { 0x10D69, 0x10D6D }, { 0x10D6F, 0x10D85 }, { 0x10EC2, 0x10EC4 }, { 0x10EFC, 0x10EFC },
        { 0x11380, 0x11389 }, { 0x1138B, 0x1138B }, { 0x1138E, 0x1138E }, { 0x11390, 0x113B5 },
        { 0x113B7, 0x113C0 }, { 0x113C2, 0x113C2 }, { 0x113C5, 0x113C5 }, { 0x113C7, 0x113CA },
        { 0x113CC, 0x113D3 }, { 0x113E1, 0x113E2 }, { 0x116D0, 0x116E3 }, { 0x11BC0, 0x11BE0 },
        { 0x11BF0, 0x11BF9 }, { 0x11F5A, 0x11F5A }, { 0x13460, 0x143FA }, { 0x16100, 0x16139 },
        { 0x16D40, 0x16D6C }, { 0x16D70, 0x16D79 }, { 0x18CFF, 0x18CFF }, { 0x1CCF0, 0x1CCF9 },
        { 0x1E5D0, 0x1E5FA }, { 0x1F130, 0x1F149 }, { 0x1F150, 0x1F169 }, { 0x1F170, 0x1F189 },
        { 0x2EBF0, 0x2EE5D }
    };
    return category_in(cp, WORDS) || in_ranges(more, COUNT_OF(more), cp);
}

bool cp_is_punctuation(uint32_t cp)
{
    static const struct range not_yet[] = {
        { 0x61D, 0x61D },     { 0x9FD, 0xA76 },     { 0xC77, 0xC84 },     { 0x1B7D, 0x1B7E },
        { 0x2E43, 0x2E5D },   { 0x10EAD, 0x10F89 }, { 0x1144B, 0x1145D }, { 0x11660, 0x116B9 },
        { 0x1183B, 0x11FFF }, { 0x12FF1, 0x12FF2 }, { 0x16E97, 0x16FE2 }, { 0x1E95E, 0x1E95F }
    };
    if (cp < 0x80)
        return cp > ' ' && cp < 0x7f && !(cp >= '0' && cp <= '9') &&
               !((cp | 0x20) >= 'a' && (cp | 0x20) <= 'z');
    if (cp == 0x166D || cp == 0x111C9) return true;
    return category_in(cp, PUNCTUATION) && !in_ranges(not_yet, COUNT_OF(not_yet), cp);
}

/* A combining mark, as StripAccents sees them. */
static bool is_accent(uint32_t cp)
{
    static const struct range not_yet[] = {
        { 0x7FD, 0x7FD },     { 0x898, 0x8D3 },     { 0x9FE, 0x9FE },     { 0xAFA, 0xAFF },
        { 0xB55, 0xB55 },     { 0xC04, 0xC3C },     { 0xCF3, 0xD00 },     { 0xD3B, 0xD3C },
        { 0xD81, 0xD81 },     { 0xEBA, 0xEBA },     { 0xECE, 0xECE },     { 0x1715, 0x1715 },
        { 0x180F, 0x180F },   { 0x1ABF, 0x1ACE },   { 0x1CF7, 0x1CF7 },   { 0x1DF6, 0x1DFA },
        { 0xA82C, 0xA82C },   { 0xA8FF, 0xA8FF },   { 0x10D24, 0x10F85 }, { 0x11070, 0x11074 },
        { 0x110C2, 0x110C2 }, { 0x11145, 0x11146 }, { 0x111C9, 0x111C9 }, { 0x111CE, 0x111CF },
        { 0x11241, 0x11241 }, { 0x1133B, 0x1133B }, { 0x1145E, 0x1145E }, { 0x1182C, 0x11A99 },
        { 0x11D31, 0x13455 }, { 0x16F4F, 0x16F4F }, { 0x16F7F, 0x16F87 }, { 0x16FE4, 0x16FF1 },
        { 0x1CF00, 0x1CF46 }, { 0x1E08F, 0x1E4EF }
    };
    if (cp < 0x300) return false;
    if (cp == 0x1CF2 || cp == 0x1CF3) return true;
    return category_in(cp, MARKS) && !in_ranges(not_yet, COUNT_OF(not_yet), cp);
}

static uint32_t lower_of(uint32_t cp)
{
    static const struct {
        uint32_t first, last, to;
    } newer[] = {
        { 0x1C89, 0x1C89, 0x1C8A },    { 0xA7CB, 0xA7CB, 0x264 },  { 0xA7CC, 0xA7CC, 0xA7CD },
        { 0xA7CE, 0xA7CE, 0xA7CF },    { 0xA7D2, 0xA7D2, 0xA7D3 }, { 0xA7D4, 0xA7D4, 0xA7D5 },
        { 0xA7DA, 0xA7DA, 0xA7DB },    { 0xA7DC, 0xA7DC, 0x19B },  { 0x10D50, 0x10D65, 0x10D70 },
        { 0x16EA0, 0x16EB8, 0x16EBB },
    };
    for (size_t i = 0; i < COUNT_OF(newer) && cp >= newer[i].first; i++)
        if (cp <= newer[i].last) return newer[i].to + cp - newer[i].first;
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
}

int text_lower(struct buf *b, const char *s, size_t len)
{
    char out[4];
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        i += (size_t)utf8_next(s + i, &cp);
        if (cp == 0x130) /* the one that becomes two: i and the dot */
            TRY(buf_adds(b, "i\xcc\x87"));
        else
            TRY(buf_add(b, out, (size_t)utf8_put(out, lower_of(cp))));
    }
    return 0;
}

int text_strip_accents(struct buf *b, const char *s, size_t len)
{
    uint32_t cp;
    size_t from = 0;
    for (size_t i = 0; i < len;) {
        const size_t at = i;
        i += (size_t)utf8_next(s + i, &cp);
        if (!is_accent(cp)) continue;
        TRY(buf_add(b, s + from, at - from));
        from = i;
    }
    return buf_add(b, s + from, len - from);
}

/* --- normalization forms ----------------------------------------------------------------------------------------- */

enum { DECOMPOSED_MAX = 32 }; /* code points; the longest is U+FDFA's with 18 */

/* Marks of Unicode 10 to 15, which the library's tables do not have: to it they are no marks, so that they keep their place and nothing
 * combines across them. */
static bool is_newer_mark(uint32_t cp)
{
    static const struct range newer[] = {
        { 0x7FD, 0x7FD },     { 0x898, 0x8D3 },     { 0x9FE, 0x9FE },     { 0xC3C, 0xC3C },
        { 0xD3B, 0xD3C },     { 0xEBA, 0xEBA },     { 0x1715, 0x1715 },   { 0x1ABF, 0x1ACE },
        { 0x1DF6, 0x1DFA },   { 0xA82C, 0xA82C },   { 0x10D24, 0x10F85 }, { 0x11070, 0x11070 },
        { 0x1133B, 0x1133B }, { 0x1145E, 0x1145E }, { 0x11839, 0x11A99 }, { 0x11D42, 0x11F42 },
        { 0x16FF0, 0x16FF1 }, { 0x1E08F, 0x1E4EF }
    };
    return cp >= newer[0].first && in_ranges(newer, COUNT_OF(newer), cp);
}

static int class_of(int32_t cp)
{
    return is_newer_mark((uint32_t)cp) ? 0 : utf8proc_get_property(cp)->combining_class & 255;
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

static bool is_ascii(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)s[i] >= 0x80) return false;
    return true;
}

/* Characters of Unicode 12 to 15 with decompositions that the library does not know. */
static bool is_kept(uint32_t cp)
{
    static const struct range newer[] = { { 0x32FF, 0x32FF },   { 0xA7F2, 0xA7F4 },
                                          { 0xAB69, 0xAB69 },   { 0x10781, 0x107BA },
                                          { 0x11938, 0x11938 }, { 0x1E030, 0x1E06D },
                                          { 0x1F16C, 0x1F16C }, { 0x1FBF0, 0x1FBF9 } };
    return in_ranges(newer, COUNT_OF(newer), cp);
}

/* Stretches between newer marks, each by itself; returns the new length. */
static int64_t compose_marks(int32_t *cp, int64_t n)
{
    int64_t out = 0;
    for (int64_t from = 0, end; from < n; from = end) {
        for (end = from + 1; end < n && !is_newer_mark((uint32_t)cp[end]); end++) {
        }
        memmove(cp + out, cp + from, (size_t)(end - from) * sizeof *cp);
        const utf8proc_ssize_t k =
            utf8proc_normalize_utf32(cp + out, end - from, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        BUG_IF(k < 0);
        out += k;
    }
    return out;
}

int text_normalize(struct buf *b, enum text_form form, const char *s, size_t len)
{
    const bool compat = form == TEXT_NFKC || form == TEXT_NFKD,
               compose = form == TEXT_NFC || form == TEXT_NFKC;
    const int options = UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    int32_t *cp = NULL, *tmp = NULL;
    int64_t cap = 0, tmp_cap = 0, n = 0;
    int rc = 0, boundary = 0;
    char out[4];
    if (form == TEXT_NFC ? nfc_already(s, len) : is_ascii(s, len)) return buf_add(b, s, len);
    TRY_OUT(MEM_GROW(&cp, &cap, (int64_t)len + DECOMPOSED_MAX));
    for (size_t i = 0; i < len;) {
        uint32_t c;
        i += (size_t)utf8_next(s + i, &c);
        TRY_OUT(MEM_GROW(&cp, &cap, n + DECOMPOSED_MAX));
        if (c < 0xa0 || (c < 0xc0 && !compat) || is_kept(c)) {
            cp[n++] = (int32_t)c;
            continue;
        }
        const utf8proc_ssize_t k = utf8proc_decompose_char((int32_t)c, cp + n, DECOMPOSED_MAX,
                                                           (utf8proc_option_t)options, &boundary);
        BUG_IF(k < 0 || k > DECOMPOSED_MAX);
        n += k;
    }
    TRY_OUT(order_marks(cp, n, &tmp, &tmp_cap));
    if (compose) n = compose_marks(cp, n);
    for (int64_t i = 0; i < n; i++)
        TRY_OUT(buf_add(b, out, (size_t)utf8_put(out, (uint32_t)cp[i])));
out:
    free(tmp);
    free(cp);
    return rc;
}

size_t text_grapheme(const char *s, size_t len)
{
    utf8proc_int32_t state = 0;
    uint32_t last, cp;
    size_t n = (size_t)utf8_next(s, &last);
    while (n < len) {
        const int step = utf8_next(s + n, &cp);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)last, (utf8proc_int32_t)cp, &state))
            break;
        n += (size_t)step;
        last = cp;
    }
    return n;
}
