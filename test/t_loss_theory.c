/* SPDX-License-Identifier: MIT
 * What the paper proves of the losses, on a softmax trained by gradient descent. */
#include "../src/base/rng.h"
#include "../src/loss/loss.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

/* cmocka's assert_float_equal compares as float */
#define assert_close(got, want, tol) assert_close_at((got), (want), (tol), #got, __LINE__)
static void assert_close_at(double got, double want, double tol, const char *what, int line)
{
    if (!(fabs(got - want) <= tol))
        fail_msg("line %d: %s is %.17g, expected %.17g", line, what, got, want);
}

/* A softmax over n responses whose logits are theta's features, one pair: w is 0, l is 1 --------------------------- */

enum { RESPONSES = 4 };
struct toy {
    const double (*phi)[RESPONSES]; /* [RESPONSES] features; NULL: the identity */
    double theta[RESPONSES], pi[RESPONSES], ref[RESPONSES];
};

static void toy_forward(struct toy *t)
{
    double logit[RESPONSES], top = -INFINITY, sum = 0;
    for (int i = 0; i < RESPONSES; i++) {
        logit[i] = 0;
        for (int k = 0; k < RESPONSES; k++)
            logit[i] += (t->phi ? t->phi[i][k] : i == k) * t->theta[k];
        top = fmax(top, logit[i]);
    }
    for (int i = 0; i < RESPONSES; i++)
        sum += t->pi[i] = exp(logit[i] - top);
    for (int i = 0; i < RESPONSES; i++)
        t->pi[i] /= sum;
}

/* One step of gradient descent; returns the loss before it. */
static double toy_step(struct toy *t, const struct loss_def *d, const struct loss_opts *o,
                       double rate)
{
    const struct loss_pair p = {
        log(t->pi[0]), log(fmax(t->pi[1], 1e-300)), log(t->ref[0]), log(t->ref[1]), 1, 1
    };
    struct loss_grad g;
    d->eval(&g, &p, o, 0);
    for (int k = 0; k < RESPONSES; k++) {
        double mean = 0;
        for (int i = 0; i < RESPONSES; i++)
            mean += t->pi[i] * (t->phi ? t->phi[i][k] : i == k);
        t->theta[k] -= rate * (g.d_lw * ((t->phi ? t->phi[0][k] : k == 0) - mean) +
                               g.d_ll * ((t->phi ? t->phi[1][k] : k == 1) - mean));
    }
    toy_forward(t);
    return g.loss;
}

static void toy_init(struct toy *t, const double theta[RESPONSES])
{
    memcpy(t->theta, theta, sizeof t->theta);
    toy_forward(t);
    memcpy(t->ref, t->pi, sizeof t->ref);
}

static void test_loss__theorem_1(void **state)
{
    static const double start[][RESPONSES] = { { 0, 0, 0, 0 }, { -2, 1, 0.5, 1 }, { 1, -1, 2, 0 } };
    static const double lambdas[] = { 0.1, 0.5, 0.9 };
    (void)state;
    for (size_t s = 0; s < COUNT_OF(start); s++)
        for (size_t i = 0; i < COUNT_OF(lambdas); i++) {
            const struct loss_opts o = { .beta = 0.1, .lambda = lambdas[i] };
            struct toy t = { 0 };
            toy_init(&t, start[s]);
            for (int k = 0; k < 20000; k++)
                toy_step(&t, loss_find("bdpo"), &o, 20);
            assert_true(t.pi[0] > 0.999 && t.pi[1] < 1e-3);
        }
}

static void test_loss__corollary_1(void **state)
{
    const struct loss_opts o = { .beta = 0.1, .lambda = 0.5 };
    const struct loss_pair counter = { log(0.1), -1e5, log(0.4), log(0.1), 1, 1 };
    const struct loss_pair best = { 0, -1e5, log(0.4), log(0.1), 1, 1 };
    struct loss_grad g, at_best;
    (void)state;
    loss_find("dpo")->eval(&g, &counter, &o, 0); /* its infimum, and nothing moves it */
    assert_true(g.loss == 0 && g.d_lw == 0 && g.d_ll == 0);
    loss_find("bdpo")->eval(&g, &counter, &o, 0);
    loss_find("bdpo")->eval(&at_best, &best, &o, 0);
    assert_true(g.loss > at_best.loss + 0.05 && g.d_lw < -0.01);
}

static void test_loss__theorem_2(void **state)
{
    static const double phi[RESPONSES][RESPONSES] = { { 1 }, { 2 }, { 0 }, { 0, 1 } };
    static const double lambdas[] = { 0.1, 0.5, 0.9, 0.999 };
    static const double start[RESPONSES] = { 0.3, -0.2, 0, 0 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(lambdas); i++) {
        const struct loss_opts o = { .beta = 0.1, .lambda = lambdas[i] };
        struct toy t = { .phi = phi };
        double before = INFINITY;
        toy_init(&t, start);
        for (int k = 0; k < 5000; k++) {
            const double loss = toy_step(&t, loss_find("bdpo"), &o, 1);
            assert_true(loss <= before);
            before = loss;
            assert_true(t.pi[0] > (1 - lambdas[i]) * t.ref[0]);
        }
    }
    int64_t seen = 0; /* per pair, wherever the policy stands */
    for (uint64_t k = 0; k < 20000; k++) {
        const double u = 30 * rng_normal(2, RNG_TEST, 3 * k),
                     v = 15 * rng_normal(2, RNG_TEST, 3 * k + 1);
        const struct loss_opts o = { .beta = 0.1, .lambda = rng_uniform(2, RNG_TEST, 3 * k + 2) };
        const struct loss_pair p = { -300 + u, -200 + v, -300, -200, 9, 9 };
        struct loss_grad g;
        loss_find("bdpo")->eval(&g, &p, &o, 0);
        if (g.loss > M_LN2) continue;
        seen++;
        assert_true(u > log1p(-o.lambda));
    }
    assert_true(seen > 5000);
}

static void test_loss__appendix_k(void **state)
{
    static const char *const unbounded[] = { "dpo", "dpo_nll", "dpop" };
    const double ref_w = 0.4, ref_l = 0.1, pi_w = 0.3;
    (void)state;
    for (double log_l = log(0.6); log_l > -600; log_l -= 7.3) {
        const double pi_l = exp(log_l);
        const struct loss_pair p = { log(pi_w), log_l, log(ref_w), log(ref_l), 1, 1 };
        const struct loss_opts bdpo = { .beta = 0.1, .lambda = 0.9 };
        const double mix = 0.9 * pi_l + 0.1 * ref_l;
        double delta = 0.1 * (log(pi_w / ref_w) - log(mix / ref_l));
        const double want = 0.1 / (1 + exp(delta)) * 0.9 / mix;
        struct loss_grad g;
        loss_find("bdpo")->eval(&g, &p, &bdpo, 0);
        assert_close(g.d_ll / pi_l, want, 1e-12 * want);
        assert_true(g.d_ll / pi_l < 0.1 * 0.9 / (0.1 * ref_l)); /* bounded for every pi(l) */
        for (size_t i = 0; i < COUNT_OF(unbounded); i++) {
            const struct loss_def *d = loss_find(unbounded[i]);
            const double fall =
                d->options & LOSS_LAMBDA ? d->defaults.lambda * log(ref_w / pi_w) : 0;
            d->eval(&g, &p, &d->defaults, 0);
            delta = 0.1 * (log(pi_w / ref_w) - (log_l - log(ref_l)) - fall);
            const double free_l = 0.1 / (1 + exp(delta)) / pi_l;
            assert_close(g.d_ll / pi_l, free_l, 1e-12 * free_l);
        }
    }
    const struct loss_pair gone = { log(pi_w), -600, log(ref_w), log(ref_l), 1, 1 };
    struct loss_grad g;
    loss_find("dpo")->eval(&g, &gone, &loss_find("dpo")->defaults, 0);
    assert_true(g.d_ll / exp(-600) > 1e200);
}

/* The chosen response shares its features with the rejected one: dpo's loss falls and takes pi(w) down with it; bdpo
 * holds it above (1 - lambda) ref(w). */
static void test_loss__dpo_can_lose_the_chosen(void **state)
{
    static const double phi[RESPONSES][RESPONSES] = { { 1 }, { 2 }, { 0 }, { 0 } };
    static const double start[RESPONSES] = { 0 };
    struct toy dpo = { .phi = phi }, bdpo = { .phi = phi };
    const struct loss_opts o = { .beta = 0.1, .lambda = 0.5 };
    double before = INFINITY;
    (void)state;
    toy_init(&dpo, start);
    toy_init(&bdpo, start);
    for (int k = 0; k < 3000; k++) {
        const double loss = toy_step(&dpo, loss_find("dpo"), &(struct loss_opts){ .beta = 0.1 }, 1),
                     pi_w = dpo.pi[0];
        assert_true(loss < before);
        before = loss;
        toy_step(&bdpo, loss_find("bdpo"), &o, 1);
        assert_true(pi_w < dpo.ref[0] && bdpo.pi[0] > 0.5 * bdpo.ref[0]);
    }
    assert_true(dpo.pi[0] < 1e-6 && bdpo.pi[0] > 0.1);
}

/* lambda to 1 is dpo, lambda to 0 forgets the rejected response; in between loss and gate are monotonic in lambda: for v > 0 both
 * grow with it, for v < 0 the loss falls. */
static void test_loss__limits_in_lambda(void **state)
{
    static const double logratio[] = { -40, -3, -0.2, 0.3, 5, 30 };
    const struct loss_def *bdpo = loss_find("bdpo"), *dpo = loss_find("dpo");
    (void)state;
    for (size_t i = 0; i < COUNT_OF(logratio); i++)
        for (size_t k = 0; k < COUNT_OF(logratio); k++) {
            const struct loss_pair p = { -90 + logratio[i], -80 + logratio[k], -90, -80, 7, 5 };
            const double u = logratio[i], v = logratio[k];
            struct loss_grad g, full, last = { 0 };
            dpo->eval(&full, &p, &(struct loss_opts){ .beta = 0.1 }, 0);
            /* m moves by log1p((1 - lambda) (e^-v - 1)) from v, by log1p(lambda (e^v - 1)) from 0 */
            for (double e = 1e-3; e > 1e-13; e /= 10) {
                bdpo->eval(&g, &p, &(struct loss_opts){ .beta = 0.1, .lambda = 1 - e }, 0);
                assert_close(g.loss, full.loss, 0.1 * fabs(log1p(e * expm1(-v))) + 1e-12);
                bdpo->eval(&g, &p, &(struct loss_opts){ .beta = 0.1, .lambda = e }, 0);
                assert_close(g.loss, log1p(exp(-0.1 * u)), 0.1 * fabs(log1p(e * expm1(v))) + 1e-12);
                assert_true(g.gate <= e * exp(fmax(v, 0)) * (1 + 1e-12));
            }
            for (double lambda = 0; lambda <= 1; lambda += 0.0625, last = g) {
                bdpo->eval(&g, &p, &(struct loss_opts){ .beta = 0.1, .lambda = lambda }, 0);
                if (lambda == 0) continue;
                assert_true(g.gate > last.gate);
                assert_true(v > 0 ? g.loss > last.loss : g.loss < last.loss);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss__theorem_1),
        cmocka_unit_test(test_loss__corollary_1),
        cmocka_unit_test(test_loss__theorem_2),
        cmocka_unit_test(test_loss__appendix_k),
        cmocka_unit_test(test_loss__limits_in_lambda),
        cmocka_unit_test(test_loss__dpo_can_lose_the_chosen),
    };
    return cmocka_run_group_tests_name("loss_theory", tests, NULL, NULL);
}
