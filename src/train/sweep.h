/* SPDX-License-Identifier: MIT
 * sweep.h - a grid file to the configs of its runs, and what these runs ended with as a table. The runs are started by scripts/sweep.sh. */
#ifndef BDPO_SWEEP_H
#define BDPO_SWEEP_H
#include "../io/json.h"

enum { SWEEP_RUNS_MAX = 4096 };
struct sweep_run {
    char *name;  /* file name of its directory under the grid's output; unique. Owned */
    char *sft;   /* that of the SFT stage that it starts from; NULL: from the config's own model. Owned */
    json_t *set; /* key path -> value: the grid file's "set", then the run's own. Owned */
    json_t *own; /* of these the run's own. Owned */
};
struct sweep { /* valid when zeroed */
    struct json_doc doc;
    const char *file;   /* the grid file; borrowed */
    const char *config; /* the config that every run starts from; borrowed from doc */
    const char *output; /* directory of all runs; borrowed from doc */
    json_t *keys;       /* the grid's key paths, in the order in which the file first has them; owned */
    struct sweep_run *run;
    int64_t n, cap;
};
/* Read a grid file (docs/sweeps.md) and expand it: blocks in order, in a block the last key fastest. ERR_INPUT with file:line:col. */
int sweep_read(struct sweep *s, const char *file);
void sweep_release(struct sweep *s);
/* Check the config of every run and of every SFT stage (ERR_INPUT before anything is written), then write them as OUTPUT/configs/NAME.json, each only
 * where it differs from what stands there, and print on stdout OUTPUT, then for each run a line "SFT NAME", where SFT is "-" for none. */
int sweep_expand(const struct sweep *s);
/* Write a CSV to `out`: a line a run in the grid's order: its name, its values of the grid's keys, its state, its exit code, the last step's and the last
 * evaluation's metrics, the first line of OUTPUT/scores/NAME. What is not there is an empty field. ERR_INPUT, ERR_IO. */
int sweep_table(const struct sweep *s, const char *out);
#endif
