/* SPDX-License-Identifier: MIT */
#include "stats.h"
#include "mem.h"
#include "rng.h"
#include <math.h>
#include <stdlib.h>

static const double Z95 = 1.959963984540054; /* the normal distribution's 97.5 % quantile */

double stats_mean(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    return n ? sum / (double)n : NAN;
}

double stats_stderr(const double *x, int64_t n)
{
    const double mean = stats_mean(x, n);
    double sum = 0;
    if (n < 2) return NAN;
    for (int64_t i = 0; i < n; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    return sqrt(sum / ((double)n * (double)(n - 1)));
}

struct interval stats_wilson(double share, double n)
{
    const double z2 = Z95 * Z95, centre = (share + z2 / (2 * n)) / (1 + z2 / n);
    const double half = Z95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n));
    return (struct interval){ share, fmax(0, centre - half), fmin(1, centre + half) };
}

double stats_quantile(const double *sorted, int64_t n, double q)
{
    const double at = q * (double)(n - 1);
    const int64_t i = MIN((int64_t)at, n - 1), j = MIN(i + 1, n - 1);
    return sorted[i] + (at - (double)i) * (sorted[j] - sorted[i]);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double resampled_mean(const double *x, int64_t n, uint64_t seed, int64_t resample)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double u =
            rng_uniform(seed, rng_stream_of(RNG_BOOTSTRAP, (uint64_t)resample), (uint64_t)i);
        sum += x[MIN((int64_t)(u * (double)n), n - 1)];
    }
    return sum / (double)n;
}

int stats_bootstrap(struct interval *out, const double *x, int64_t n, uint64_t seed,
                    int64_t resamples)
{
    double *means = NULL;
    *out = (struct interval){ stats_mean(x, n), NAN, NAN };
    if (n == 0) return 0;
    TRY(MEM_NEW(&means, resamples));
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < resamples; r++)
        means[r] = resampled_mean(x, n, seed, r);
    qsort(means, (size_t)resamples, sizeof *means, ascending);
    out->lo = stats_quantile(means, resamples, 0.025);
    out->hi = stats_quantile(means, resamples, 0.975);
    free(means);
    return 0;
}
