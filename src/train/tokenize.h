/* SPDX-License-Identifier: MIT
 * tokenize.h - a file of JSON lines to one array of ids a line. */
#ifndef BDPO_TOKENIZE_H
#define BDPO_TOKENIZE_H
#include "../base/base.h"

/* Each line of FILE is a JSON string (its own tokens only), or {"messages": [...], "add_generation_prompt": bool} (through the
 * template). One JSON array of ids a line on stdout. `dir` needs only the tokenizer's files. */
int tokenize_run(const char *dir, const char *file, const char *chat_template);
#endif
