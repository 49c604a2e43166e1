/* SPDX-License-Identifier: MIT */
#include "config_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

int load(void **state, struct config **c, const char *text, const char *const *sets, int32_t n)
{
    const char *path = scratch(state, "run.json");
    scratch_put(path, text, strlen(text));
    return config_load(c, path, sets, n);
}

struct config *load_ok(void **state, const char *text, const char *a, const char *b, const char *z)
{
    const char *sets[3] = { a, b, z };
    struct config *c = NULL;
    const int rc = load(state, &c, text, sets, !!a + !!b + !!z);
    if (rc < 0) fail_msg("%s: %s", text, err_msg());
    return c;
}

void load_bad(void **state, const char *text, const char *set, const char *part)
{
    struct config *c = NULL;
    const int rc = load(state, &c, text, &set, set != NULL);
    if (rc == 0) fail_msg("accepted: %s %s", text, set ? set : "");
    assert_int_equal(rc, ERR_INPUT);
    assert_null(c);
    if (!strstr(err_msg(), part)) fail_msg("expected \"%s\" in: %s", part, err_msg());
}
