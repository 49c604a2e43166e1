/* SPDX-License-Identifier: MIT
 * config_fixture.h - configs written to the test's scratch directory and loaded. */
#ifndef BDPO_CONFIG_FIXTURE_H
#define BDPO_CONFIG_FIXTURE_H
#include "scratch.h"
#include "../src/train/options.h"

/* a config to which only a stage must be added, and a whole one */
#define BASE_KEYS \
    "\"model\": {\"path\": \"m\"}, \"data\": {\"train\": \"t.jsonl\"}, \"output\": \"o\""
#define BASE "{" BASE_KEYS ", \"preference\": {}}"

/* Write `text` as DIR/run.json and load it. */
int load(void **state, struct config **c, const char *text, const char *const *sets, int32_t n);
/* The same with at most three settings (NULL: no more), which must succeed; the caller frees the config. */
struct config *load_ok(void **state, const char *text, const char *a, const char *b, const char *z);
/* Must fail with ERR_INPUT and a message that holds `part`. */
void load_bad(void **state, const char *text, const char *set, const char *part);
#endif
