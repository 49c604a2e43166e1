/* SPDX-License-Identifier: MIT
 * score.h - log-probabilities without training: the reference pass, evaluation, the check of a saved model. */
#ifndef BDPO_SCORE_H
#define BDPO_SCORE_H
#include "../data/batch.h"
#include "../model/model.h"

struct scores { /* per example of a dataset; NAN: not computed. Valid when zeroed */
    double *w, *l; /* [n] log-probability of chosen and rejected (SFT rows: l stays NAN), owned */
    int64_t n;
};
int scores_init(struct scores *s, int64_t n);
void scores_release(struct scores *s);
/* Fill s for examples idx[0..n), packed in order into micro-batches of at most tokens_max computed tokens, just as a training
 * step packs them: equal weights give equal bits. */
int score_rows(struct scores *s, struct model *m, struct batch *b, const struct dataset *d, const int64_t *idx, int64_t n,
               int64_t tokens_max);
/* All rows of d in file order. ERR_STOPPED where a signal came meanwhile. */
int score_all(struct scores *s, struct model *m, struct batch *b, const struct dataset *d, int64_t tokens_max);
#endif
