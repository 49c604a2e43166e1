/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "model_ref.h"
#include "../src/base/rng.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *reals(int64_t n)
{
    double *p = calloc((size_t)n, sizeof *p);
    BUG_IF(!p);
    return p;
}

void ref_init(struct ref *r, const struct model *m)
{
    r->m = m;
    r->w = reals(m->n_flat);
    for (int64_t i = 0; i < m->n_flat; i++)
        r->w[i] = m->dtype == DT_BF16 ? (double)bf16_to_f32(((const uint16_t *)m->weights.data)[i])
                                      : (double)((const float *)m->weights.data)[i];
}

void ref_release(struct ref *r)
{
    free(r->w);
    memset(r, 0, sizeof *r);
}

double *ref_tensor(const struct ref *r, const char *name, int64_t *n)
{
    for (int32_t i = 0; i < r->m->n_params; i++) {
        const struct param *p = &r->m->params[i];
        for (int32_t j = 0; j < p->n_slices; j++) {
            if (strcmp(p->slice[j].name, name) != 0) continue;
            *n = p->slice[j].rows * p->w.dim[1];
            return r->w + p->offset + p->slice[j].row * p->w.dim[1];
        }
    }
    bug(__FILE__, __LINE__, name);
}

static const double *layer_tensor(const struct ref *r, int64_t l, const char *name)
{
    char full[128];
    int64_t n;
    snprintf(full, sizeof full, "model.layers.%d.%s", (int)l, name);
    return ref_tensor(r, full, &n);
}

/* y[n] = w[n, k] x[k] + b[n] */
static void matvec(double *y, const double *w, const double *b, const double *x, int64_t n,
                   int64_t k)
{
    for (int64_t i = 0; i < n; i++) {
        y[i] = b ? b[i] : 0;
        for (int64_t j = 0; j < k; j++)
            y[i] += w[i * k + j] * x[j];
    }
}

static void norm(double *y, const double *x, const double *w, int64_t n, double eps)
{
    double ss = 0;
    for (int64_t i = 0; i < n; i++)
        ss += x[i] * x[i];
    const double rstd = 1 / sqrt(ss / (double)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * rstd * w[i];
}

static double frequency(const struct arch *a, int64_t i)
{
    const double f = pow(a->rope_theta, -2.0 * (double)i / (double)a->D);
    if (!a->rope_llama3) return f;
    const double wave = 2 * acos(-1.0) / f, length = (double)a->rope_original;
    if (wave < length / a->rope_high) return f;
    if (wave > length / a->rope_low) return f / a->rope_factor;
    const double s = (length / wave - a->rope_low) / (a->rope_high - a->rope_low);
    return (1 - s) * f / a->rope_factor + s * f;
}

static void rotate(const struct arch *a, double *x, int32_t pos)
{
    const int64_t half = a->D / 2;
    for (int64_t i = 0; i < half; i++) {
        const double c = cos(pos * frequency(a, i)), s = sin(pos * frequency(a, i));
        const double u = x[i], v = x[i + half];
        x[i] = u * c - v * s;
        x[i + half] = v * c + u * s;
    }
}

/* heads[n, D] of token t: projected, normed where the model does, rotated */
static void heads(const struct ref *r, int64_t l, const char *which, int64_t n, const double *h,
                  int32_t t, double *out)
{
    const struct arch *a = &r->m->arch;
    char name[64];
    snprintf(name, sizeof name, "self_attn.%s_proj.weight", which);
    const double *w = layer_tensor(r, l, name);
    snprintf(name, sizeof name, "self_attn.%s_proj.bias", which);
    matvec(out, w, a->qkv_bias ? layer_tensor(r, l, name) : NULL, h, n * a->D, a->C);
    if (*which == 'v') return;
    snprintf(name, sizeof name, "self_attn.%s_norm.weight", which);
    for (int64_t i = 0; i < n; i++) {
        double *x = out + i * a->D;
        if (a->qk_norm) norm(x, x, layer_tensor(r, l, name), a->D, a->rms_eps);
        rotate(a, x, t);
    }
}

/* out[H*D] of query q over keys 0..t */
static void attend(const struct arch *a, const double *q, const double *k, const double *v,
                   int32_t t, double *out)
{
    const int64_t D = a->D, width = a->K * D;
    double *p = reals(t + 1);
    for (int64_t h = 0; h < a->H; h++) {
        const int64_t kv = h / (a->H / a->K) * D;
        double top = -INFINITY, sum = 0;
        for (int32_t s = 0; s <= t; s++) {
            p[s] = 0;
            for (int64_t i = 0; i < D; i++)
                p[s] += q[h * D + i] * k[s * width + kv + i] / sqrt((double)D);
            top = fmax(top, p[s]);
        }
        for (int32_t s = 0; s <= t; s++)
            sum += p[s] = exp(p[s] - top);
        for (int64_t i = 0; i < D; i++) {
            out[h * D + i] = 0;
            for (int32_t s = 0; s <= t; s++)
                out[h * D + i] += p[s] / sum * v[s * width + kv + i];
        }
    }
    free(p);
}

static void mlp(const struct ref *r, int64_t l, const double *h, double *out)
{
    const struct arch *a = &r->m->arch;
    const bool b = a->mlp_bias;
    double *g = reals(a->F), *u = reals(a->F);
    matvec(g, layer_tensor(r, l, "mlp.gate_proj.weight"),
           b ? layer_tensor(r, l, "mlp.gate_proj.bias") : NULL, h, a->F, a->C);
    matvec(u, layer_tensor(r, l, "mlp.up_proj.weight"),
           b ? layer_tensor(r, l, "mlp.up_proj.bias") : NULL, h, a->F, a->C);
    for (int64_t i = 0; i < a->F; i++)
        g[i] = g[i] / (1 + exp(-g[i])) * u[i];
    matvec(out, layer_tensor(r, l, "mlp.down_proj.weight"),
           b ? layer_tensor(r, l, "mlp.down_proj.bias") : NULL, g, a->C, a->F);
    free(g);
    free(u);
}

static void layer(const struct ref *r, int64_t l, double *x, int32_t n)
{
    const struct arch *a = &r->m->arch;
    const int64_t kv = a->K * a->D;
    double *k = reals(n * kv), *v = reals(n * kv), *q = reals(a->H * a->D);
    double *att = reals(a->H * a->D), *h = reals(a->C), *out = reals(a->C);
    for (int32_t t = 0; t < n; t++) {
        double *xt = x + t * a->C;
        norm(h, xt, layer_tensor(r, l, "input_layernorm.weight"), a->C, a->rms_eps);
        heads(r, l, "q", a->H, h, t, q);
        heads(r, l, "k", a->K, h, t, k + t * kv);
        heads(r, l, "v", a->K, h, t, v + t * kv);
        attend(a, q, k, v, t, att);
        matvec(out, layer_tensor(r, l, "self_attn.o_proj.weight"),
               a->o_bias ? layer_tensor(r, l, "self_attn.o_proj.bias") : NULL, att, a->C,
               a->H * a->D);
        for (int64_t i = 0; i < a->C; i++)
            xt[i] += out[i];
        norm(h, xt, layer_tensor(r, l, "post_attention_layernorm.weight"), a->C, a->rms_eps);
        mlp(r, l, h, out);
        for (int64_t i = 0; i < a->C; i++)
            xt[i] += out[i];
    }
    free(k);
    free(v);
    free(q);
    free(att);
    free(h);
    free(out);
}

void ref_logits(const struct ref *r, const int32_t *ids, int32_t n, double *logits)
{
    const struct arch *a = &r->m->arch;
    int64_t count;
    const double *embed = ref_tensor(r, "model.embed_tokens.weight", &count);
    const double *head = a->tied ? embed : ref_tensor(r, "lm_head.weight", &count);
    double *x = reals(n * a->C), *h = reals(a->C);
    for (int32_t t = 0; t < n; t++)
        memcpy(x + t * a->C, embed + ids[t] * a->C, (size_t)a->C * sizeof *x);
    for (int64_t l = 0; l < a->L; l++)
        layer(r, l, x, n);
    for (int32_t t = 0; t < n; t++) {
        norm(h, x + t * a->C, ref_tensor(r, "model.norm.weight", &count), a->C, a->rms_eps);
        matvec(logits + t * a->V, head, NULL, h, a->V, a->C);
    }
    free(x);
    free(h);
}

double ref_logp(const struct ref *r, const int32_t *ids, int32_t n, int32_t first)
{
    const int64_t V = r->m->arch.V;
    double *z = reals((n - 1) * V), sum = 0;
    ref_logits(r, ids, n - 1, z);
    for (int32_t t = first; t < n; t++) {
        const double *zt = z + (t - 1) * V;
        double top = zt[0], s = 0;
        for (int64_t i = 0; i < V; i++)
            top = fmax(top, zt[i]);
        for (int64_t i = 0; i < V; i++)
            s += exp(zt[i] - top);
        sum += zt[ids[t]] - top - log(s);
    }
    free(z);
    return sum;
}

double ref_sequence(const struct ref *r, const struct fix_pairs *p, int s)
{
    int32_t ids[2 * FIX_LEN];
    const int32_t n = fix_sequence(p, s, ids);
    return ref_logp(r, ids, n, p->np[s / 2]);
}

double ref_tolerance(const struct model *m, double scale)
{
    const double width = (double)MAX(m->arch.F, m->arch.V);
    return 16 * (double)FLT_EPSILON * sqrt(width) * fmax(scale, 1);
}

void ref_check_gradient(const struct ref *r, int32_t i, const struct param_slice *slice, int places,
                        double factor, ref_objective_fn *objective, const void *ctx)
{
    const struct tensor grad = model_grad(r->m, i);
    const float *g = (const float *)grad.data + slice->row * grad.dim[1];
    const double h = 1e-5;
    int64_t n;
    double *w = ref_tensor(r, slice->name, &n), scale = 0;
    for (int64_t j = 0; j < n; j++)
        scale = fmax(scale, fabs((double)g[j]));
    assert_true(scale > 0);
    for (uint64_t k = 0; k < (uint64_t)places; k++) {
        int64_t j = (int64_t)(rng_u64(11, (uint64_t)i, k) % (uint64_t)n);
        for (int64_t t = 0; k % 2 && t < n; t++)
            if (fabs((double)g[t]) == scale) j = t;
        const double was = w[j];
        w[j] = was + h;
        const double up = objective(ctx);
        w[j] = was - h;
        const double down = objective(ctx);
        w[j] = was;
        const double want = (up - down) / (2 * h);
        if (!(fabs((double)g[j] - want) <= factor * ref_tolerance(r->m, scale)))
            fail_msg("%s[%lld]: %.9g, expected %.9g", slice->name, (long long)j, (double)g[j],
                     want);
    }
}
