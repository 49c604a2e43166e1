/* SPDX-License-Identifier: MIT */
#include "ref_ops.h"
#include <math.h>
#include <stdlib.h>

static double *doubles(int64_t n)
{
    double *p = calloc((size_t)MAX(n, (int64_t)1), sizeof *p);
    BUG_IF(!p);
    return p;
}

void ref_gemm(double *y, const double *a, bool ta, const double *b, bool tb, int64_t M, int64_t N,
              int64_t K, double alpha, double beta)
{
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            double s = 0;
            for (int64_t k = 0; k < K; k++)
                s += (ta ? a[k * M + i] : a[i * K + k]) * (tb ? b[j * K + k] : b[k * N + j]);
            y[i * N + j] = alpha * s + (beta != 0 ? beta * y[i * N + j] : 0);
        }
}

void ref_bias_fwd(double *y, const double *b, int64_t T, int64_t N)
{
    for (int64_t i = 0; i < T * N; i++)
        y[i] += b[i % N];
}

void ref_bias_bwd(double *db, const double *dy, int64_t T, int64_t N)
{
    for (int64_t i = 0; i < T * N; i++)
        db[i % N] += dy[i];
}

void ref_gather(double *y, const double *x, const int32_t *index, int64_t n, int64_t C)
{
    for (int64_t i = 0; i < n * C; i++)
        y[i] = x[index[i / C] * C + i % C];
}

void ref_scatter_add(double *dx, const double *dy, const int32_t *index, int64_t n, int64_t C)
{
    for (int64_t i = 0; i < n * C; i++)
        dx[index[i / C] * C + i % C] += dy[i];
}

void ref_rmsnorm_fwd(double *y, double *rstd, double *sum, const double *x, const double *r,
                     const double *w, double eps, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        double q = 0;
        for (int64_t i = 0; i < C; i++) {
            const double s = x[t * C + i] + (r ? r[t * C + i] : 0);
            if (sum) sum[t * C + i] = s;
            q += s * s;
        }
        rstd[t] = 1 / sqrt(q / (double)C + eps);
        for (int64_t i = 0; i < C; i++)
            y[t * C + i] = (x[t * C + i] + (r ? r[t * C + i] : 0)) * rstd[t] * w[i];
    }
}

void ref_rmsnorm_bwd(double *dx, double *dw, const double *dy, const double *s, const double *w,
                     const double *rstd, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        const double *g = dy + t * C, *x = s + t * C;
        double d = 0;
        for (int64_t i = 0; i < C; i++)
            d += g[i] * w[i] * x[i];
        for (int64_t i = 0; i < C; i++) {
            dx[t * C + i] +=
                g[i] * w[i] * rstd[t] - x[i] * d * rstd[t] * rstd[t] * rstd[t] / (double)C;
            dw[i] += g[i] * x[i] * rstd[t];
        }
    }
}

void ref_rope(double *x, const int32_t *pos, const double *table, int64_t T, int64_t n, int64_t D,
              bool inverse)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < n; h++)
            for (int64_t i = 0; i < D / 2; i++) {
                double *p = x + (t * n + h) * D + i;
                const double c = table[pos[t] * D + i],
                             s = table[pos[t] * D + D / 2 + i] * (inverse ? -1 : 1);
                const double a = p[0], b = p[D / 2];
                p[0] = a * c - b * s;
                p[D / 2] = b * c + a * s;
            }
}

/* kv row of key j of a segment */
static int64_t key_row(const struct segment *s, int64_t j)
{
    return j < s->prefix_len ? s->prefix + j : s->own + j - s->prefix_len;
}

static double dot(const double *a, const double *b, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* p[j] = softmax over the n keys that query i of the segment sees; returns the log-sum-exp */
static double weights(double *p, int64_t n, const struct segment *s, const double *q,
                      const double *k, int64_t ldk, const struct ref_att *a)
{
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        p[j] = a->scale * dot(q, k + key_row(s, j) * ldk, a->D);
        top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j < n; j++)
        sum += exp(p[j] - top);
    for (int64_t j = 0; j < n; j++)
        p[j] = exp(p[j] - top) / sum;
    return top + log(sum);
}

void ref_attention_fwd(double *o, double *lse, const double *q, const double *k, const double *v,
                       const struct ref_att *a)
{
    const int64_t ldq = a->H * a->D, ldk = a->K * a->D;
    for (int32_t g = 0; g < a->segs->n; g++) {
        const struct segment *s = &a->segs->seg[g];
        double *p = doubles(s->prefix_len + s->len);
        for (int64_t i = 0; i < s->len; i++)
            for (int64_t h = 0; h < a->H; h++) {
                const int64_t n = s->prefix_len + i + 1, at = h / (a->H / a->K) * a->D,
                              row = s->q + i;
                lse[row * a->H + h] = weights(p, n, s, q + row * ldq + h * a->D, k + at, ldk, a);
                for (int64_t d = 0; d < a->D; d++) {
                    double x = 0;
                    for (int64_t j = 0; j < n; j++)
                        x += p[j] * v[key_row(s, j) * ldk + at + d];
                    o[row * ldq + h * a->D + d] = x;
                }
            }
        free(p);
    }
}

static void att_bwd_row(double *dq, double *dk, double *dv, const double *dout, const double *q,
                        const double *k, const double *v, int64_t n, const struct segment *s,
                        const struct ref_att *a, double *p)
{
    const int64_t ldk = a->K * a->D;
    double *dp = doubles(n), mean = 0;
    weights(p, n, s, q, k, ldk, a);
    for (int64_t j = 0; j < n; j++) {
        dp[j] = dot(dout, v + key_row(s, j) * ldk, a->D);
        mean += p[j] * dp[j];
    }
    for (int64_t j = 0; j < n; j++) {
        const int64_t at = key_row(s, j) * ldk;
        const double ds = p[j] * (dp[j] - mean) * a->scale;
        for (int64_t d = 0; d < a->D; d++) {
            dq[d] += ds * k[at + d];
            dk[at + d] += ds * q[d];
            dv[at + d] += p[j] * dout[d];
        }
    }
    free(dp);
}

void ref_attention_bwd(double *dq, double *dk, double *dv, const double *dout, const double *q,
                       const double *k, const double *v, const struct ref_att *a)
{
    const int64_t ldq = a->H * a->D, ldk = a->K * a->D;
    for (int32_t g = 0; g < a->segs->n; g++) {
        const struct segment *s = &a->segs->seg[g];
        for (int64_t i = 0; i < s->len * ldk; i++)
            dk[s->own * ldk + i] = dv[s->own * ldk + i] = 0;
        for (int64_t i = 0; i < s->len * ldq; i++)
            dq[s->q * ldq + i] = 0;
    }
    for (int32_t g = 0; g < a->segs->n; g++) {
        const struct segment *s = &a->segs->seg[g];
        double *p = doubles(s->prefix_len + s->len);
        for (int64_t i = 0; i < s->len; i++)
            for (int64_t h = 0; h < a->H; h++) {
                const int64_t at = h / (a->H / a->K) * a->D, row = (s->q + i) * ldq + h * a->D;
                att_bwd_row(dq + row, dk + at, dv + at, dout + row, q + row, k + at, v + at,
                            s->prefix_len + i + 1, s, a, p);
            }
        free(p);
    }
}

void ref_swiglu_fwd(double *y, const double *gu, int64_t T, int64_t F)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < F; i++) {
            const double g = gu[t * 2 * F + i];
            y[t * F + i] = g / (1 + exp(-g)) * gu[t * 2 * F + F + i];
        }
}

void ref_swiglu_bwd(double *dgu, const double *dy, const double *gu, int64_t T, int64_t F)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < F; i++) {
            const double g = gu[t * 2 * F + i], u = gu[t * 2 * F + F + i], s = 1 / (1 + exp(-g)),
                         d = dy[t * F + i];
            dgu[t * 2 * F + i] = d * u * s * (1 + g * (1 - s));
            dgu[t * 2 * F + F + i] = d * g * s;
        }
}

static double log_sum_exp(double *z, const double *h, const double *w, int64_t C, int64_t V)
{
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < V; j++) {
        z[j] = dot(h, w + j * C, C);
        top = fmax(top, z[j]);
    }
    for (int64_t j = 0; j < V; j++)
        sum += exp(z[j] - top);
    return top + log(sum);
}

void ref_logp_fwd(double *logp, double *lse, const double *h, const double *w,
                  const int32_t *target, int64_t N, int64_t C, int64_t V)
{
    double *z = doubles(V);
    for (int64_t i = 0; i < N; i++) {
        lse[i] = log_sum_exp(z, h + i * C, w, C, V);
        logp[i] = z[target[i]] - lse[i];
    }
    free(z);
}

void ref_logp_bwd(double *dh, double *dw, const double *coef, const double *h, const double *w,
                  const int32_t *target, int64_t N, int64_t C, int64_t V)
{
    double *z = doubles(V);
    for (int64_t i = 0; i < N * C; i++)
        dh[i] = 0;
    for (int64_t i = 0; i < N; i++) {
        const double lse = log_sum_exp(z, h + i * C, w, C, V);
        for (int64_t j = 0; j < V; j++) {
            const double dz = coef[i] * ((j == target[i]) - exp(z[j] - lse));
            for (int64_t c = 0; c < C; c++) {
                dh[i * C + c] += dz * w[j * C + c];
                dw[j * C + c] += dz * h[i * C + c];
            }
        }
    }
    free(z);
}

void ref_adamw(double *w, double *m, double *v, const double *g, const struct adamw *opt, int64_t n)
{
    const double c1 = 1 - pow(opt->beta1, (double)opt->step),
                 c2 = 1 - pow(opt->beta2, (double)opt->step);
    for (int64_t i = 0; i < n; i++) {
        const double d = g[i] * opt->grad_scale;
        m[i] = opt->beta1 * m[i] + (1 - opt->beta1) * d;
        v[i] = opt->beta2 * v[i] + (1 - opt->beta2) * d * d;
        w[i] -= opt->lr * opt->weight_decay * w[i];
        w[i] -= opt->lr * (m[i] / c1) / (sqrt(v[i] / c2) + opt->eps);
    }
}

double ref_sumsq(const double *x, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += x[i] * x[i];
    return s;
}

void ref_add(double *y, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}
