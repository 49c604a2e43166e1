/* SPDX-License-Identifier: MIT
 * generate.h - sampling from a model directory. */
#ifndef BDPO_GENERATE_H
#define BDPO_GENERATE_H
#include "../base/base.h"

struct generate_opts {
    const char *model;        /* Hugging Face directory */
    const char *prompt;       /* one string prompt: its answer goes to stdout as text; or */
    const char *prompts;      /* a .jsonl(.gz) file of rows: each goes out with response, tokens, finish added (lists of these for a row with "turns") */
    const char *out;          /* NULL: stdout. A start that was cut off leaves OUT.part, from which the same command goes on to the same file */
    const char *const *stops; /* [n_stops] an answer ends before the first of these texts */
    int32_t n_stops;
    const char *system, *chat_template; /* NULL: as data.system_prompt and data.chat_template default */
    bool bf16;                /* compute in bfloat16; else float32 */
    bool prompts_user;        /* string prompts as one user turn */
    bool cut_prompts;         /* a prompt that does not fit keeps its last tokens; else it is an error */
    int64_t max_tokens, batch, top_k; /* top_k 0: all */
    double temperature, top_p;        /* temperature 0: greedy; top_p 1: all */
    uint64_t seed;
    int32_t threads;
    int backend;             /* a BACKEND_* of config.h */
};
int generate_run(const struct generate_opts *o);
#endif
