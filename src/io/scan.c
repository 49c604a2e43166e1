/* SPDX-License-Identifier: MIT */
#include "scan.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct scan {
    const char *p;  /* next byte; the text ends with a NUL, which no rule accepts */
    const char *at; /* where the error is */
    const char *error;
    char *why; /* [120] */
};

static bool fail(struct scan *s, const char *at, const char *error)
{
    s->at = at;
    s->error = error;
    return false;
}

static const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')
        p++;
    return p;
}

/* Bytes of the UTF-8 sequence at p, 0 where it is not valid (RFC 3629: no overlong forms, no
 * surrogates). */
static int utf8_len(const unsigned char *p)
{
    static const struct {
        unsigned char lo, hi, lo2, hi2, len;
    } row[] = {
        { 0x00, 0x7f, 0x00, 0xff, 1 }, { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
        { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
        { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 },
    };
    for (size_t r = 0; r < COUNT_OF(row); r++) {
        if (p[0] < row[r].lo || p[0] > row[r].hi) continue;
        if (row[r].len == 1) return 1;
        if (p[1] < row[r].lo2 || p[1] > row[r].hi2) return 0;
        for (int i = 2; i < row[r].len; i++)
            if (p[i] < 0x80 || p[i] > 0xbf) return 0;
        return row[r].len;
    }
    return 0;
}

/* The 4 hex digits at p, -1 where they are not. */
static int hex4(const char *p)
{
    int v = 0;
    for (int i = 0; i < 4; i++) {
        const char c = p[i];
        if (!isxdigit((unsigned char)c)) return -1;
        v = v * 16 + (c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return v;
}

static bool check_escape(struct scan *s)
{
    const char *at = s->p;
    const char c = at[1];
    if (c != 'u') {
        if (!c || !strchr("\"\\/bfnrt", c))
            return fail(s, at, "a bad escape in a string (write \\\\ for a backslash)");
        s->p += 2;
        return true;
    }
    const int u = hex4(at + 2);
    if (u < 0) return fail(s, at, "\\u must be followed by 4 hexadecimal digits");
    if (u == 0) return fail(s, at, "\\u0000 is not supported in a string");
    s->p += 6;
    if (u >= 0xdc00 && u <= 0xdfff)
        return fail(s, at, "a lone surrogate in a string (the second half of a \\u pair alone)");
    if (u >= 0xd800 && u <= 0xdbff) {
        const int v = at[6] == '\\' && at[7] == 'u' ? hex4(at + 8) : -1;
        if (v < 0xdc00 || v > 0xdfff)
            return fail(s, at, "a lone surrogate in a string (the first half of a \\u pair alone)");
        s->p += 6;
    }
    return true;
}

/* s->p is at the opening quote. */
static bool check_string(struct scan *s)
{
    const char *open = s->p++;
    for (;;) {
        const unsigned char c = (unsigned char)*s->p;
        if (c == '"') break;
        if (c == 0 || c == '\n') return fail(s, open, "this string has no closing quote");
        if (c < 32)
            return fail(s, s->p, "a control character in a string (write it as \\t or \\u00XX)");
        if (c == '\\') {
            if (!check_escape(s)) return false;
        } else if (c < 0x80) {
            s->p++;
        } else {
            const int n = utf8_len((const unsigned char *)s->p);
            if (!n) return fail(s, s->p, "not valid UTF-8");
            s->p += n;
        }
    }
    s->p++;
    return true;
}

static bool check_range(struct scan *s, const char *at, bool real, bool zero)
{
    if (real) {
        const double v = strtod(at, NULL);
        if (isinf(v)) return fail(s, at, "the number is too large");
        if (v == 0 && !zero) return fail(s, at, "the number is too small: it would become 0");
        return true;
    }
    int64_t v = 0;
    const bool minus = *at == '-';
    for (const char *p = at + minus; isdigit((unsigned char)*p); p++) {
        const int digit = minus ? '0' - *p : *p - '0';
        if (!mul_ok(v, 10, &v) || !add_ok(v, digit, &v))
            return fail(s, at, "the integer does not fit 64 bits");
    }
    return true;
}

static bool check_number(struct scan *s)
{
    const char *at = s->p, *p = at + (*at == '-');
    bool real = false, zero = true;
    if (*p == '0' && isdigit((unsigned char)p[1]))
        return fail(s, at, "a number must not start with 0");
    if (!isdigit((unsigned char)*p)) return fail(s, at, "a number must have digits");
    for (; isdigit((unsigned char)*p); p++)
        zero &= *p == '0';
    if (*p == '.') {
        real = true;
        if (!isdigit((unsigned char)*++p))
            return fail(s, at, "a number must have digits after its point");
        for (; isdigit((unsigned char)*p); p++)
            zero &= *p == '0';
    }
    if (*p == 'e' || *p == 'E') {
        real = true;
        p++;
        p += *p == '+' || *p == '-';
        if (!isdigit((unsigned char)*p))
            return fail(s, at, "a number must have digits in its exponent");
        while (isdigit((unsigned char)*p))
            p++;
    }
    s->p = p;
    return check_range(s, at, real, zero);
}

/* An explanation for a byte that starts no value (and no key). */
static bool fail_token(struct scan *s, const char *expected)
{
    static const char *const not_json[] = { "NaN",  "nan",  "Infinity", "inf",       "-Infinity",
                                            "-inf", "None", "True",     "undefined", "False" };
    char shown[100];
    size_t n = 0;
    const char *p = s->p;
    if (!*p) return fail(s, p, "the text ends too early");
    if (*p == '#' || (*p == '/' && (p[1] == '/' || p[1] == '*')))
        return fail(s, p, "comments are not allowed in JSON; \"note\" keys are");
    if (*p == '\'') return fail(s, p, "strings are written in double quotes");
    for (size_t i = 0; i < COUNT_OF(not_json); i++)
        if (strncmp(p, not_json[i], strlen(not_json[i])) == 0) {
            snprintf(s->why, 120, "%s is not JSON", not_json[i]);
            return fail(s, p, s->why);
        }
    while (n < 24 && (isalnum((unsigned char)p[n]) || p[n] == '_'))
        n++;
    if (n == 0) n = (size_t)MAX(utf8_len((const unsigned char *)p), 1);
    snprintf(s->why, 120, "expected %s, not \"%.60s\"", expected,
             err_quote(shown, sizeof shown, p, n));
    return fail(s, p, s->why);
}

static bool check_scalar(struct scan *s)
{
    static const char *const words[] = { "true", "false", "null" };
    if (*s->p == '"') return check_string(s);
    if (isdigit((unsigned char)*s->p) || (*s->p == '-' && s->p[1] != 'I' && s->p[1] != 'i'))
        return check_number(s);
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        const size_t n = strlen(words[i]);
        if (strncmp(s->p, words[i], n) != 0 || isalnum((unsigned char)s->p[n])) continue;
        s->p += n;
        return true;
    }
    return fail_token(s, "a value");
}

/* `"key" :`, up to the value. */
static bool check_key(struct scan *s)
{
    if (*s->p != '"') return fail_token(s, "a key in double quotes");
    if (!check_string(s)) return false;
    s->p = skip_space(s->p);
    if (*s->p != ':') return fail_token(s, "\":\" after the key");
    s->p = skip_space(s->p + 1);
    return true;
}

/* After "," in a container that closes with `close`: up to the next value. */
static bool check_next(struct scan *s, char close)
{
    const char *comma = s->p;
    s->p = skip_space(s->p + 1);
    if (*s->p == '}' || *s->p == ']') return fail(s, comma, "a comma after the last entry");
    return close == ']' || check_key(s);
}

static bool check_document(struct scan *s)
{
    char close[JSON_DEPTH_MAX]; /* of every container that is open */
    int depth = 0;
    for (;;) {
        bool whole = true; /* a value has just ended */
        if (*s->p == '{' || *s->p == '[') {
            if (depth == JSON_DEPTH_MAX) return fail(s, s->p, "nested too deep (over 2000 levels)");
            close[depth++] = *s->p == '{' ? '}' : ']';
            s->p = skip_space(s->p + 1);
            whole = *s->p == close[depth - 1];
            if (whole) {
                s->p++;
                depth--;
            } else if (close[depth - 1] == '}' && !check_key(s)) {
                return false;
            }
        } else if (!check_scalar(s)) {
            return false;
        }
        if (!whole) continue;
        for (;;) { /* close what ends here */
            s->p = skip_space(s->p);
            if (depth == 0 || *s->p != close[depth - 1]) break;
            s->p++;
            depth--;
        }
        if (depth == 0) return *s->p == 0 || fail_token(s, "the end of the text");
        if (*s->p != ',')
            return fail_token(s, close[depth - 1] == '}' ? "\",\" or \"}\"" : "\",\" or \"]\"");
        if (!check_next(s, close[depth - 1])) return false;
    }
}

const char *scan_check(const char *text, bool any, size_t *at, char why[120])
{
    struct scan s = { .p = skip_space(text), .why = why };
    *at = 0;
    if (!*s.p) return "is empty: no JSON value";
    if (any || *s.p == '{' || *s.p == '[')
        check_document(&s);
    else
        fail_token(&s, "\"{\" or \"[\"");
    if (s.error) *at = (size_t)(s.at - text);
    return s.error;
}

/* finding; the text is known to be valid ------------------------------------------------------ */

static const char *skip_string(const char *p)
{
    for (p++; *p != '"'; p++)
        if (*p == '\\') p++;
    return p + 1;
}

static const char *skip_value(const char *p)
{
    int64_t depth = 0;
    do {
        if (*p == '"') {
            p = skip_string(p);
        } else if (*p == '{' || *p == '[') {
            depth++;
            p++;
        } else if (*p == '}' || *p == ']') {
            depth--;
            p++;
        } else if (depth > 0) {
            p++;
        } else {
            while (*p && !strchr(",]} \t\r\n", *p))
                p++;
        }
    } while (depth > 0);
    return p;
}

/* One character of a JSON string at *p, as UTF-8 into out[4]; returns its bytes. */
static int next_char(const char **p, char out[4])
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    const char *s = *p;
    if (s[0] != '\\') {
        out[0] = s[0];
        *p = s + 1;
        return 1;
    }
    if (s[1] != 'u') {
        const char *f = strchr(from, s[1]);
        out[0] = f ? to[f - from] : s[1];
        *p = s + 2;
        return 1;
    }
    int c = hex4(s + 2);
    s += 6;
    if (c >= 0xd800 && c <= 0xdbff) {
        c = 0x10000 + ((c - 0xd800) << 10) + (hex4(s + 2) - 0xdc00);
        s += 6;
    }
    *p = s;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    const int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | c);
    return n;
}

/* Is the JSON string at p (its opening quote) the pointer's token of n bytes (with ~0 and ~1)? */
static bool key_equals(const char *p, const char *token, size_t n)
{
    size_t i = 0;
    p++;
    while (*p != '"') {
        char c[4];
        const int m = next_char(&p, c);
        for (int k = 0; k < m; k++) {
            if (i == n) return false;
            char want = token[i++];
            if (want == '~' && i < n) want = token[i++] == '1' ? '/' : '~';
            if (want != c[k]) return false;
        }
    }
    return i == n;
}

/* The member of the object at p that the token names: *key and the value's start; NULL: none. */
static const char *find_member(const char *p, const char *token, size_t n, const char **key)
{
    p = skip_space(p + 1);
    while (*p == '"') {
        *key = p;
        const char *v = skip_space(skip_space(skip_string(p)) + 1);
        if (key_equals(p, token, n)) return v;
        p = skip_space(skip_value(v));
        if (*p == ',') p = skip_space(p + 1);
    }
    return NULL;
}

static const char *find_element(const char *p, const char *token, size_t n)
{
    int64_t index = 0;
    if (n == 0 || n > 18 || (n > 1 && token[0] == '0')) return NULL;
    for (size_t i = 0; i < n; i++) {
        if (!isdigit((unsigned char)token[i])) return NULL;
        index = index * 10 + (token[i] - '0');
    }
    p = skip_space(p + 1);
    while (*p != ']') {
        if (index-- == 0) return p;
        p = skip_space(skip_value(p));
        if (*p == ',') p = skip_space(p + 1);
    }
    return NULL;
}

int64_t scan_find(const char *text, const char *pointer)
{
    const char *p = skip_space(text), *at = p;
    while (*pointer == '/') {
        const char *token = pointer + 1;
        const size_t n = strcspn(token, "/");
        if (*p == '{')
            p = find_member(p, token, n, &at);
        else if (*p == '[')
            p = at = find_element(p, token, n);
        else
            p = NULL;
        if (!p) return -1;
        pointer = token + n;
    }
    return *pointer ? -1 : at - text;
}
