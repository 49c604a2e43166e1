/* SPDX-License-Identifier: MIT */
#include "loss.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    unsigned bit;
    const char *name;
} option_names[] = {
    { LOSS_BETA, "beta" },
    { LOSS_LAMBDA, "lambda" },
    { LOSS_ALPHA, "alpha" },
    { LOSS_SMOOTHING, "label_smoothing" },
};

const char *loss_option_name(unsigned bit)
{
    for (size_t i = 0; i < COUNT_OF(option_names); i++)
        if (option_names[i].bit == bit) return option_names[i].name;
    return "?";
}

double loss_option(unsigned bit, const struct loss_opts *o)
{
    switch (bit) {
    case LOSS_BETA:
        return o->beta;
    case LOSS_LAMBDA:
        return o->lambda;
    case LOSS_ALPHA:
        return o->alpha;
    default:
        return o->label_smoothing;
    }
}

struct out {
    char *text;
    size_t size, len;
};

static void put(struct out *b, const char *s, size_t n)
{
    const size_t room = b->size - 1 - b->len;
    n = MIN(n, room);
    memcpy(b->text + b->len, s, n);
    b->len += n;
    b->text[b->len] = 0;
}

static void put_number(struct out *b, double x, int digits)
{
    char s[40];
    snprintf(s, sizeof s, "%.*g", digits, x);
    put(b, s, strlen(s));
}

/* Shortest text of x that reads back equal, a whole number without an exponent. */
static void put_option(struct out *b, double x)
{
    char s[40];
    int digits = 1;
    do {
        snprintf(s, sizeof s, "%.*g", digits, x);
    } while (strtod(s, NULL) != x && digits++ < 17);
    if (fabs(x) < 1e9 && x == floor(x)) snprintf(s, sizeof s, "%.0f", x);
    put(b, s, strlen(s));
}

/* Length of "pre" NAME "post" at s where it stands as a whole word, else 0. */
static size_t match(const char *s, const char *pre, const char *name, const char *post)
{
    const size_t a = strlen(pre), n = strlen(name), z = strlen(post);
    if (strncmp(s, pre, a) != 0 || strncmp(s + a, name, n) != 0 || strncmp(s + a + n, post, z) != 0)
        return 0;
    if (z == 0 && (isalnum((unsigned char)s[a + n]) || s[a + n] == '_')) return 0;
    return a + n + z;
}

/* The formula with option names replaced by their values; what an option makes of 1 is folded into
 * one number. */
static size_t put_constant(struct out *b, const struct loss_def *d, const struct loss_opts *o,
                           const char *s)
{
    for (size_t i = 0; i < COUNT_OF(option_names); i++) {
        const char *name = option_names[i].name;
        const double x = loss_option(option_names[i].bit, o);
        size_t n;
        if (!(d->options & option_names[i].bit)) continue;
        if ((n = match(s, "(1 - ", name, ")"))) {
            put_number(b, 1 - x, 10);
            return n;
        }
        if ((n = match(s, "1/(2 ", name, ")"))) {
            put_number(b, 1 / (2 * x), 10);
            return n;
        }
        if ((n = match(s, "", name, ""))) {
            put_option(b, x);
            return n;
        }
    }
    return 0;
}

/* The two formulas that shrink at a bound of their option, so that the printed one is what is
 * computed. */
static const char *formula_of(const struct loss_def *d, const struct loss_opts *o)
{
    if ((d->options & LOSS_SMOOTHING) && o->label_smoothing == 0) return "softplus(-beta (u - v))";
    if ((d->options & LOSS_LAMBDA) && d->lambda_max == 1) {
        if (o->lambda >= 1) return "softplus(-beta (u - v))";
        if (o->lambda <= 0) return "softplus(-beta u)";
    }
    return d->formula;
}

const char *loss_describe(char *out, size_t size, const struct loss_def *d,
                          const struct loss_opts *o)
{
    struct out b = { .text = out, .size = size };
    BUG_IF(size < 1);
    out[0] = 0;
    put(&b, d->name, strlen(d->name));
    put(&b, ": ", 2);
    bool word = false;
    for (const char *s = formula_of(d, o); *s;) {
        const size_t n = word ? 0 : put_constant(&b, d, o, s);
        if (n == 0) put(&b, s, 1);
        word = n == 0 && (isalnum((unsigned char)*s) || *s == '_');
        s += n ? n : 1;
    }
    for (size_t i = 0, shown = 0; i < COUNT_OF(option_names); i++) {
        if (!(d->options & option_names[i].bit)) continue;
        put(&b, shown++ ? ", " : " [", 2);
        put(&b, option_names[i].name, strlen(option_names[i].name));
        put(&b, " ", 1);
        put_option(&b, loss_option(option_names[i].bit, o));
    }
    if (d->options) put(&b, "]", 1);
    return out;
}
