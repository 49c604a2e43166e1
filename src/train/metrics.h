/* SPDX-License-Identifier: MIT
 * metrics.h - what one step or evaluation shows: sums over its examples, and the rows of metrics.jsonl. */
#ifndef BDPO_METRICS_H
#define BDPO_METRICS_H
#include "../io/json.h"
#include "../loss/loss.h"

struct metrics { /* sums over examples; all valid when zeroed */
    int64_t examples, tokens;  /* pairs or rows; prompt + response tokens */
    double loss;               /* sum over pairs; SFT: -sum of log-probabilities */
    double nw, nl;             /* response tokens */
    double lw, ll, rw, rl;     /* log-probabilities */
    double reward_w, reward_l, accurate;
    double in_distribution, gate, bound;
    bool has_kl;               /* of an evaluation: the two below were measured; no sums */
    double kl, kl_stderr;
};
/* Add one pair. */
void metrics_add_pair(struct metrics *m, const struct loss_def *def, const struct loss_opts *o, const struct loss_pair *p,
                      const struct loss_grad *g);
/* Add one SFT row: log-probability lw of nw response tokens. */
void metrics_add_row(struct metrics *m, double lw, double nw);
/* The step's loss: mean over pairs, SFT (def NULL): mean over response tokens. */
double metrics_loss(const struct metrics *m, const struct loss_def *def);
/* Set the means in a JSON object under the public keys, each with `prefix` ("" or "eval/"). */
int metrics_set(json_t *row, const char *prefix, const struct metrics *m, const struct loss_def *def);
/* row[key] = value; a value that is not finite becomes the string "NaN", "Infinity" or "-Infinity" (JSON has no such numbers). */
int metrics_real(json_t *row, const char *key, double value);
int metrics_int(json_t *row, const char *key, int64_t value);
int metrics_text(json_t *row, const char *key, const char *value);

/* A file of one JSON object a line that is only ever appended to, or cut back on a resume. */
struct rows_file { /* valid when zeroed */
    int fd;        /* 0: closed */
    char *path;
    int64_t bytes;
};
/* Is a file that is to be cut to `keep` bytes long enough? ERR_CHECKPOINT; nothing is written. */
int rows_check(const char *path, int64_t keep);
/* Open (create) and cut to `keep` bytes; keep < 0: keep all. ERR_IO. */
int rows_open(struct rows_file *f, const char *path, int64_t keep);
int rows_put(struct rows_file *f, const json_t *row);
int rows_sync(struct rows_file *f);
void rows_close(struct rows_file *f);
/* Bytes of the leading lines of a metrics file whose "stage" is `stage` (0 where there is no file). */
int rows_stage_bytes(const char *path, const char *stage, int64_t *bytes);
#endif
