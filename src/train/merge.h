/* SPDX-License-Identifier: MIT
 * merge.h - adapters into a full model. */
#ifndef BDPO_MERGE_H
#define BDPO_MERGE_H
#include "../base/base.h"

/* The adapter of a run's model/ (else its sft/), or of a directory in PEFT's format, merged in float32 into the base model that it names, and written to `out`, which
 * must not be there, in the dtype of the base's files. nf4: into the base as a run with model.quantization "nf4" sees it,
 * rounded to 4 bits, and not as it is. Threads 0: all cores. ERR_INPUT. */
int merge_run(const char *dir, const char *out, bool nf4, int32_t threads);
#endif
