/* SPDX-License-Identifier: MIT
 * usage.h - what the program says of its commands. */
#ifndef BDPO_USAGE_H
#define BDPO_USAGE_H
#include "../base/base.h"

extern const char USAGE[];
/* To the standard output: the lines of USAGE about one command, or (NULL, or no such command) all of it and the config keys. ERR_OOM. */
int usage_print(const char *command);
#endif
