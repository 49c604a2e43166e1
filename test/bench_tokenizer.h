/* SPDX-License-Identifier: MIT
 * bench_tokenizer.h - the rows of `make bench` that tokenise. */
#ifndef BDPO_BENCH_TOKENIZER_H
#define BDPO_BENCH_TOKENIZER_H
#include "../src/base/base.h"

/* Encode the texts of FILE (JSON Lines of strings, or of objects all of whose strings count) with the tokenizer of `dir`, a text at a
 * time by `threads` threads (0: all): best of several passes, megabytes and ids a second. NULL: Qwen2.5 on the pairs of ../shared/data,
 * skipped with a reason where they are not there. */
void bench_tokenizer(const char *dir, const char *file, int threads);
#endif
