/* SPDX-License-Identifier: MIT */
#include "scratch.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

int scratch_make(void **state)
{
    static const char form[] = "/tmp/bdpo-test-XXXXXX";
    *state = strdup(form);
    return *state && mkdtemp(*state) ? 0 : -1;
}

int scratch_remove(void **state)
{
    const int rc = dir_remove(*state);
    free(*state);
    return rc;
}

const char *scratch_dir(void **state)
{
    return *state;
}

const char *scratch(void **state, const char *name)
{
    static char path[8][200];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", scratch_dir(state), name);
    return p;
}

void scratch_put(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

int scratch_count(void **state)
{
    int n = 0;
    DIR *d = opendir(*state);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2; /* . and .. */
}

void assert_msg(const char *part)
{
    if (!strstr(err_msg(), part)) fail_msg("\"%s\" is not in: %s", part, err_msg());
}
