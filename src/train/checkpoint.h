/* SPDX-License-Identifier: MIT
 * checkpoint.h - all that is needed to go on bit for bit: OUTPUT/checkpoints/STAGE-NNNNNN/, complete or absent.
 * A directory holds state-RRRRR-of-NNNNN.bin, one a rank (shards.h: the exact weights in float32, both moments), reference.bin (the reference's
 * log-probabilities: double, chosen then rejected of the pairs, then of the evaluation set) and manifest.json (manifest.h). It is filled under a temporary
 * name, every file synced, then the manifest written, and the whole renamed. */
#ifndef BDPO_CHECKPOINT_H
#define BDPO_CHECKPOINT_H
#include "stage.h"

struct checkpoint_info {
    char name[64];          /* "preference-000050" */
    enum stage_kind kind;
    int64_t step;
    int64_t metrics_bytes;  /* length of metrics.jsonl when it was written */
};
/* All ranks: write the stage's state, each rank what it holds and rank 0 the rest; *info is filled. Then delete all but it and the newest before it, `keep` in all.
 * ERR_IO; then the checkpoints that were there are as before. */
int checkpoint_save(const char *output, struct stage *st, int64_t metrics_bytes, const char *fingerprint, int64_t keep,
                    struct checkpoint_info *info);
/* Each rank for itself: restore an opened stage from DIR (OUTPUT/checkpoints/NAME or a path), however many ranks wrote it. ERR_CHECKPOINT where the state does not fit, or
 * where the fingerprint differs (named with both values) unless allow_change. */
int checkpoint_load(const char *dir, struct stage *st, const char *fingerprint, bool allow_change);
/* Bytes of a checkpoint of `elements` of flat state and of `pairs` scored pairs, near enough. */
int64_t checkpoint_bytes(int64_t elements, int64_t pairs);

/* checkpoint_dir.c: the directory of all checkpoints ------------------------------------------------------------------ */
/* The newest checkpoint under OUTPUT whose manifest and checksums hold (a broken one is named on stderr and passed over): 1, *info
 * filled; 0: none. */
int checkpoint_newest(const char *output, struct checkpoint_info *info);
/* The checkpoint at `path` (its directory): ERR_CHECKPOINT where it is unusable. */
int checkpoint_open(const char *path, struct checkpoint_info *info);
/* Of `last`, just written, and those before it keep the newest `keep`, at least `last`. ERR_IO. */
int checkpoint_rotate(const char *output, const struct checkpoint_info *last, int64_t keep);
/* Checkpoints under OUTPUT, whole or not. 0 where that cannot be said. */
int64_t checkpoint_count(const char *output);
/* Delete what a killed run left half-written or half-deleted under OUTPUT; the caller holds the lock. */
int checkpoint_sweep(const char *output);
/* Delete everything of a former run under OUTPUT (checkpoints, sft, models, model, metrics, timing, status). */
int checkpoint_wipe(const char *output);
#endif
