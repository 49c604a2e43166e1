/* SPDX-License-Identifier: MIT
 * page.h - the report: one self-contained HTML page of one run, or of several overlaid. */
#ifndef BDPO_PAGE_H
#define BDPO_PAGE_H
#include "../base/base.h"

enum { PAGE_RUNS_MAX = 64 };
/* Read the runs and write the page to `out`. ERR_INPUT where a directory is no run, ERR_IO. */
int page_write(const char *const *runs, int32_t n, const char *out);
#endif
