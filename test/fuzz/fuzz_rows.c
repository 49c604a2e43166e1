/* SPDX-License-Identifier: MIT
 * Bytes as a data file: lines or an array of rows of every form. The first byte chooses how they are read. What is kept is whole. */
#include "../data_fixture.h"
#include "../../src/io/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct data_fixture fx;

static void clean(void)
{
    data_fixture_close(&fx);
}

static void check_kept(const struct dataset *d, const struct data_opts *o, enum data_kind kind)
{
    int64_t at = 0;
    for (int64_t i = 0; i < d->n; i++) {
        const struct example *e = &d->ex[i];
        BUG_IF(e->at != at || e->np < 1 || e->nw < 1 || (e->nl < 1) != (kind == DATA_SFT));
        BUG_IF(e->np + MAX(e->nw, e->nl) > o->max_length);
        at += (int64_t)e->np + e->nw + e->nl;
    }
    BUG_IF(at != d->n_ids || d->n > d->stats.rows);
    for (int64_t i = 0; i < d->n_ids; i++)
        BUG_IF(d->ids[i] < 0 || d->ids[i] >= TOK_SIZE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    char *path;
    if (size < 1) return 0;
    if (!fx.tok) {
        data_fixture_open(&fx, FIXTURE_BOS | FIXTURE_EOS);
        atexit(clean);
    }
    const uint8_t how = data[0];
    const enum data_kind kind = how & 1 ? DATA_SFT : DATA_PAIRS;
    o.string_prompts_user = how & 2;
    o.skip_bad_rows = how & 4;
    o.max_bad_rows = 100;
    o.quiet = true;
    o.notes = how & 8;
    o.specials = how & 16 ? DATA_SPECIALS_ALLOW : DATA_SPECIALS_TEXT;
    o.max_length = how & 32 ? 12 : 1000;
    o.max_prompt_length = how & 32 ? 5 : 500;
    o.threads = 1;
    path = strdup(
        data_fixture_put(&fx, how & 64 ? "f.json" : "f.jsonl", (const char *)data + 1, size - 1));
    BUG_IF(!path);
    const int rc = dataset_load(&d, &path, 1, kind, &o, fx.tok, how & 128 ? fx.raw : fx.chatml);
    BUG_IF(rc < 0 && rc != ERR_INPUT);
    if (rc == 0) check_kept(&d, &o, kind);
    if (rc == 0) dataset_release(&d);
    free(path);
    return 0;
}
