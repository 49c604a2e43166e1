/* SPDX-License-Identifier: MIT */
#include "data_fixture.h"
#include "scratch.h"
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* Two files in two forms: rows that are kept, cut, dropped for each reason, malformed. */
static const char FIRST[] =
    "{\"prompt\": \"ab?\", \"chosen\": \"yes ab\", \"rejected\": \"no\"}\n"
    "{\"prompt\": \"<|im_end|>\", \"chosen\": \"one\", \"rejected\": \"two\"}\n"
    "{\"prompt\": \"p\", \"chosen\": \" \", \"rejected\": \"two\"}\n"
    "{\"prompt\": \"p\", \"chosen\": \"same\", \"rejected\": \"same\"}\n"
    "{\"prompt\": \"long long long long long\", \"chosen\": \"abcdefghijklmno1\", \"rejected\": "
    "\"abcdefghijklmno2\"}\n"
    "{\"prompt\": \"long long long long long\", \"chosen\": \"x\", \"rejected\": "
    "\"abcdefghijklmnopq\"}\n"
    "{\"prompt\": \"p\"}\n"
    "not JSON: error: at all\n";
static const char SECOND[] = "{\"prompt\": [{\"role\": \"user\", \"content\": \"Hi\"}], "
                             "\"chosen\": [{\"role\": \"assistant\", \"content\": \"a\"}], "
                             "\"rejected\": [{\"role\": \"assistant\", \"content\": \"b\"}]}\n"
                             "{\"prompt\": \"q\", \"chosen\": \"1\", \"rejected\": 2}\n"
                             "{\"prompt\": \"q\", \"chosen\": \"1\", \"rejected\": \"2\"}\n";

static struct data_fixture fx;

static int setup(void **state)
{
    (void)state;
    data_fixture_open(&fx, FIXTURE_BOS | FIXTURE_EOS);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    data_fixture_close(&fx);
    return 0;
}

static void must(int rc)
{
    if (rc < 0) fail_msg("%s", err_msg());
}

struct job { /* a way to read two files */
    char a[128], b[128], cache[160];
    char *paths[2];
    struct data_opts o;
    enum data_kind kind;
    const struct tokenizer *tok;
    const struct chat_template *tmpl;
};

static struct job job_of(void **state)
{
    struct job j = { .o = data_fixture_opts(), .tok = fx.tok, .tmpl = fx.chatml };
    snprintf(j.a, sizeof j.a, "%s", scratch(state, "a.jsonl"));
    snprintf(j.b, sizeof j.b, "%s", scratch(state, "b.jsonl"));
    snprintf(j.cache, sizeof j.cache, "%s", scratch(state, "cache"));
    scratch_put(j.a, FIRST, sizeof FIRST - 1);
    scratch_put(j.b, SECOND, sizeof SECOND - 1);
    j.o.max_length = 24;
    j.o.max_prompt_length = 12;
    j.o.skip_bad_rows = true;
    j.o.max_bad_rows = 3;
    j.o.cache_write = true;
    return j;
}

/* Load as the job says; what it says on stderr is left in `said`. */
static int load(struct job *j, struct dataset *d, bool cached, struct buf *said)
{
    char path[160], *text;
    size_t len;
    snprintf(path, sizeof path, "%s.said", j->a);
    const int was = dup(2), fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    assert_true(was >= 0 && fd >= 0 && dup2(fd, 2) == 2);
    j->paths[0] = j->a;
    j->paths[1] = j->b;
    j->o.cache_dir = cached ? j->cache : NULL;
    const int rc = dataset_load(d, j->paths, 2, j->kind, &j->o, j->tok, j->tmpl);
    fflush(stderr);
    assert_true(dup2(was, 2) == 2);
    close(was);
    close(fd);
    must(file_read(&text, &len, path, 1 << 20));
    must(unlink(path));
    if (said) buf_clear(said);
    if (said) must(buf_add(said, text, len));
    free(text);
    return rc;
}

static void expect_same(const struct dataset *a, const struct dataset *b)
{
    struct buf x = { 0 }, y = { 0 };
    assert_int_equal(a->n, b->n);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n_ids * sizeof *a->ids);
    assert_memory_equal(a->ex, b->ex, (size_t)a->n * sizeof *a->ex);
    assert_memory_equal(&a->stats, &b->stats, sizeof a->stats);
    assert_int_equal(a->longest, b->longest);
    assert_string_equal(a->digest, b->digest);
    must(dataset_describe(a, &x));
    must(dataset_describe(b, &y));
    assert_string_equal(x.data, y.data);
    buf_release(&x);
    buf_release(&y);
}

/* Names in the cache: how many, and the last that fits `pattern`'s prefix. */
static int files(const struct job *j, char *name, size_t size)
{
    DIR *d = opendir(j->cache);
    const struct dirent *e;
    int n = 0;
    while (d && (e = readdir(d))) {
        if (*e->d_name == '.') continue;
        n++;
        if (name) snprintf(name, size, "%s/%s", j->cache, e->d_name);
    }
    if (d) closedir(d);
    return n;
}

static void test_data_cache__same_rows_and_words(void **state)
{
    struct job j = job_of(state);
    struct dataset plain, cold, warm;
    struct buf a = { 0 }, b = { 0 }, c = { 0 };
    must(load(&j, &plain, false, &a));
    assert_int_equal(plain.stats.bad, 3);
    assert_true(plain.stats.dropped_empty && plain.stats.dropped_equal && plain.stats.dropped_cut &&
                plain.stats.truncated_prompts && plain.stats.truncated_responses &&
                plain.stats.special_text);
    assert_int_equal(files(&j, NULL, 0), 0);
    must(load(&j, &cold, true, &b));
    assert_int_equal(files(&j, NULL, 0), 1);
    must(load(&j, &warm, true, &c));
    assert_string_equal(a.data, b.data);
    assert_string_equal(a.data, c.data);
    assert_non_null(strstr(a.data, "b.jsonl:2:"));
    expect_same(&plain, &cold);
    expect_same(&plain, &warm);
    dataset_release(&warm);
    dataset_release(&cold);
    /* what acts after reading is no part of the key, and acts the same */
    const double weights[2] = { 2, 0.5 };
    j.o.subsample = 0.6;
    j.o.weights = weights;
    j.o.seed = 7;
    dataset_release(&plain);
    must(load(&j, &plain, false, NULL));
    must(load(&j, &warm, true, NULL));
    expect_same(&plain, &warm);
    assert_int_equal(files(&j, NULL, 0), 1);
    dataset_release(&plain);
    dataset_release(&warm);
    buf_release(&a);
    buf_release(&b);
    buf_release(&c);
}

/* A verdict is that of the files, in the same words, and a refused run leaves nothing. */
static void test_data_cache__verdicts(void **state)
{
    struct job j = job_of(state);
    struct dataset d;
    char *want = NULL;
    j.o.max_dropped = 0.1;
    assert_int_equal(load(&j, &d, true, NULL), ERR_INPUT);
    must(mem_strdup(&want, err_msg()));
    assert_int_equal(files(&j, NULL, 0), 0);
    j.o.max_dropped = 1;
    must(load(&j, &d, true, NULL));
    dataset_release(&d);
    assert_int_equal(files(&j, NULL, 0), 1);
    j.o.max_dropped = 0.1;
    assert_int_equal(load(&j, &d, true, NULL), ERR_INPUT);
    assert_string_equal(err_msg(), want);
    free(want);
    j.o.max_dropped = 1;
    for (int strict = 0; strict < 2; strict++) {
        j.o.max_bad_rows = 2;
        j.o.skip_bad_rows = !strict;
        assert_int_equal(load(&j, &d, false, NULL), ERR_INPUT);
        must(mem_strdup(&want, err_msg()));
        assert_int_equal(load(&j, &d, true, NULL), ERR_INPUT);
        assert_string_equal(err_msg(), want);
        free(want);
    }
    must(unlink(j.b));
    assert_int_equal(load(&j, &d, true, NULL), ERR_INPUT);
    assert_msg("b.jsonl");
}

/* One more file a call: each of these is another key. */
static void expect_new(struct job *j, const char *what)
{
    struct dataset d, again;
    const int before = files(j, NULL, 0);
    must(load(j, &d, true, NULL));
    if (files(j, NULL, 0) != before + 1) fail_msg("%s is no part of the key", what);
    dataset_release(&d);
    must(load(j, &d, false, NULL));
    must(load(j, &again, true, NULL));
    expect_same(&d, &again);
    dataset_release(&again);
    dataset_release(&d);
}

static void expect_template(struct job *j, const char *name, const char *system, const char *what)
{
    struct chat_template *c;
    must(template_open(&c, fx.tok, fx.dir, name, system, NULL));
    j->tmpl = c;
    expect_new(j, what);
    template_close(c);
    j->tmpl = fx.chatml;
}

static void test_data_cache__what_makes_a_key(void **state)
{
    struct job j = job_of(state);
    struct data_fixture other;
    struct dataset d;
    expect_new(&j, "the first");
    j.kind = DATA_SFT;
    j.o.max_bad_rows = 8;
    expect_new(&j, "kind");
    j.kind = DATA_PAIRS;
    j.o.max_length++;
    expect_new(&j, "max_length");
    j.o.max_prompt_length--;
    expect_new(&j, "max_prompt_length");
    j.o.string_prompts_user = true;
    expect_new(&j, "string_prompts");
    j.o.specials = DATA_SPECIALS_ALLOW;
    expect_new(&j, "special_tokens");
    j.o.vocab_size++;
    expect_new(&j, "the vocabulary");
    j.o.max_line_bytes = 4096;
    expect_new(&j, "max_line_bytes");
    expect_template(&j, "raw", NULL, "the template");
    expect_template(&j, "chatml", "Be brief.", "the system prompt");
    expect_template(&j, "chatml", "", "an empty system prompt");
    static const char piece[] =
        "{\"system\": [\"S%s\", \"\"], \"user\": [\"U\", \"%s\"], \"assistant\": [\"A\", "
        "\"<eos>%s\"], \"trim\": %s, \"bos\": %s, \"generation\": \"%s\"}";
    static const char *const parts[][6] = {
        { "", "", "", "false", "true", "" },  { "x", "", "", "false", "true", "" },
        { "", "x", "", "false", "true", "" }, { "", "", "x", "false", "true", "" },
        { "", "", "", "true", "true", "" },   { "", "", "", "false", "false", "" },
        { "", "", "", "false", "true", "x" }
    };
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        char text[400];
        snprintf(text, sizeof text, piece, parts[i][0], parts[i][1], parts[i][2], parts[i][3],
                 parts[i][4], parts[i][5]);
        expect_template(&j, text, NULL, text);
    }
    data_fixture_open(&other, FIXTURE_EOS); /* another post-processor and bos_token */
    j.tok = other.tok;
    j.tmpl = other.chatml;
    expect_new(&j, "the tokenizer");
    data_fixture_close(&other);
    j.tok = fx.tok;
    j.tmpl = fx.chatml;
    scratch_put(j.b, SECOND, sizeof SECOND - 2); /* the last line feed */
    expect_new(&j, "a byte of the data");
    char name[128];
    snprintf(name, sizeof name, "%s", scratch(state, "c.json"));
    must(rename(j.b, name));
    snprintf(j.b, sizeof j.b, "%s", name);
    expect_new(&j, "how a file is read");
    /* and these are none: where the files stand, how many threads, whether rows are skipped */
    const int n = files(&j, NULL, 0);
    snprintf(name, sizeof name, "%s", scratch(state, "d.json"));
    must(rename(j.b, name));
    snprintf(j.b, sizeof j.b, "%s", name);
    j.o.threads = 1;
    j.o.seed++;
    j.o.max_bad_rows++;
    must(load(&j, &d, true, NULL));
    assert_string_equal(d.files[1], j.b);
    dataset_release(&d);
    assert_int_equal(files(&j, NULL, 0), n);
}

/* The file is not `good` now: it is named, and made again. */
static void expect_mended(struct job *j, const struct dataset *want, const char *path,
                          const char *good, size_t len, const char *what)
{
    struct dataset d;
    struct buf said = { 0 };
    char *text;
    size_t n;
    must(load(j, &d, true, &said));
    expect_same(want, &d);
    dataset_release(&d);
    if (!strstr(said.data, path) || !strstr(said.data, "it is removed and made anew"))
        fail_msg("%s: said %s", what, said.data);
    must(file_read(&text, &n, path, 1 << 20));
    if (n != len || memcmp(text, good, n) != 0) fail_msg("%s: not made again", what);
    free(text);
    buf_release(&said);
}

static void test_data_cache__damage(void **state)
{
    struct job j = job_of(state);
    struct dataset d, again;
    struct buf said = { 0 };
    char path[500], *good;
    size_t len;
    must(load(&j, &d, true, NULL));
    assert_int_equal(files(&j, path, sizeof path), 1);
    must(file_read(&good, &len, path, 1 << 20));
    for (size_t i = 0; i < len; i++) {
        const char was = good[i];
        good[i] = (char)(was ^ (1 << i % 8));
        scratch_put(path, good, len);
        good[i] = was;
        expect_mended(&j, &d, path, good, len, "a flipped bit");
    }
    for (size_t n = 0; n < len; n += n < 300 ? 1 : 7) {
        scratch_put(path, good, n);
        expect_mended(&j, &d, path, good, len, "a file cut off");
    }
    good = realloc(good, len + 1);
    assert_non_null(good);
    good[len] = 0;
    scratch_put(path, good, len + 1);
    expect_mended(&j, &d, path, good, len, "a byte too many");
    /* who only looks leaves it as it is */
    j.o.cache_write = false;
    scratch_put(path, good, len - 1);
    must(load(&j, &again, true, &said));
    expect_same(&d, &again);
    dataset_release(&again);
    assert_non_null(strstr(said.data, "its size is wrong; the files are read instead"));
    assert_true(file_exists(path));
    must(unlink(path));
    must(load(&j, &again, true, &said));
    dataset_release(&again);
    assert_int_equal(files(&j, NULL, 0), 0);
    dataset_release(&d);
    buf_release(&said);
    free(good);
}

/* Writing fails: one warning, and the rows. */
static void test_data_cache__not_in_the_way(void **state)
{
    struct job j = job_of(state);
    struct dataset d, plain;
    struct buf said = { 0 };
    must(load(&j, &plain, false, NULL));
    snprintf(j.cache, sizeof j.cache, "%.120s/below", j.a); /* a file is no directory */
    must(load(&j, &d, true, &said));
    expect_same(&plain, &d);
    assert_non_null(strstr(said.data, "warning: token cache: "));
    assert_non_null(strstr(said.data, "the tokens are not kept"));
    dataset_release(&d);
    dataset_release(&plain);
    buf_release(&said);
}

/* What a killed process left goes with the next file that is written; another's own file stays. */
static void test_data_cache__leftovers(void **state)
{
    struct job j = job_of(state);
    struct dataset d;
    char left[200], other[200], name[500];
    must(dir_make(j.cache));
    snprintf(left, sizeof left, "%s/tokens-00.bin.tmp-1", j.cache);
    snprintf(other, sizeof other, "%s/tokens-00.bin", j.cache);
    scratch_put(left, "half", 4);
    scratch_put(other, "x", 1);
    must(load(&j, &d, true, NULL));
    dataset_release(&d);
    assert_false(file_exists(left));
    assert_true(file_exists(other));
    assert_int_equal(files(&j, name, sizeof name), 2);
}

static void test_data_cache__many_at_once(void **state)
{
    enum { PROCESSES = 6, ROUNDS = 30 };
    struct job j = job_of(state);
    struct dataset want;
    pid_t pid[PROCESSES];
    must(load(&j, &want, false, NULL));
    for (int i = 0; i < PROCESSES; i++) {
        pid[i] = fork();
        assert_true(pid[i] >= 0);
        if (pid[i] > 0) continue;
        j.paths[0] = j.a;
        j.paths[1] = j.b;
        j.o.cache_dir = j.cache;
        j.o.threads = 1; /* a forked child has none of the team's threads */
        int bad = 0;
        for (int k = 0; k < ROUNDS; k++) {
            struct dataset d;
            j.o.quiet = true;
            bad += dataset_load(&d, j.paths, 2, j.kind, &j.o, j.tok, j.tmpl) != 0 ||
                   d.n != want.n ||
                   memcmp(d.ids, want.ids, (size_t)want.n_ids * sizeof *d.ids) != 0;
            dataset_release(&d);
            char path[500];
            if (i == 0 && k % 3 == 0 && files(&j, path, sizeof path)) unlink(path);
        }
        _exit(bad != 0);
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_int_equal(files(&j, NULL, 0), 1);
    struct dataset d;
    struct buf said = { 0 };
    must(load(&j, &d, true, &said));
    expect_same(&want, &d);
    assert_null(strstr(said.data, "token cache"));
    dataset_release(&d);
    dataset_release(&want);
    buf_release(&said);
}

/* Another process holds the lock: this one writes all the same, later. */
static void test_data_cache__waits_for_the_lock(void **state)
{
    struct job j = job_of(state);
    struct dataset d;
    must(dir_make(j.cache));
    const int fd = open(j.cache, O_RDONLY | O_DIRECTORY);
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        j.paths[0] = j.a;
        j.paths[1] = j.b;
        j.o.cache_dir = j.cache;
        j.o.threads = 1;
        j.o.quiet = true;
        _exit(dataset_load(&d, j.paths, 2, j.kind, &j.o, j.tok, j.tmpl) != 0);
    }
    for (int i = 0; i < 20; i++) {
        int status;
        assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
        assert_int_equal(files(&j, NULL, 0), 0);
        usleep(5000);
    }
    close(fd);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(files(&j, NULL, 0), 1);
}

#define SCRATCH_TEST(t) cmocka_unit_test_setup_teardown(t, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_data_cache__same_rows_and_words),
        SCRATCH_TEST(test_data_cache__verdicts),
        SCRATCH_TEST(test_data_cache__what_makes_a_key),
        SCRATCH_TEST(test_data_cache__damage),
        SCRATCH_TEST(test_data_cache__not_in_the_way),
        SCRATCH_TEST(test_data_cache__leftovers),
        SCRATCH_TEST(test_data_cache__many_at_once),
        SCRATCH_TEST(test_data_cache__waits_for_the_lock),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
