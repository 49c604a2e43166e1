/* SPDX-License-Identifier: MIT */
#include "score.h"
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

static int score(struct scores *s, struct model *m, struct batch *b, const struct dataset *d,
                 const int64_t *idx, int64_t n, int64_t tokens_max, bool may_stop)
{
    double *logp = NULL;
    int rc = MEM_NEW(&logp, 2 * (int64_t)b->P_max);
    for (int64_t at = 0; rc == 0 && at < n;) {
        const int64_t k = batch_fit(d, idx + at, n - at, tokens_max);
        if (may_stop && signals_pending())
            TRY_OUT(err_set(ERR_STOPPED, "stopped by %s during an evaluation",
                            signals_name(signals_pending())));
        batch_fill(b, d, idx + at, k);
        TRY_OUT(model_forward(m, b));
        TRY_OUT(model_logp(m, b, logp));
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

int score_rows(struct scores *s, struct model *m, struct batch *b, const struct dataset *d,
               const int64_t *idx, int64_t n, int64_t tokens_max)
{
    return score(s, m, b, d, idx, n, tokens_max, false);
}

int score_all(struct scores *s, struct model *m, struct batch *b, const struct dataset *d,
              int64_t tokens_max)
{
    int64_t *idx = NULL;
    int rc = MEM_NEW(&idx, d->n);
    for (int64_t i = 0; rc == 0 && i < d->n; i++)
        idx[i] = i;
    if (rc == 0) rc = score(s, m, b, d, idx, d->n, tokens_max, true);
    free(idx);
    return rc;
}
