/* SPDX-License-Identifier: MIT
 * manifest.h - manifest.json of a checkpoint: which files it is made of, with sizes and checksums, and every number of the state that is not in them.
 * Its last key is its own CRC-32. It is written last: a directory with a whole manifest is a whole checkpoint. */
#ifndef BDPO_MANIFEST_H
#define BDPO_MANIFEST_H
#include "shards.h"
#include <jansson.h>

struct manifest { /* valid when zeroed */
    const char *stage;           /* "sft" or "preference"; borrowed when written, of `root` when read */
    int64_t step, steps;         /* done, total */
    int64_t updates;             /* of the optimizer */
    int64_t skipped, skipped_run;
    int64_t eval_due;            /* 1: the evaluation of this step was cut short by a signal */
    int64_t metrics_bytes;       /* length of metrics.jsonl */
    int64_t micro_tokens, threads; /* sums round by them */
    int64_t recompute;           /* gradient_checkpointing, as it was in use */
    int64_t keep_logits;         /* 0, 1: they were */
    int64_t elements;            /* of the flat state */
    int64_t ranks;               /* files of it */
    struct shard *shards;        /* [ranks], by rank; owned */
    int64_t pairs, eval_pairs;   /* rows of the reference's scores in reference.bin */
    int64_t reference_bytes, reference_crc;
    json_t *layout;              /* [[name, offset, elements] ...] of every tensor in the flat state; owned */
    json_t *run;                 /* the run's fingerprint; owned */
    json_t *root;                /* of a manifest that was read; owned */
};
/* DIR/manifest.json, durable on return. ERR_IO. */
int manifest_write(const struct manifest *m, const char *dir);
/* ERR_CHECKPOINT naming file and key where it is not there, is not JSON, lacks something, or is of another format. Names of files are never taken
 * from it: they follow from the rank. */
int manifest_read(struct manifest *m, const char *dir);
/* Are the files of DIR those that it describes, to the last bit? ERR_CHECKPOINT naming the file. Reads all of them. */
int manifest_verify(const struct manifest *m, const char *dir);
void manifest_release(struct manifest *m);
#endif
