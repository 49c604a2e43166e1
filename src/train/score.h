/* SPDX-License-Identifier: MIT
 * score.h - log-probabilities without training: the reference pass, evaluation, the check of a saved model. */
#ifndef BDPO_SCORE_H
#define BDPO_SCORE_H
#include "../data/batch.h"
#include "../dist/dist.h"
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
/* All ranks: all rows of d in file order, each computed by one rank as share_step says, and known to all then.
 * ERR_STOPPED on all where a signal came to one of them meanwhile. */
int score_all(struct scores *s, struct dist *dist, bool fixed, struct model *m, struct batch *b, const struct dataset *d, int64_t tokens_max);
/* All ranks: of examples idx[0..n), those with mine[i] are this rank's values in s; all have all then. rc: this rank's error so far. */
int score_share(struct scores *s, struct dist *dist, int rc, const int64_t *idx, const bool *mine, int64_t n);
#endif
