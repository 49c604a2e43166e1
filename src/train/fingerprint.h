/* SPDX-License-Identifier: MIT
 * fingerprint.h - what must be equal for a run to be gone on with. */
#ifndef BDPO_FINGERPRINT_H
#define BDPO_FINGERPRINT_H
#include "setup.h"

/* JSON text (added to b): the training part of the config, and under "content" the SHA-256 of the tokenizer, of the other small files of
 * model.path that change what is computed, and of the data (by enum stage_kind; digest "" where a stage has none), and of samples
 * of the weight files of model.path and reference.path. */
int fingerprint_text(const struct setup *su, const struct dataset data[2], const struct dataset eval[2], struct buf *b);
/* All ranks: ERR_INPUT where a rank's fingerprint is not rank 0's. Ranks that read other bytes, of a file that was changed meanwhile or not
 * copied everywhere, would train on without a sign of it. */
int fingerprint_agree(struct dist *dist, const struct buf *print);
#endif
