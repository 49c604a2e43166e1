/* SPDX-License-Identifier: MIT */
#include "json.h"
#include "scan.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int json_dump_text(struct buf *b, const char *s, size_t len)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    size_t from = 0;
    TRY(buf_add(b, "\"", 1));
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)s[i];
        if (c >= 32 && c != '"' && c != '\\') continue;
        TRY(buf_add(b, s + from, i - from));
        from = i + 1;
        const char *at = c ? strchr(plain, c) : NULL;
        if (at)
            TRY(buf_addf(b, "\\%c", letter[at - plain]));
        else
            TRY(buf_addf(b, "\\u%04x", c));
    }
    TRY(buf_add(b, s + from, len - from));
    return buf_add(b, "\"", 1);
}

int json_dump_real(struct buf *b, double v)
{
    char e[40], digits[20];
    int n = 0, exp10 = 0;
    if (!isfinite(v)) return err_set(ERR_INPUT, "a number that is not finite cannot be JSON");
    if (v == 0) return buf_adds(b, signbit(v) ? "-0.0" : "0.0");
    /* 15 digits without their last zeros are shortest where they read back equal, but for subnormals */
    for (int p = fabs(v) < DBL_MIN ? 1 : 15; p <= 17; p++) {
        snprintf(e, sizeof e, "%.*e", p - 1, v);
        if (p == 17 || strtod(e, NULL) == v) break;
    }
    const char *s = e + (e[0] == '-');
    for (; *s != 'e'; s++)
        if (*s != '.') digits[n++] = *s;
    for (const char *x = s + 2; *x; x++)
        exp10 = exp10 * 10 + (*x - '0');
    if (s[1] == '-') exp10 = -exp10;
    while (n > 1 && digits[n - 1] == '0')
        n--;
    if (v < 0) TRY(buf_add(b, "-", 1));
    if (exp10 < -4 || exp10 >= 16) {
        TRY(buf_add(b, digits, 1));
        if (n > 1) TRY(buf_addf(b, ".%.*s", n - 1, digits + 1));
        return buf_addf(b, "e%c%02d", exp10 < 0 ? '-' : '+', abs(exp10));
    }
    if (exp10 < 0) return buf_addf(b, "0.%.*s%.*s", -exp10 - 1, "000", n, digits);
    if (n <= exp10 + 1)
        return buf_addf(b, "%.*s%.*s.0", n, digits, exp10 + 1 - n, "0000000000000000");
    return buf_addf(b, "%.*s.%.*s", exp10 + 1, digits, n - exp10 - 1, digits + exp10 + 1);
}

static int newline(struct buf *b, int indent, int depth)
{
    if (indent == 0) return 0;
    TRY(buf_add(b, "\n", 1));
    for (int i = 0; i < indent * depth; i++)
        TRY(buf_add(b, " ", 1));
    return 0;
}

static int dump(struct buf *b, const json_t *v, int indent, int depth);

static int dump_items(struct buf *b, const json_t *v, int indent, int depth)
{
    const bool object = json_is_object(v);
    const size_t n = object ? json_object_size(v) : json_array_size(v);
    /* jansson's iterators take no const, but do not write */
    json_t *it = (json_t *)(uintptr_t)v;
    void *at = object ? json_object_iter(it) : NULL;
    if (depth >= JSON_DEPTH_MAX) return err_set(ERR_INPUT, "JSON nested too deep to write");
    TRY(buf_adds(b, object ? "{" : "["));
    for (size_t i = 0; i < n; i++) {
        if (i) TRY(buf_adds(b, indent ? "," : ", "));
        TRY(newline(b, indent, depth + 1));
        if (object) {
            const char *key = json_object_iter_key(at);
            TRY(json_dump_text(b, key, strlen(key)));
            TRY(buf_adds(b, ": "));
            TRY(dump(b, json_object_iter_value(at), indent, depth + 1));
            at = json_object_iter_next(it, at);
        } else {
            TRY(dump(b, json_array_get(v, i), indent, depth + 1));
        }
    }
    if (n) TRY(newline(b, indent, depth));
    return buf_adds(b, object ? "}" : "]");
}

static int dump(struct buf *b, const json_t *v, int indent, int depth)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
    case JSON_ARRAY:
        return dump_items(b, v, indent, depth);
    case JSON_STRING:
        return json_dump_text(b, json_string_value(v), json_string_length(v));
    case JSON_INTEGER:
        return buf_addf(b, "%lld", (long long)json_integer_value(v));
    case JSON_REAL:
        return json_dump_real(b, json_real_value(v));
    case JSON_TRUE:
        return buf_adds(b, "true");
    case JSON_FALSE:
        return buf_adds(b, "false");
    case JSON_NULL:
        break;
    }
    return buf_adds(b, "null");
}

int json_dump(struct buf *b, const json_t *value, int indent)
{
    return dump(b, value, indent, 0);
}
