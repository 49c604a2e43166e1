/* SPDX-License-Identifier: MIT
 * stats.h - means with 95 % confidence intervals. */
#ifndef BDPO_STATS_H
#define BDPO_STATS_H
#include "base.h"

struct interval { double value, lo, hi; };

double stats_mean(const double *x, int64_t n); /* NAN for n = 0 */
/* Standard error of the mean: sqrt(sum (x - mean)^2 / (n (n - 1))); NAN below 2 values. */
double stats_stderr(const double *x, int64_t n);
/* A share of n independent trials, 0 <= share <= 1, with Wilson's score interval (1927); it has a width at 0 and 1 too. n > 0. */
struct interval stats_wilson(double share, double n);
/* Mean of x[n] with the percentile bootstrap (Efron 1979): the 2.5 % and 97.5 % quantiles of the means of `resamples` samples of n with
 * replacement. Counter-based draws: a pure function of (x, seed, resamples), whatever the threads. NAN for n = 0. ERR_OOM. */
int stats_bootstrap(struct interval *out, const double *x, int64_t n, uint64_t seed, int64_t resamples);
/* The quantile q of sorted x[n], n > 0, linear between order statistics (type 7 of Hyndman and Fan 1996; numpy's default). */
double stats_quantile(const double *sorted, int64_t n, double q);
#endif
