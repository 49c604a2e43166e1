/* SPDX-License-Identifier: MIT
 * scratch.h - a directory of its own for every test: cmocka_unit_test_setup_teardown(t, scratch_make, scratch_remove). */
#ifndef BDPO_SCRATCH_H
#define BDPO_SCRATCH_H
#include "../src/io/file.h"

int scratch_make(void **state);
int scratch_remove(void **state);
const char *scratch_dir(void **state);
/* "DIR/name"; one of 8 buffers in turn. */
const char *scratch(void **state, const char *name);
/* Write a file by stdio; fails the test where that fails. */
void scratch_put(const char *path, const void *data, size_t len);
/* Entries in the directory. */
int scratch_count(void **state);
/* Fails unless err_msg() contains part. */
void assert_msg(const char *part);
#endif
