/* SPDX-License-Identifier: MIT */
#include "score.h"
#include "share.h"
#include "../base/signals.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int scores_init(struct scores *s, int64_t n)
{
    TRY(MEM_NEW(&s->w, n));
    TRY(MEM_NEW(&s->l, n));
    s->n = n;
    for (int64_t i = 0; i < n; i++)
        s->w[i] = s->l[i] = NAN;
    return 0;
}

void scores_release(struct scores *s)
{
    free(s->w);
    free(s->l);
    memset(s, 0, sizeof *s);
}

int score_rows(struct scores *s, struct model *m, struct batch *b, const struct dataset *d,
               const int64_t *idx, int64_t n, int64_t tokens_max)
{
    double *logp = NULL;
    int rc = MEM_NEW(&logp, 2 * (int64_t)b->P_max);
    for (int64_t at = 0; rc == 0 && at < n;) {
        const int64_t k = batch_fit(d, idx + at, n - at, tokens_max);
        batch_fill(b, d, idx + at, k);
        TRY_OUT(model_forward(m, b));
        TRY_OUT(model_logp(m, b, logp, false));
        for (int32_t p = 0; p < b->P; p++) {
            const bool pairs = b->S == 2 * b->P;
            s->w[b->example[p]] = pairs ? logp[2 * p] : logp[p];
            if (pairs) s->l[b->example[p]] = logp[2 * p + 1];
        }
        at += k;
    }
out:
    free(logp);
    return rc;
}

int score_share(struct scores *s, struct dist *dist, int rc, const int64_t *idx, const bool *mine,
                int64_t n)
{
    double *x = NULL;
    if (rc == 0) rc = MEM_NEW(&x, 2 * n);
    TRY_OUT(dist_agree(dist, rc));
    for (int64_t i = 0; i < n; i++) {
        x[2 * i] = mine[i] ? s->w[idx[i]] : 0;
        x[2 * i + 1] = mine[i] ? s->l[idx[i]] : 0;
    }
    TRY_OUT(dist_sum(dist, x, 2 * n));
    for (int64_t i = 0; i < n; i++) {
        s->w[idx[i]] = x[2 * i];
        s->l[idx[i]] = x[2 * i + 1];
    }
out:
    free(x);
    return rc;
}

int score_all(struct scores *s, struct dist *dist, bool fixed, struct model *m, struct batch *b,
              const struct dataset *d, int64_t tokens_max)
{
    struct slot *slot = NULL;
    int64_t *idx = NULL, n = 0;
    bool *mine = NULL;
    int rc;
    TRY_OUT(MEM_NEW(&idx, d->n));
    TRY_OUT(MEM_NEW(&mine, d->n));
    TRY_OUT(MEM_NEW(&slot, d->n));
    for (int64_t i = 0; i < d->n; i++)
        idx[i] = i;
    n = share_step(slot, d, idx, d->n, tokens_max, dist_size(dist), fixed);
    for (int64_t k = 0; rc == 0 && k < n; k++) {
        if (slot[k].rank != dist_rank(dist)) continue;
        memset(mine + slot[k].at, 1, (size_t)slot[k].n);
        if (signals_pending())
            rc = err_set(ERR_STOPPED, "stopped by %s during an evaluation",
                         signals_name(signals_pending()));
        if (rc == 0) rc = score_rows(s, m, b, d, idx + slot[k].at, slot[k].n, tokens_max);
    }
    rc = score_share(s, dist, rc, idx, mine, d->n);
out:
    free(idx);
    free(mine);
    free(slot);
    return rc;
}
