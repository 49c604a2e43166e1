/* SPDX-License-Identifier: MIT
 * merge.h - adapters into a full model. */
#ifndef BDPO_MERGE_H
#define BDPO_MERGE_H
#include "../base/base.h"

/* The adapter of a run's model/ (else its sft/), or of a directory in PEFT's format, merged in float32 into the base model that it names, and written to `out`, which
 * must not be there, in the dtype of the base's files. quantization (enum of config.h): into the base as a run with this
 * model.quantization sees it. Threads 0: all cores. ERR_INPUT. */
int merge_run(const char *dir, const char *out, int32_t quantization, int32_t threads);
#endif
