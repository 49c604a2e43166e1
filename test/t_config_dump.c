/* SPDX-License-Identifier: MIT
 * Config: the resolved dump, differences, warnings, the docs and the shipped configs.
 * BDPO_UPDATE=1 rewrites docs/config.md instead of comparing it. */
#include "config_fixture.h"
#include <glob.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_config__dump_is_a_fixed_point(void **state)
{
    for (size_t i = 0; i < loss_count; i++)
        for (int stages = 1; stages < 4; stages++) {
            char text[500], *first;
            struct buf b = { 0 };
            snprintf(text, sizeof text, "{" BASE_KEYS ", \"seed\": 9007199254740992%s%s%s%s}",
                     stages & 1 ? ", \"sft\": {\"learning_rate\": 1, \"train\": [\"a\", \"b\"]}"
                                : "",
                     stages & 2 ? ", \"preference\": {\"loss\": \"" : "",
                     stages & 2 ? loss_table[i].name : "",
                     stages & 2 ? "\", \"beta\": 0.30000000000000004, \"max_steps\": 9}" : "");
            struct config *c = load_ok(state, text, NULL, NULL, NULL);
            assert_int_equal(config_dump(c, &b), 0);
            config_free(c);
            assert_int_equal(mem_strdup(&first, b.data), 0);
            c = load_ok(state, first, NULL, NULL, NULL);
            buf_clear(&b);
            assert_int_equal(config_dump(c, &b), 0);
            assert_string_equal(b.data, first);
            config_free(c);
            /* what is not used is not there */
            assert_int_equal(strstr(first, "\"reference\"") != NULL,
                             (stages & 2) && (loss_table[i].flags & LOSS_REF));
            assert_int_equal(strstr(first, "\"lambda\"") != NULL,
                             (stages & 2) && (loss_table[i].options & LOSS_LAMBDA));
            assert_int_equal(strstr(first, "\"sft\"") != NULL, stages & 1);
            assert_null(strstr(first, "max_bad_rows"));
            assert_null(strstr(first, "at_end"));
            assert_non_null(strstr(first, "\n  \"seed\": 9007199254740992"));
            free(first);
            buf_release(&b);
        }
}

static void test_config__diff(void **state)
{
    struct buf a = { 0 }, z = { 0 }, d = { 0 };
    struct config *c = load_ok(state, BASE, NULL, NULL, NULL);
    assert_int_equal(config_dump_training(c, &a), 0);
    config_free(c);
    c = load_ok(state, BASE, "output=elsewhere", "threads=2",
                "checkpoint={\"every\": 3, \"resume\": \"never\"}");
    assert_int_equal(config_dump_training(c, &z), 0);
    config_free(c);
    assert_string_equal(a.data, z.data);
    assert_int_equal(config_diff(a.data, z.data, &d), 0);
    assert_true(d.len == 0);
    for (size_t i = 0; i < option_count; i++) { /* the list of the interface, and no other */
        static const char *const sections[] = { "checkpoint.", "faults.", "logging.", "memory." };
        bool is_free = false;
        for (size_t k = 0; k < COUNT_OF(sections); k++)
            is_free |= strncmp(option_table[i].path, sections[k], strlen(sections[k])) == 0;
        is_free |= strstr(" data.cache dist.transport output cache_dir max_hours threads ",
                          option_table[i].path) != NULL;
        assert_int_equal(is_free, (option_table[i].flags & OPTION_FREE) != 0);
    }
    c = load_ok(state, BASE, "preference.lambda=0.7", "data.train=[\"t.jsonl\", \"u\"]",
                "sft.epochs=2");
    buf_clear(&z);
    assert_int_equal(config_dump_training(c, &z), 0);
    config_free(c);
    assert_int_equal(config_diff(a.data, z.data, &d), 3);
    assert_non_null(strstr(d.data, "preference.lambda: 0.7 was 0.5"));
    assert_non_null(strstr(d.data, "data.train: [\"t.jsonl\", \"u\"] was \"t.jsonl\""));
    assert_non_null(strstr(d.data, "sft: "));
    buf_clear(&d);
    assert_int_equal(config_diff("{\"a\": 1, \"b\": {\"x\": 2}}", "{\"b\": {\"y\": 3}}", &d), 3);
    assert_string_equal(d.data, "b.y: 3 was not there; b.x: not there was 2; a: not there was 1");
    assert_int_equal(config_diff("{", "{}", &d), ERR_INPUT);
    buf_release(&a);
    buf_release(&z);
    buf_release(&d);
}

/* What config_load prints on stderr; the caller frees. */
static char *warnings(void **state, const char *set, const char *also)
{
    const char *path = scratch(state, "stderr");
    size_t len;
    char *text;
    fflush(stderr);
    const int saved = dup(2);
    assert_true(saved >= 0);
    assert_non_null(freopen(path, "w", stderr));
    struct config *c = load_ok(state, BASE, set, also, NULL);
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    config_free(c);
    assert_int_equal(file_read(&text, &len, path, 1 << 20), 0);
    return text;
}

static void test_config__warnings(void **state)
{
    char *w = warnings(state, "preference.lambda=0", NULL);
    assert_string_equal(w, "--set preference.lambda: warning: preference.lambda: 0: the rejected "
                           "response is then ignored\n");
    free(w);
    w = warnings(state, "preference.learning_rate=1e-3", NULL);
    assert_non_null(strstr(w, "warning: preference.learning_rate: 0.001 is high"));
    free(w);
    w = warnings(state, "preference.learning_rate=1e-3", "model.init=random");
    assert_string_equal(w, "");
    free(w);
    w = warnings(state, "preference.lambda=1", NULL);
    assert_string_equal(w, "");
    free(w);
}

static void test_config__docs_are_current(void **state)
{
    (void)state;
    struct buf b = { 0 };
    char *text;
    size_t len;
    assert_int_equal(config_reference(&b), 0);
    if (getenv("BDPO_UPDATE")) assert_int_equal(file_write_all("docs/config.md", b.data, b.len), 0);
    assert_int_equal(file_read(&text, &len, "docs/config.md", 1 << 20), 0);
    if (strcmp(text, b.data) != 0)
        fail_msg(
            "docs/config.md is not what the option table says: run this test with BDPO_UPDATE=1");
    free(text);
    buf_release(&b);
}

static void test_config__shipped_configs_load(void **state)
{
    glob_t g;
    (void)state;
    assert_int_equal(glob("configs/*.json", 0, NULL, &g), 0);
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct config *c;
        if (config_load(&c, g.gl_pathv[i], NULL, 0) < 0) fail_msg("%s", err_msg());
        config_free(c);
    }
    assert_true(g.gl_pathc >= 3);
    globfree(&g);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_config__dump_is_a_fixed_point),
        TEST(test_config__diff),
        TEST(test_config__warnings),
        TEST(test_config__docs_are_current),
        TEST(test_config__shipped_configs_load),
    };
    return cmocka_run_group_tests_name("config_dump", tests, NULL, NULL);
}
