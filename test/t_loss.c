/* SPDX-License-Identifier: MIT
 * The losses against a long double oracle, finite differences and their exact special cases. */
#include "../src/base/rng.h"
#include "../src/loss/loss.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

typedef long double real;

/* cmocka's assert_float_equal compares as float */
#define assert_close(got, want, tol) assert_close_at((got), (want), (tol), #got, __LINE__)
static void assert_close_at(double got, double want, double tol, const char *what, int line)
{
    if (!(fabs(got - want) <= tol))
        fail_msg("line %d: %s is %.17g, expected %.17g", line, what, got, want);
}

/* Oracle: the table of docs/losses.md written out directly, with 64 bits of mantissa ------------------------------- */

static real sp(real x)
{
    return x > 0 ? x + log1pl(expl(-x)) : log1pl(expl(x));
}

static real oracle(const char *name, const real x[4], const struct loss_pair *n,
                   const struct loss_opts *o)
{
    const real beta = o->beta, lambda = o->lambda, u = x[0] - x[2], v = x[1] - x[3],
               t = 1 / (2 * beta);
    if (!strcmp(name, "dpo"))
        return (1 - (real)o->label_smoothing) * sp(-beta * (u - v)) +
               o->label_smoothing * sp(beta * (u - v));
    if (!strcmp(name, "dpo_nll")) return sp(-beta * (u - v)) - o->alpha * x[0] / n->nw;
    if (!strcmp(name, "dpop")) return sp(-beta * (u - v - lambda * (u < 0 ? -u : 0)));
    if (!strcmp(name, "bdpo")) return sp(-beta * (u - logl(lambda * expl(v) + 1 - lambda)));
    if (!strcmp(name, "minor_dpo")) return sp(-beta * (u - (v > 0 ? v : 0)));
    if (!strcmp(name, "slic")) return 1 - beta * (u - v) > 0 ? 1 - beta * (u - v) : 0;
    if (!strcmp(name, "sppo")) return (u - t) * (u - t) + (v + t) * (v + t);
    assert_string_equal(name, "orpo");
    const real a = x[0] / n->nw, b = x[1] / n->nl;
    return -a + beta * sp(-((a - b) - (logl(-expm1l(a)) - logl(-expm1l(b)))));
}

/* Is the point so near a kink that a difference of width h straddles it? */
static bool near_kink(const char *name, const struct loss_pair *p, const struct loss_opts *o,
                      double h)
{
    const double u = p->lw - p->rw, v = p->ll - p->rl;
    if (!strcmp(name, "dpop")) return fabs(u) <= 2 * h;
    if (!strcmp(name, "minor_dpo")) return fabs(v) <= 2 * h;
    return !strcmp(name, "slic") && fabs(1 - o->beta * (u - v)) <= 2 * h * o->beta;
}

static void assert_near(double got, double want, double tol, const char *what,
                        const struct loss_pair *p)
{
    if (fabs(got - want) <= tol * fmax(1, fabs(want))) return;
    fail_msg("%s: %.17g, expected %.17g (lw %g ll %g rw %g rl %g)", what, got, want, p->lw, p->ll,
             p->rw, p->rl);
}

/* Options at several settings for each loss; returns how many. */
static int settings(const struct loss_def *d, struct loss_opts out[8])
{
    static const double lambdas[] = { 0.1, 0.9, 0.99999, 1e-9 }, alphas[] = { 0.01, 10 };
    int n = 0;
    out[n++] = d->defaults;
    out[n] = d->defaults;
    out[n++].beta = 1.5;
    for (size_t i = 0; (d->options & LOSS_LAMBDA) && i < COUNT_OF(lambdas); i++) {
        out[n] = d->defaults;
        out[n++].lambda = d->lambda_max > 1 ? 50 * lambdas[i] : lambdas[i];
    }
    for (size_t i = 0; (d->options & LOSS_ALPHA) && i < COUNT_OF(alphas); i++) {
        out[n] = d->defaults;
        out[n++].alpha = alphas[i];
    }
    if (d->options & LOSS_SMOOTHING) {
        out[n] = d->defaults;
        out[n++].label_smoothing = 0.3;
    }
    return n;
}

typedef void check_fn(const struct loss_def *d, const struct loss_opts *o,
                      const struct loss_pair *p);

/* Every loss and setting over log-probabilities from -3 to -2000. */
static void for_grid(check_fn *check)
{
    static const double at[] = { -3, -3.01, -17, -130, -700, -2000 }, tokens[] = { 1, 40, 700 };
    for (size_t i = 0; i < loss_count; i++) {
        struct loss_opts o[8];
        const int n = settings(&loss_table[i], o);
        for (int s = 0; s < n; s++)
            for (size_t k = 0; k < 6 * 6 * 6 * 6; k++) {
                const struct loss_pair p = { .lw = at[k % 6],
                                             .ll = at[k / 6 % 6],
                                             .rw = at[k / 36 % 6],
                                             .rl = at[k / 216],
                                             .nw = tokens[k % 3],
                                             .nl = tokens[k / 2 % 3] };
                check(&loss_table[i], &o[s], &p);
            }
    }
}

static void check_value(const struct loss_def *d, const struct loss_opts *o,
                        const struct loss_pair *p)
{
    const real x[4] = { p->lw, p->ll, p->rw, p->rl };
    struct loss_grad g;
    d->eval(&g, p, o, 0);
    const double want = (double)oracle(d->name, x, p, o);
    /* h = beta (u - v) is rounded, and a value far below 1 has the relative error that h has absolutely; dpop's h is
     * lambda times larger */
    const double h = o->beta * 8000 * (1 + (strcmp(d->name, "dpop") ? 0 : o->lambda)),
                 eps = 4 * DBL_EPSILON * (1 + h);
    if (fabs(g.loss - want) > eps * (fabs(want) + DBL_MIN))
        fail_msg("%s: %.17g, expected %.17g (beta %g lambda %g lw %g ll %g rw %g rl %g)", d->name,
                 g.loss, want, o->beta, o->lambda, p->lw, p->ll, p->rw, p->rl);
}

static void test_loss__equals_long_double_oracle(void **state)
{
    (void)state;
    for_grid(check_value);
}

static void check_derivatives(const struct loss_def *d, const struct loss_opts *o,
                              const struct loss_pair *p)
{
    const real h = 1e-4L;
    struct loss_grad g, hi, lo;
    if (near_kink(d->name, p, o, (double)h)) return;
    d->eval(&g, p, o, 0);
    for (int side = 0; side < 2; side++) {
        real x[4] = { p->lw, p->ll, p->rw, p->rl }, f[4];
        for (int k = 0; k < 4; k++) { /* fourth order: -2h, -h, h, 2h */
            static const int step[] = { -2, -1, 1, 2 };
            x[side] = (side ? p->ll : p->lw) + step[k] * h;
            f[k] = oracle(d->name, x, p, o);
        }
        const double want = (double)((f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h));
        const double got = side ? g.d_ll : g.d_lw;
        assert_near(got, want, 1e-9 + 1e-15 * fabs(g.loss), d->name, p);
        /* and of the function itself: rounding of the value over the width of the difference */
        struct loss_pair q = *p;
        double *at = side ? &q.ll : &q.lw;
        *at += 1e-4;
        d->eval(&hi, &q, o, 0);
        *at -= 2e-4;
        d->eval(&lo, &q, o, 0);
        assert_near(got, (hi.loss - lo.loss) / 2e-4, 1e-5 + 1e-11 * fabs(g.loss), d->name, p);
    }
}

static void test_loss__derivatives_equal_differences(void **state)
{
    (void)state;
    for_grid(check_derivatives);
}

static void test_loss__first_step_values(void **state)
{
    static const double lambdas[] = { 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 0.99999, 0, 1 };
    (void)state;
    for (size_t i = 0; i < loss_count; i++) {
        const struct loss_def *d = &loss_table[i];
        const struct loss_pair p = { -123.456, -78.9, -123.456, -78.9, 31, 17 };
        struct loss_grad g;
        d->eval(&g, &p, &d->defaults, 0);
        if (isnan(d->at_reference(&d->defaults))) {
            assert_true(!strcmp(d->name, "dpo_nll") || !strcmp(d->name, "orpo"));
            continue;
        }
        assert_close(g.loss, d->at_reference(&d->defaults), 4 * DBL_EPSILON * g.loss);
        assert_true(g.reward_w == 0 && g.reward_l == 0);
    }
    assert_true(loss_find("slic")->at_reference(&(struct loss_opts){ .beta = 2 }) == 1);
    assert_true(loss_find("sppo")->at_reference(&(struct loss_opts){ .beta = 0.1 }) ==
                1 / (2 * 0.1 * 0.1));
    assert_true(loss_find("dpop")->at_reference(&loss_find("dpop")->defaults) == M_LN2);
    for (size_t i = 0; i < COUNT_OF(lambdas); i++) {
        const struct loss_pair p = { -5, -900, -5, -900, 3, 300 };
        const struct loss_opts o = { .beta = 0.1, .lambda = lambdas[i] };
        struct loss_grad g;
        loss_find("bdpo")->eval(&g, &p, &o, 0);
        assert_true(g.loss == log1p(1)); /* m is exactly 0 */
        assert_close(g.gate, lambdas[i], DBL_EPSILON * lambdas[i]);
        assert_close(g.d_ll, 0.05 * lambdas[i], 1e-17);
    }
}

static void test_loss__bdpo_at_lambda_one_is_dpo(void **state)
{
    const struct loss_def *bdpo = loss_find("bdpo"), *dpo = loss_find("dpo"),
                          *nll = loss_find("dpo_nll");
    (void)state;
    for (uint64_t i = 0; i < 20000; i++) {
        struct loss_pair p = { .nw = 5, .nl = 9 };
        double *x[4] = { &p.lw, &p.ll, &p.rw, &p.rl };
        for (uint64_t k = 0; k < 4; k++)
            *x[k] = -pow(10, -3 + 8 * rng_uniform(1, RNG_TEST, 4 * i + k)); /* -0.001 to -1e5 */
        const struct loss_opts one = { .beta = 0.1, .lambda = 1 }, plain = { .beta = 0.1 };
        struct loss_grad a, b, c;
        bdpo->eval(&a, &p, &one, 0);
        dpo->eval(&b, &p, &plain, 0);
        nll->eval(&c, &p, &plain, 0); /* alpha 0, no smoothing term at all */
        assert_true(a.gate == 1);
        a.gate = 0;
        assert_memory_equal(&a, &b, sizeof a);
        assert_true(b.loss == c.loss && b.d_lw == c.d_lw && b.d_ll == c.d_ll);
    }
}

static void test_loss__bdpo_at_lambda_zero_ignores_rejected(void **state)
{
    const struct loss_opts o = { .beta = 0.1, .lambda = 0 };
    struct loss_pair p = { -40, -3, -50, -60, 4, 4 };
    struct loss_grad a, b;
    (void)state;
    loss_find("bdpo")->eval(&a, &p, &o, 0);
    p.ll = -1e5;
    loss_find("bdpo")->eval(&b, &p, &o, 0);
    assert_true(a.loss == b.loss && a.d_ll == 0 && b.d_ll == 0 && a.gate == 0);
    assert_close(a.loss, log1p(exp(-1.0)), 1e-15);
}

static void test_loss__bdpo_is_bounded_in_the_rejected(void **state)
{
    static const double lambdas[] = { 0.1, 0.5, 0.9, 0.999, 0.99999 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(lambdas); i++) {
        const struct loss_opts o = { .beta = 0.1, .lambda = lambdas[i] };
        const double least = log1p(-lambdas[i]);
        double before = INFINITY;
        for (double v = 50; v > -200; v -= 0.37) {
            const struct loss_pair p = { -80, -300 + v, -90, -300, 9, 9 };
            struct loss_grad g;
            loss_find("bdpo")->eval(&g, &p, &o, 0);
            /* sp(-beta (u - m)) = loss, so m = u + log(e^loss - 1) / beta */
            assert_true(10 + log(expm1(g.loss)) / o.beta >= least - 1e-12);
            assert_true(g.loss <= before && g.d_ll >= 0);
            before = g.loss;
        }
        const struct loss_pair p = { -80, -1e5, -90, -300, 9, 9 };
        struct loss_grad g;
        loss_find("bdpo")->eval(&g, &p, &o, 0);
        assert_close(g.loss, log1p(exp(-o.beta * (10 - least))), 1e-15);
        assert_true(g.d_ll == 0 && g.d_lw < -0.005);
    }
}

static void test_loss__nothing_overflows(void **state)
{
    static const double at[] = { -1e5, -700, -1e-3, 0, 1e-3, 700, 1e5 };
    (void)state;
    for (size_t i = 0; i < loss_count; i++) {
        struct loss_opts o[8];
        const int n = settings(&loss_table[i], o);
        o[0].lambda = loss_table[i].lambda_max;
        for (int s = 0; s < n; s++)
            for (size_t k = 0; k < 7 * 7 * 7 * 7; k++) {
                const struct loss_pair p = {
                    at[k % 7], at[k / 7 % 7], at[k / 49 % 7], at[k / 343], 1, 3
                };
                struct loss_grad g;
                loss_table[i].eval(&g, &p, &o[s], 0);
                if (!isfinite(g.loss) || !isfinite(g.d_lw) || !isfinite(g.d_ll) ||
                    !isfinite(g.reward_w) || !isfinite(g.reward_l) || !(g.gate >= 0 && g.gate <= 1))
                    fail_msg("%s: not finite at lw %g ll %g rw %g rl %g", loss_table[i].name, p.lw,
                             p.ll, p.rw, p.rl);
            }
    }
}

static void test_loss__nan_shows(void **state)
{
    (void)state;
    for (size_t i = 0; i < loss_count; i++)
        for (int k = 0; k < 2; k++) {
            struct loss_pair p = { -5, -6, -5, -7, 2, 2 };
            struct loss_grad g;
            *(k ? &p.ll : &p.lw) = NAN;
            loss_table[i].eval(&g, &p, &loss_table[i].defaults, 0);
            if (!isnan(g.loss))
                fail_msg("%s hides a NaN in %s", loss_table[i].name, k ? "ll" : "lw");
        }
}

static void test_loss__kinks(void **state)
{
    const struct loss_def *dpop = loss_find("dpop"), *minor = loss_find("minor_dpo"),
                          *slic = loss_find("slic");
    const double tiny = 1e-6, tol = 1e-5;
    struct loss_pair p = { -10, -20, -10, -20, 3, 3 };
    struct loss_grad g;
    (void)state;
    assert_int_equal(dpop->flags, LOSS_REF | LOSS_KINK);
    assert_int_equal(minor->flags, LOSS_REF | LOSS_KINK);
    dpop->eval(&g, &p, &dpop->defaults, 0); /* [u < 0] is 0 at 0 */
    assert_close(g.d_lw, -0.05, 1e-16);
    minor->eval(&g, &p, &minor->defaults, 0); /* [v > 0] is 0 at 0 */
    assert_true(g.d_ll == 0);
    p.lw = -10 - tiny;
    p.ll = -20 + tiny;
    dpop->eval(&g, &p, &dpop->defaults, 0);
    assert_close(g.d_lw, -0.05 * 6, 1e-6);
    dpop->eval(&g, &p, &dpop->defaults, tol);
    assert_close(g.d_lw, -0.05, 1e-6);
    minor->eval(&g, &p, &minor->defaults, 0);
    assert_close(g.d_ll, 0.05, 1e-6);
    minor->eval(&g, &p, &minor->defaults, tol);
    assert_true(g.d_ll == 0);
    p.lw = -10 - 2 * tol; /* beyond the tolerance the sides are apart again */
    p.ll = -20 + 2 * tol;
    dpop->eval(&g, &p, &dpop->defaults, tol);
    assert_close(g.d_lw, -0.3, 1e-4);
    minor->eval(&g, &p, &minor->defaults, tol);
    assert_close(g.d_ll, 0.05, 1e-4);
    const struct loss_pair touch = { -10, -22, -10, -20, 3, 3 }; /* beta (u - v) = 1 exactly */
    slic->eval(&g, &touch, &(struct loss_opts){ .beta = 0.5 }, 0);
    assert_true(g.loss == 0 && g.d_lw == 0 && g.d_ll == 0);
    const struct loss_pair inside = { -10, -21.9, -10, -20, 3, 3 };
    slic->eval(&g, &inside, &(struct loss_opts){ .beta = 0.5 }, 0);
    assert_true(g.d_lw == -0.5 && g.d_ll == 0.5 && fabs(g.loss - 0.05) < 1e-15);
}

static void test_loss__orpo_near_certainty(void **state)
{
    static const double at[] = { 0, -1e-9, 1e-9, 3 };
    const struct loss_def *orpo = loss_find("orpo");
    const struct loss_pair sure = { .lw = -ldexp(1, -24) * 4, .ll = -30, .nw = 4, .nl = 10 };
    struct loss_grad g, want;
    (void)state;
    orpo->eval(&want, &sure, &orpo->defaults, 0);
    for (size_t i = 0; i < COUNT_OF(at); i++) {
        const struct loss_pair p = { .lw = at[i], .ll = -30, .nw = 4, .nl = 10 };
        orpo->eval(&g, &p, &orpo->defaults, 0);
        assert_close(g.loss - -p.lw / 4, want.loss - -sure.lw / 4, 1e-12);
        assert_true(g.d_lw == want.d_lw && g.d_ll == want.d_ll);
    }
    const struct loss_pair both = { .lw = 0, .ll = 0, .nw = 4, .nl = 4 };
    orpo->eval(&g, &both, &orpo->defaults, 0);
    assert_close(g.loss, 0.1 * M_LN2, 1e-12);
    assert_true(!(orpo->flags & LOSS_REF));
    const struct loss_pair mean = { .lw = -40, .ll = -90, .nw = 20, .nl = 30 };
    orpo->eval(&g, &mean, &orpo->defaults, 0);
    assert_close(g.reward_w, 0.1 * -2, 1e-16);
    assert_close(g.reward_l, 0.1 * -3, 1e-16);
}

static void test_loss__table_and_names(void **state)
{
    static const char *const names[] = { "dpo",       "dpo_nll", "dpop", "bdpo",
                                         "minor_dpo", "slic",    "orpo", "sppo" };
    (void)state;
    assert_int_equal(loss_count, COUNT_OF(names));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const struct loss_def *d = loss_find(names[i]);
        assert_non_null(d);
        assert_true((d->options & LOSS_BETA) && d->defaults.beta == 0.1);
        assert_true(strlen(d->formula) && strlen(d->source));
        assert_int_equal((d->options & LOSS_LAMBDA) != 0, d->lambda_max > 0);
    }
    assert_null(loss_find("sft"));
    assert_null(loss_find(""));
    assert_true(loss_find("dpop")->defaults.lambda == 5 &&
                loss_find("bdpo")->defaults.lambda == 0.5);
    assert_true(loss_find("dpo_nll")->defaults.alpha == 1);
    assert_string_equal(loss_option_name(LOSS_SMOOTHING), "label_smoothing");
}

static void test_loss__describe(void **state)
{
    static const struct {
        const char *name;
        struct loss_opts o;
        const char *text;
    } rows[] = {
        { "bdpo",
          { .beta = 0.1, .lambda = 0.5 },
          "bdpo: softplus(-0.1 (u - m)), m = log(0.5 e^v + 0.5) [beta 0.1, lambda 0.5]" },
        { "bdpo",
          { .beta = 0.1, .lambda = 0.99999 },
          "bdpo: softplus(-0.1 (u - m)), m = log(0.99999 e^v + 1e-05) [beta 0.1, lambda 0.99999]" },
        { "bdpo",
          { .beta = 0.1, .lambda = 1 },
          "bdpo: softplus(-0.1 (u - v)) [beta 0.1, lambda 1]" },
        { "bdpo", { .beta = 0.1, .lambda = 0 }, "bdpo: softplus(-0.1 u) [beta 0.1, lambda 0]" },
        { "dpo", { .beta = 0.3 }, "dpo: softplus(-0.3 (u - v)) [beta 0.3, label_smoothing 0]" },
        { "dpo",
          { .beta = 0.3, .label_smoothing = 0.1 },
          "dpo: 0.9 softplus(-h) + 0.1 softplus(h), h = 0.3 (u - v) [beta 0.3, label_smoothing "
          "0.1]" },
        { "dpop",
          { .beta = 0.1, .lambda = 50 },
          "dpop: softplus(-0.1 (u - v - 50 max(0, -u))) [beta 0.1, lambda 50]" },
        { "sppo", { .beta = 0.1 }, "sppo: (u - 5)^2 + (v + 5)^2 [beta 0.1]" },
    };
    char out[300], small[12];
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_string_equal(loss_describe(out, sizeof out, loss_find(rows[i].name), &rows[i].o),
                            rows[i].text);
    assert_string_equal(loss_describe(small, sizeof small, loss_find("dpop"), &rows[0].o),
                        "dpop: softp");
    for (size_t i = 0; i < loss_count;
         i++) /* every option's value is there, none of the names within the formula */
        for (unsigned bit = LOSS_BETA; bit <= LOSS_SMOOTHING; bit <<= 1) {
            char word[40];
            if (!(loss_table[i].options & bit)) continue;
            loss_describe(out, sizeof out, &loss_table[i], &loss_table[i].defaults);
            snprintf(word, sizeof word, "%s %g", loss_option_name(bit),
                     loss_option(bit, &loss_table[i].defaults));
            const char *list = strchr(out, '[');
            assert_non_null(list);
            assert_non_null(strstr(list, word));
            *strchr(out, '[') = 0;
            assert_null(strstr(out, loss_option_name(bit)));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss__table_and_names),
        cmocka_unit_test(test_loss__equals_long_double_oracle),
        cmocka_unit_test(test_loss__derivatives_equal_differences),
        cmocka_unit_test(test_loss__first_step_values),
        cmocka_unit_test(test_loss__bdpo_at_lambda_one_is_dpo),
        cmocka_unit_test(test_loss__bdpo_at_lambda_zero_ignores_rejected),
        cmocka_unit_test(test_loss__bdpo_is_bounded_in_the_rejected),
        cmocka_unit_test(test_loss__nothing_overflows),
        cmocka_unit_test(test_loss__nan_shows),
        cmocka_unit_test(test_loss__kinks),
        cmocka_unit_test(test_loss__orpo_near_certainty),
        cmocka_unit_test(test_loss__describe),
    };
    return cmocka_run_group_tests_name("loss", tests, NULL, NULL);
}
