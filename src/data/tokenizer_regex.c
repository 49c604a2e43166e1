/* SPDX-License-Identifier: MIT */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer_impl.h"
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Both engines read the same text but not alike: Oniguruma's \s is White_Space (PCRE2 adds U+180E), its ^
 * and $ stand at every line, \h is a hexadecimal digit, classes nest. What is written here is passed on
 * or rewritten; anything else is refused, so that no pattern splits text in another way than it should. */
static const char SPACE[] =
    "\\p{Z}\\t-\\r\\x{85}\\p{Z}"; /* no end of it makes a range with a hyphen beside it */
/* What Unicode 15 and 16 added to the letters and numbers, which the tokenizers library knows and PCRE2 before 10.45 does not:
 * with it a text has the same tokens whatever the version here. */
static const char NEW_LETTERS[] =
    "\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}"
    "\\x{10D4A}-\\x{10D65}\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}"
    "\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}"
    "\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}\\x{11F12}-\\x{11F33}"
    "\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}"
    "\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}"
    "\\x{1E030}-\\x{1E06D}\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}"
    "\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}";
static const char NEW_NUMBERS[] =
    "\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}"
    "\\x{16130}-\\x{16139}\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}"
    "\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}";
enum { PATTERN_MAX = 1 << 16 };

struct reader {
    const char *at, *end, *start;
    struct buf *out;
    bool in_class;
};

static int refuse(const struct reader *r, const char *what)
{
    char shown[80];
    err_quote(shown, sizeof shown, r->at, (size_t)(r->end - r->at));
    return err_set(ERR_INPUT, "the regular expression cannot be used: %s at \"%s\"", what, shown);
}

static int pass(struct reader *r, size_t n)
{
    TRY(buf_add(r->out, r->at, n));
    r->at += n;
    return 0;
}

/* \p{L}, \P{Lu}; names of more than two letters are scripts, which PCRE2 would take with their
 * extensions. */
static int read_property(struct reader *r)
{
    const char *close = memchr(r->at, '}', (size_t)(r->end - r->at));
    if (r->end - r->at < 4 || r->at[2] != '{' || !close || close - r->at > 40)
        return refuse(r, "a property without {name}");
    const char *name = r->at + 3;
    if (close - name == 1 && r->at[1] == 'p' && (*name == 'L' || *name == 'N')) {
        TRY(buf_addf(r->out, r->in_class ? "\\p{%c}%s\\p{%c}" : "[\\p{%c}%s\\p{%c}]", *name,
                     *name == 'L' ? NEW_LETTERS : NEW_NUMBERS, *name));
        r->at = close + 1;
        return 0;
    }
    if (*name == '^' || (close - name == 1 && (*name == 'L' || *name == 'N')))
        return refuse(r, "this property's complement");
    TRY(buf_add(r->out, r->at, (size_t)(name - r->at)));
    if (close - name > 2) TRY(buf_adds(r->out, "sc:"));
    r->at = name;
    return pass(r, (size_t)(close + 1 - name));
}

/* {2}, {2,}, {1,3}, {1,3}?; what follows it means different things. */
static int read_count(struct reader *r)
{
    const char *p = r->at + 1;
    bool comma = false;
    while (p < r->end && ((*p >= '0' && *p <= '9') || (*p == ',' && !comma && p > r->at + 1)))
        comma = *p++ == ',' || comma;
    if (p >= r->end || *p != '}' || p == r->at + 1) return refuse(r, "a { that is no count");
    p++;
    if (p < r->end && (*p == '+' || *p == '*' || *p == '{' || (*p == '?' && !comma)))
        return refuse(r, "a quantifier after a count");
    return pass(r, (size_t)(p - r->at));
}

/* \x{85} or \u0085 */
static int read_code(struct reader *r)
{
    static const char hex[] = "0123456789abcdefABCDEF";
    const bool brace = r->at[1] == 'x' && r->end - r->at > 2 && r->at[2] == '{';
    const char *from = r->at + (brace ? 3 : 2);
    const size_t max = brace ? 6 : r->at[1] == 'u' ? 4 : 2;
    size_t n = 0;
    while (n < max && from + n < r->end && strchr(hex, from[n]) && from[n])
        n++;
    if (n == 0 || (!brace && n < max) || (brace && (from + n >= r->end || from[n] != '}')))
        return refuse(r, "a malformed code");
    TRY(buf_addf(r->out, "\\x{%.*s}", (int)n, from));
    r->at = from + n + (brace ? 1 : 0);
    return 0;
}

static int read_escape(struct reader *r)
{
    if (r->end - r->at < 2) return refuse(r, "a lone backslash");
    const char c = r->at[1];
    switch (c) {
    case 'p':
    case 'P':
        return read_property(r);
    case 'x':
    case 'u':
        return read_code(r);
    case 'd':
    case 'D':
    case 'r':
    case 'n':
    case 't':
    case 'f':
        return pass(r, 2);
    case 's':
        TRY(buf_addf(r->out, r->in_class ? "%s" : "[%s]", SPACE));
        r->at += 2;
        return 0;
    case 'S':
        if (r->in_class) return refuse(r, "\\S inside [...]");
        TRY(buf_addf(r->out, "[^%s]", SPACE));
        r->at += 2;
        return 0;
    default:
        if (c <= 0x20 || c == 0x7f || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
            (c >= 'a' && c <= 'z'))
            return refuse(r, "an escape with another meaning in each engine");
        return pass(r, 2);
    }
}

static int read_group(struct reader *r)
{
    static const char *const known[] = { "(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:" };
    const size_t left = (size_t)(r->end - r->at);
    if (left < 2 || (r->at[1] != '?' && r->at[1] != '*')) return pass(r, 1);
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (left >= strlen(known[i]) && memcmp(r->at, known[i], strlen(known[i])) == 0)
            return pass(r, strlen(known[i]));
    return refuse(r, "this kind of group");
}

static int read_one(struct reader *r)
{
    const char c = *r->at;
    if (c == '\\') return read_escape(r);
    if (r->in_class) {
        if (c == '[') return refuse(r, "a class inside a class");
        if (c == '&' && r->end - r->at > 1 && r->at[1] == '&') return refuse(r, "&&");
        if (c == ']') r->in_class = false;
        return pass(r, 1);
    }
    switch (c) {
    case '[':
        r->in_class = true;
        TRY(pass(r, 1));
        if (r->at < r->end && *r->at == '^') TRY(pass(r, 1));
        if (r->at < r->end && *r->at == ']') return refuse(r, "] at the start of a class");
        return 0;
    case '(':
        return read_group(r);
    case '{':
        return read_count(r);
    case '^':
    case '$': /* of any line, in both engines then */
        TRY(buf_addf(r->out, "(?m:%c)", c));
        r->at++;
        return 0;
    default:
        return pass(r, 1);
    }
}

int regex_translate(char **out, const char *pattern)
{
    struct buf b = { 0 };
    struct reader r = { pattern, pattern + strlen(pattern), pattern, &b, false };
    int rc = buf_adds(&b, "");
    if (rc == 0 && r.end - r.start > PATTERN_MAX) rc = refuse(&r, "more than 64 KiB");
    while (rc == 0 && r.at < r.end)
        rc = read_one(&r);
    if (rc == 0 && r.in_class) rc = refuse(&r, "a class without its ]");
    *out = rc < 0 ? NULL : b.data;
    if (rc < 0) buf_release(&b);
    return rc;
}

struct regex {
    pcre2_code *code;
    bool jit;
};

const char *regex_version(char out[REGEX_VERSION])
{
    char part[REGEX_VERSION / 2];
    size_t n = 0;
    out[0] = 0;
    static const uint32_t what[] = { PCRE2_CONFIG_VERSION, PCRE2_CONFIG_UNICODE_VERSION };
    for (size_t i = 0; i < COUNT_OF(what); i++) {
        const int len = pcre2_config(what[i], NULL);
        if (len <= 0 || (size_t)len > sizeof part || pcre2_config(what[i], part) < 0) continue;
        n += (size_t)snprintf(out + n, REGEX_VERSION - n, "%s%s", n ? " " : "", part);
    }
    return out;
}

int regex_open(struct regex **out, const char *pattern)
{
    char *text = NULL;
    int rc = 0, code;
    size_t at;
    PCRE2_UCHAR why[160];
    struct regex *r = NULL;
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    *out = NULL;
    TRY_OUT(ctx ? 0 : err_set(ERR_OOM, "out of memory for a regular expression"));
    TRY_OUT(regex_translate(&text, pattern));
    TRY_OUT(MEM_NEW(&r, 1));
    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);
    r->code = pcre2_compile((PCRE2_SPTR)text, strlen(text),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &code,
                            &at, ctx);
    if (!r->code) {
        pcre2_get_error_message(code, why, sizeof why);
        TRY_OUT(err_set(ERR_INPUT, "the regular expression cannot be used: %s", (char *)why));
    }
    /* without it the interpreter does the same */
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD) == 0;
    *out = r;
    r = NULL;
out:
    regex_close(r);
    free(text);
    pcre2_compile_context_free(ctx);
    return rc;
}

void regex_close(struct regex *r)
{
    if (r) pcre2_code_free(r->code);
    free(r);
}

bool regex_matches_empty(const struct regex *r)
{
    uint32_t empty = 1;
    return pcre2_pattern_info(r->code, PCRE2_INFO_MATCHEMPTY, &empty) != 0 || empty;
}

/* A match may take STEP_FREE steps in WINDOW bytes for nothing; what takes more steps or has to see more
 * bytes is paid from the budget of the text, so that a text costs a number of steps in proportion to its
 * length, whatever the pattern. */
enum {
    STEP_FREE = 500,
    WINDOW = 256,
    GROWTH = 8,
    BUDGET_A_BYTE = 64,
    BUDGET_A_TEXT = 1 << 20,
    HEAP_KIB = 1 << 16,
};

struct regex_run {
    pcre2_match_data *data;
    pcre2_match_context *ctx;
    int64_t budget;
};

int regex_begin(struct regex_run **out)
{
    struct regex_run *m;
    TRY(MEM_NEW(&m, 1));
    m->data = pcre2_match_data_create(1, NULL);
    m->ctx = pcre2_match_context_create(NULL);
    if (!m->data || !m->ctx) {
        regex_end(m);
        return err_set(ERR_OOM, "out of memory for a regular expression");
    }
    pcre2_set_heap_limit(m->ctx, HEAP_KIB);
    pcre2_set_match_limit(m->ctx, STEP_FREE);
    *out = m;
    return 0;
}

void regex_end(struct regex_run *m)
{
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->ctx);
    free(m);
}

void regex_budget(struct regex_run *m, size_t len)
{
    m->budget = BUDGET_A_TEXT + (int64_t)len * BUDGET_A_BYTE;
}

/* End of a window of `size` bytes at s[at], between two characters. */
static size_t window_end(const char *s, size_t len, size_t at, size_t size)
{
    if (len - at <= size) return len;
    at += size;
    while (((uint8_t)s[at] & 0xc0) == 0x80)
        at--;
    return at;
}

static int try_match(const struct regex *r, struct regex_run *m, const char *s, size_t len,
                     size_t at)
{
    size_t window = WINDOW, stop = window_end(s, len, at, WINDOW);
    int64_t steps = STEP_FREE;
    uint32_t flags = PCRE2_NO_UTF_CHECK;
    int rc;
    for (;;) {
        const uint32_t partial = stop < len ? PCRE2_PARTIAL_HARD : 0;
        if (r->jit && !(flags & PCRE2_NO_JIT))
            rc = pcre2_jit_match(r->code, (PCRE2_SPTR)s, stop, at, partial, m->data, m->ctx);
        else
            rc = pcre2_match(r->code, (PCRE2_SPTR)s, stop, at, flags | partial, m->data, m->ctx);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !(flags & PCRE2_NO_JIT)) {
            flags |= PCRE2_NO_JIT; /* the interpreter keeps its frames on the heap */
        } else if (rc == PCRE2_ERROR_PARTIAL) {
            window *= GROWTH;
            stop = window_end(s, len, at, window);
            m->budget -= (int64_t)(stop - at);
        } else if (rc == PCRE2_ERROR_MATCHLIMIT && steps < UINT32_MAX / GROWTH) {
            steps *= GROWTH;
            m->budget -= steps;
            pcre2_set_match_limit(m->ctx, (uint32_t)steps);
        } else {
            break;
        }
        if (m->budget < 0) {
            rc = PCRE2_ERROR_MATCHLIMIT;
            break;
        }
    }
    if (steps > STEP_FREE) pcre2_set_match_limit(m->ctx, STEP_FREE);
    return rc;
}

int regex_match(const struct regex *r, struct regex_run *m, const char *s, size_t len, size_t at,
                size_t *end)
{
    const int rc = try_match(r, m, s, len, at);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc == PCRE2_ERROR_NOMEMORY)
        return err_set(ERR_OOM, "out of memory for a regular expression");
    if (rc < 0)
        return err_set(ERR_INPUT,
                       "the tokenizer's regular expression needs too many steps for this text (at "
                       "byte %zu of %zu)",
                       at, len);
    *end = pcre2_get_ovector_pointer(m->data)[1];
    return 1;
}
