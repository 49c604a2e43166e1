/* SPDX-License-Identifier: MIT
 * stage.h - one stage of training, SFT or preference: its data, model, optimizer and loop. */
#ifndef BDPO_STAGE_H
#define BDPO_STAGE_H
#include "kl.h"
#include "optim.h"
#include "score.h"
#include "setup.h"
#include "share.h"
#include "status.h"

enum stage_kind { STAGE_SFT, STAGE_PREFERENCE };

struct stage { /* valid when zeroed */
    struct setup *su;
    const struct config *cfg;
    const struct stage_config *sc;
    enum stage_kind kind;
    const char *name;               /* "sft", "preference" */
    const struct loss_def *loss;    /* NULL in SFT */
    const struct dataset *data, *eval; /* borrowed; eval NULL: none */
    struct plan plan;
    struct model model;
    struct zero zero;               /* the ranks' shards of gradient, master and moments */
    struct optim optim;
    struct batch batch;
    struct order order;
    struct scores ref, ref_eval;    /* the reference's, where the loss reads one */
    double *logp, *coef;            /* [2 P_max] */
    double *seen;                   /* [examples of a step, 3] log-probabilities of all ranks (SFT: one), and what counted as 0 */
    struct slot *slot;              /* [examples of a step] */
    bool *active;                   /* [ranks] */
    int64_t micro_tokens;
    struct batch_size size;         /* the largest of its micro-batches */
    struct op_sizes sizes;
    int64_t step, steps;            /* done, total */
    int64_t skipped, skipped_run;   /* steps with a non-finite loss or gradient: all, and the last ones in a row */
    bool eval_due;                  /* the evaluation of this step was cut short by a signal and is still to be done */
    bool at_reference;              /* the policy started as the reference itself: the first step checks that */
    double self_difference;         /* what that check found: largest |log-probability - reference's| / max(1, |reference's|) */
    bool has_kl;
    struct kl kl;                   /* where evaluations measure it */
    char *ref_file;                 /* the cache that reference values may come from; NULL: none; owned */
};
/* Steps of the stage over n examples: ceil(epochs * steps per epoch), at most max_steps. */
int64_t stage_steps(const struct stage_config *c, int64_t n);
/* The largest micro-batches that any rank has of the stage's order, of the evaluation in the file's order, and of every row by itself. */
int stage_measure(struct batch_size *s, const struct setup *su, enum stage_kind kind, const struct dataset *data,
                  const struct dataset *eval, int64_t micro_tokens);
int64_t stage_longest(const struct dataset *data, const struct dataset *eval); /* computed tokens of the longest example */
/* Book all memory for micro-batches of `b`, grant none; stage_release. */
int stage_plan(struct stage *st, struct setup *su, enum stage_kind kind, const struct batch_size *b, const struct dataset *data,
               const struct dataset *eval, bool train);
/* All ranks: book and grant all memory; weights are zero. The dataset is borrowed. `train` false: scoring only. */
int stage_open(struct stage *st, struct setup *su, enum stage_kind kind, const struct dataset *data, const struct dataset *eval,
               bool train);
void stage_release(struct stage *st);
/* The weights of model.path or, with model.init "random", drawn; of the base where there are adapters. */
int stage_load_base(struct model *m, const struct config *c);
/* The weights that a stage of this kind starts with, adapters included: OUTPUT/sft after an SFT stage, else model.path or, with model.init "random", drawn. */
int stage_load_start(struct model *m, const struct config *c, enum stage_kind kind);
/* All ranks: eval/kl of the present weights into *m, where the stage measures it; the reference is loaded first time. answers (may be NULL) gets the lines
 * of kl_answers. */
int stage_measure_kl(struct stage *st, struct metrics *m, struct buf *answers);
/* reference.c: all ranks, each computing its share: the reference's log-probabilities of every row that the run will visit, once, in the order and micro-batches of training, and
 * of the evaluation set, by the weights that st->model holds now; those that the reference cache has are not computed. What was done is
 * added to `said`. ERR_STOPPED on a signal. */
int stage_reference(struct stage *st, struct buf *said);

/* step.c: all ranks: one optimizer step (step st->step), the algorithm of the paper. *m: this step's sums over all ranks; *norm: gradient norm
 * before clipping; *applied: false where something was not finite and the weights stayed. */
int stage_step(struct stage *st, struct metrics *m, double *norm, double *lr, bool *applied);
/* All ranks: give all of them the elements of the weights that the others' shards hold. */
int stage_gather(struct stage *st);
/* Below this share of a log-probability (at least: this much) two computations of it may differ by rounding. */
double stage_tolerance(const struct config *c);
/* Pair i of d as the loss sees it: its log-probabilities, the reference's (ref NULL, or a loss without one: 0), its token counts. */
struct loss_pair stage_pair(const struct stage *st, const struct dataset *d, int64_t i, double lw, double ll, const struct scores *ref);
/* All ranks: evaluate on st->eval with the present weights, each row on one rank; *m is the same on all. */
int stage_evaluate(struct stage *st, struct metrics *m);
/* Sums over all rows of d, from log-probabilities. ref NULL: no reference. */
void stage_metrics(const struct stage *st, const struct dataset *d, const struct scores *pi, const struct scores *ref,
                   struct metrics *m);
#endif
