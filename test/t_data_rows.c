/* SPDX-License-Identifier: MIT */
#include "data_fixture.h"
#include "../src/base/rng.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define PAIR(p, c, r) "{\"prompt\": \"" p "\", \"chosen\": \"" c "\", \"rejected\": \"" r "\"}\n"

static struct data_fixture fx, bare; /* bare: no BOS, no EOS */

static int setup(void **state)
{
    (void)state;
    data_fixture_open(&fx, FIXTURE_BOS | FIXTURE_EOS);
    data_fixture_open(&bare, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    data_fixture_close(&bare);
    data_fixture_close(&fx);
    return 0;
}

static void must(int rc)
{
    if (rc < 0) fail_msg("%s", err_msg());
}

static struct data_opts opts_of(int64_t max_length, int64_t max_prompt_length)
{
    struct data_opts o = data_fixture_opts();
    o.max_length = max_length;
    o.max_prompt_length = max_prompt_length;
    return o;
}

/* --- cutting ---------------------------------------------------------------------------------------------------- */

static void test_data__cut_by_hand(void **state)
{
    (void)state;
    static const struct {
        int64_t length, prompt_length;
        const char *prompt, *chosen, *rejected;
        int64_t prompts, responses;
    } cases[] = {
        /* <bos>12345678 is 9 tokens, "uvwxyz" and its end 7, "rst" and its end 4 */
        { 16, 4, "\00312345678", "uvwxyz\4", "rst\4", 0,
          0 }, /* just fits: nothing is cut, whatever the prompt's limit */
        { 15, 8, "\0032345678", "uvwxyz\4", "rst\4", 1,
          0 }, /* the prompt alone is cut: BOS and its last 7 */
        { 15, 7, "\003345678", "uvwxyz\4", "rst\4", 1,
          0 }, /* to its limit, also where less would do */
        { 15, 10, "\00312345678", "uvwxyz", "rst\4", 0,
          1 }, /* within the prompt's limit: one response loses its end */
        { 12, 8, "\0032345678", "uvwx", "rst\4", 1, 1 }, /* the shorter response is whole */
        { 6, 4, "\003678", "uv", "rs", 1, 2 },
        { 5, 1, "\003", "uvwx", "rst\4", 1, 1 },
        { 2, 1, "\003", "u", "r", 1, 2 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const struct data_opts o = opts_of(cases[i].length, cases[i].prompt_length);
        struct dataset d;
        must(data_fixture_load(&fx, &d, PAIR("12345678", "uvwxyz", "rst"), DATA_PAIRS, &o,
                               fx.chatml));
        data_fixture_expect(&d, 0, cases[i].prompt, cases[i].chosen, cases[i].rejected);
        assert_int_equal(d.stats.truncated_prompts, cases[i].prompts);
        assert_int_equal(d.stats.truncated_responses, cases[i].responses);
        dataset_release(&d);
    }
}

static void test_data__cut_without_bos(void **state)
{
    (void)state;
    const struct data_opts o = opts_of(28, 14);
    struct dataset d;
    /* <start>user\nq<end>\n<start>assistant\n: 8 + 1 + 10 tokens, its last 14 kept */
    must(data_fixture_load(&bare, &d,
                           "{\"prompt\": [{\"role\": \"user\", \"content\": \"q\"}], \"chosen\": "
                           "\"abcdefghij\", \"rejected\": \"n\"}",
                           DATA_PAIRS, &o, bare.chatml));
    data_fixture_expect(&d, 0, "q\2\n\1assistant\n", "abcdefghij\2", "n\2");
    dataset_release(&d);
}

/* SFT looks at the chosen response alone: a long rejected one cuts nothing. */
static void test_data__cut_sft(void **state)
{
    (void)state;
    const struct data_opts o = opts_of(8, 4);
    struct dataset d;
    must(
        data_fixture_load(&fx, &d, PAIR("1234", "xy", "a long response"), DATA_SFT, &o, fx.chatml));
    data_fixture_expect(&d, 0, "\0031234", "xy\4", NULL);
    dataset_release(&d);
    must(data_fixture_load(&fx, &d, PAIR("1234", "xyz", "r"), DATA_SFT, &o, fx.chatml));
    data_fixture_expect(&d, 0, "\003234", "xyz\4", NULL);
    dataset_release(&d);
}

/* Every length for many rows: parts stay prefixes and suffixes of the whole, and a pair stays a pair or is counted. */
static void test_data__cut_sweep(void **state)
{
    (void)state;
    struct dataset whole, d;
    struct data_opts o = data_fixture_opts();
    struct buf b = { 0 };
    for (uint64_t i = 0; i < 40; i++) {
        must(buf_adds(&b, "{\"prompt\": \""));
        for (uint64_t k = rng_u64(1, 1, i) % 14; k; k--)
            must(buf_addf(&b, "%c", 'a' + (int)(k % 3)));
        must(buf_adds(&b, "\", \"chosen\": \"s"));
        for (uint64_t k = rng_u64(1, 2, i) % 12; k; k--)
            must(buf_addf(&b, "%c", 'a' + (int)(k % 2)));
        must(buf_adds(&b, "\", \"rejected\": \"s"));
        for (uint64_t k = rng_u64(1, 3, i) % 12; k; k--)
            must(buf_addf(&b, "%c", 'a' + (int)(k % 2)));
        must(buf_adds(&b, "\"}\n"));
    }
    must(data_fixture_load(&fx, &whole, b.data, DATA_PAIRS, &o, fx.chatml));
    assert_true(whole.n > 30);
    for (int64_t len = 2; len <= 30; len++) {
        for (int64_t max_prompt = 1; max_prompt < len; max_prompt++) {
            o = opts_of(len, max_prompt);
            const int rc = data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml);
            if (rc < 0) { /* one token is left of every response, and all start alike */
                data_fixture_message("no usable row");
                continue;
            }
            assert_int_equal(
                d.n + d.stats.dropped_equal + d.stats.dropped_cut + d.stats.dropped_empty, 40);
            assert_int_equal(d.stats.dropped_equal, whole.stats.dropped_equal);
            int64_t j = 0, prompts = 0, responses = 0;
            for (int64_t i = 0; i < d.n; i++) {
                const struct example *e = &d.ex[i];
                while (whole.ex[j].line != e->line)
                    j++;
                const struct example *w = &whole.ex[j];
                const int32_t *x = d.ids + e->at, *y = whole.ids + w->at;
                const bool fits = (int64_t)w->np + MAX(w->nw, w->nl) <= len;
                assert_true(e->np + MAX(e->nw, e->nl) <= len && e->np >= 1 && e->nw >= 1 &&
                            e->nl >= 1);
                assert_int_equal(e->np, fits ? w->np : MIN(w->np, max_prompt));
                assert_int_equal(e->nw, fits ? w->nw : MIN(w->nw, len - e->np));
                assert_int_equal(e->nl, fits ? w->nl : MIN(w->nl, len - e->np));
                assert_int_equal(x[0], TOK_BOS);
                assert_memory_equal(x + 1, y + 1 + w->np - e->np, (size_t)(e->np - 1) * sizeof *x);
                assert_memory_equal(x + e->np, y + w->np, (size_t)e->nw * sizeof *x);
                assert_memory_equal(x + e->np + e->nw, y + w->np + w->nw,
                                    (size_t)e->nl * sizeof *x);
                assert_false(e->nw == e->nl &&
                             !memcmp(x + e->np, x + e->np + e->nw, (size_t)e->nw * sizeof *x));
                prompts += e->np < w->np;
                responses += (e->nw < w->nw) + (e->nl < w->nl);
            }
            assert_int_equal(d.stats.truncated_prompts, prompts);
            assert_int_equal(d.stats.truncated_responses, responses);
            dataset_release(&d);
        }
    }
    dataset_release(&whole);
    buf_release(&b);
}

static void test_data__lengths_refused(void **state)
{
    (void)state;
    static const int64_t bad[][2] = { { 1, 1 },  { 0, 0 },   { -5, 2 },
                                      { 10, 0 }, { 10, 10 }, { INT64_MAX, 4 } };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        const struct data_opts o = opts_of(bad[i][0], bad[i][1]);
        struct dataset d;
        assert_int_equal(data_fixture_load(&fx, &d, PAIR("p", "c", "r"), DATA_PAIRS, &o, fx.chatml),
                         ERR_INPUT);
        data_fixture_message("is outside [");
    }
}

/* --- degenerate pairs ------------------------------------------------------------------------------------------- */

static void test_data__dropped(void **state)
{
    (void)state;
    struct data_opts o = opts_of(9, 4);
    struct dataset d;
    struct buf b = { 0 };
    const char *text = PAIR("p", "", "r")                             /* 1 */
        PAIR("p", "c", " \\n\\t\\u00a0\\u3000\\u2028\\u0085")         /* 2 */
        PAIR("p", "same", "same")                                     /* 3 */
        PAIR("12345", "one start, one end", "one start, another end") /* 4: equal once cut */
        PAIR("p", "c", "r")                                           /* 5 */
        PAIR("p", "\\u200b", "r");                                    /* 6: not white space */
    must(data_fixture_load(&fx, &d, text, DATA_PAIRS, &o, fx.chatml));
    assert_int_equal(d.n, 2);
    assert_int_equal(d.stats.rows, 6);
    assert_int_equal(d.stats.kept, 2);
    assert_int_equal(d.stats.dropped_empty, 2);
    assert_int_equal(d.stats.dropped_equal, 1);
    assert_int_equal(d.stats.dropped_cut, 1);
    assert_int_equal(d.stats.truncated_prompts + d.stats.truncated_responses,
                     0); /* those of kept rows */
    must(dataset_describe(&d, &b));
    const char *summary =
        "pairs.jsonl: 6 rows, 2 kept (dropped: 2 empty, 1 equal, 1 equal once cut), "
        "0 prompts and 0 responses cut\n";
    const char *want[] = {
        summary, "pairs.jsonl:1: dropped: chosen is empty\n",
        "pairs.jsonl:2: dropped: rejected is empty\n",
        "pairs.jsonl:3: dropped: chosen and rejected are the same text\n",
        "pairs.jsonl:4: dropped: chosen and rejected are equal once cut to max_length"
    };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        if (!strstr(b.data, want[i])) fail_msg("%s is not in %s", want[i], b.data);
    dataset_release(&d);
    buf_release(&b);
    o.max_dropped = 0.67;
    must(data_fixture_load(&fx, &d, text, DATA_PAIRS, &o, fx.chatml));
    dataset_release(&d);
    o.max_dropped = 0.66;
    assert_int_equal(data_fixture_load(&fx, &d, text, DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message("4 of 6 rows are degenerate, more than data.max_dropped (0.66)");
    data_fixture_message("pairs.jsonl:3: dropped");
    o.max_dropped = 1;
    assert_int_equal(data_fixture_load(&fx, &d, PAIR("p", "", ""), DATA_PAIRS, &o, fx.chatml),
                     ERR_INPUT);
    data_fixture_message("no usable row");
}

/* 1 of 20 is just the default limit; more than the list holds are counted. */
static void test_data__dropped_share(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    struct buf b = { 0 }, text = { 0 };
    o.max_dropped = 0.05;
    for (int i = 0; i < 600; i++)
        must(buf_adds(&b, i % 20 == 7 ? PAIR("p", "c", "c") : PAIR("p", "c", "r")));
    must(data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml));
    assert_int_equal(d.n, 570);
    assert_int_equal(d.n_drops, DATA_DROPS_MAX);
    must(dataset_describe(&d, &text));
    assert_non_null(strstr(text.data, "... and 10 more dropped"));
    dataset_release(&d);
    must(buf_adds(&b, PAIR("p", "c", "c")));
    assert_int_equal(data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    buf_release(&b);
    buf_release(&text);
}

/* A prompt without a token gives no place that predicts the first response token. */
static void test_data__empty_prompt(void **state)
{
    (void)state;
    const struct data_opts o = data_fixture_opts();
    struct data_fixture eos;
    struct dataset d;
    data_fixture_open(&eos, FIXTURE_EOS);
    must(data_fixture_load(&eos, &d, PAIR("", "c", "r") PAIR("p", "c", "r"), DATA_PAIRS, &o,
                           eos.raw));
    assert_int_equal(d.n, 1);
    assert_int_equal(d.stats.dropped_empty, 1);
    assert_int_equal(d.drops[0].why, DROP_PROMPT_NO_TOKEN);
    data_fixture_expect(&d, 0, "p", "c\4", "r\4");
    dataset_release(&d);
    data_fixture_close(&eos);
}

/* --- end tokens, special tokens, vocabulary ---------------------------------------------------------------------- */

static void test_data__no_eos(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    o.skip_bad_rows = true;
    o.max_bad_rows = 10;
    assert_int_equal(data_fixture_load(&bare, &d, PAIR("p", "c", "r"), DATA_PAIRS, &o, bare.chatml),
                     ERR_INPUT);
    data_fixture_message("pairs.jsonl:1:1: error: the tokenizer has no EOS token");
    data_fixture_message("\"eos_token\"");
    o.string_prompts_user = true;
    must(data_fixture_load(&bare, &d, PAIR("p", "c", "r"), DATA_PAIRS, &o, bare.chatml));
    data_fixture_expect(&d, 0, "\1user\np\2\n\1assistant\n", "c\2", "r\2");
    dataset_release(&d);
}

#define SPECIAL PAIR("p", "c", "r") PAIR("a<bos>b", "c<|im_end|>", "<eos>")

static void test_data__specials(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    must(data_fixture_load(&fx, &d, SPECIAL, DATA_PAIRS, &o, fx.chatml));
    data_fixture_expect(&d, 1, "\3a<bos>b", "c<|im_end|>\4", "<eos>\4");
    assert_int_equal(d.stats.special_text, 1);
    dataset_release(&d);
    o.specials = DATA_SPECIALS_ALLOW; /* a text that ends with the end token needs no other */
    must(data_fixture_load(&fx, &d, SPECIAL, DATA_PAIRS, &o, fx.chatml));
    data_fixture_expect(&d, 1, "\3a\3b", "c\2\4", "\4");
    dataset_release(&d);
    must(data_fixture_load(&fx, &d, PAIR("<bos>x", "c", "r"), DATA_PAIRS, &o,
                           fx.chatml)); /* one BOS */
    data_fixture_expect(&d, 0, "\3x", "c\4", "r\4");
    dataset_release(&d);
    o.specials = DATA_SPECIALS_ERROR;
    assert_int_equal(data_fixture_load(&fx, &d, SPECIAL, DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message(
        "pairs.jsonl:2:2: error: the text holds the special token \"<bos>\" at byte 1");
    o.string_prompts_user = true;
    assert_int_equal(data_fixture_load(&fx, &d, SPECIAL, DATA_PAIRS, &o, fx.chatml), ERR_INPUT);
    data_fixture_message("pairs.jsonl:2:2: error: the text holds the special token");
    o.skip_bad_rows = true;
    o.max_bad_rows = 1;
    fflush(stderr);
    must(data_fixture_load(&fx, &d, SPECIAL, DATA_PAIRS, &o, fx.chatml));
    assert_int_equal(d.n, 1);
    dataset_release(&d);
}

static void test_data__vocabulary(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset d;
    o.skip_bad_rows = true; /* does not help: the tokenizer is not the model's */
    o.max_bad_rows = 10;
    o.vocab_size = TOK_EOS;
    assert_int_equal(data_fixture_load(&fx, &d, PAIR("p", "c", "r"), DATA_PAIRS, &o, fx.chatml),
                     ERR_INPUT);
    data_fixture_message("pairs.jsonl:1:");
    data_fixture_message("token id 260 is outside the model's vocabulary of 260");
    o.vocab_size = TOK_EOS + 1;
    must(data_fixture_load(&fx, &d, PAIR("p", "c", "r"), DATA_PAIRS, &o, fx.chatml));
    dataset_release(&d);
}

/* --- subsample, threads ------------------------------------------------------------------------------------------ */

static void test_data__subsample(void **state)
{
    (void)state;
    int64_t a[1000], b[1000], k, seen = 0;
    static const struct {
        int64_t n;
        double f;
        int64_t k;
    } counts[] = { { 1000, 0.1, 100 }, { 5, 0.5, 3 }, { 3, 0.5, 2 },         { 7, 0.01, 1 },
                   { 1, 0.2, 1 },      { 9, 1, 9 },   { 1000, 0.9999, 1000 } };
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        must(data_subsample(a, counts[i].n, counts[i].f, 7, &k));
        assert_int_equal(k, counts[i].k);
        for (int64_t j = 0; j < k; j++)
            assert_true(a[j] >= 0 && a[j] < counts[i].n && (j == 0 || a[j] > a[j - 1]));
    }
    must(data_subsample(a, 1000, 0.3, 7, &k));
    must(data_subsample(b, 1000, 0.3, 7, &k));
    assert_memory_equal(a, b, 300 * sizeof *a);
    must(data_subsample(b, 1000, 0.3, 8, &k));
    for (int64_t i = 0, j = 0; i < 300; i++) {
        while (j < 300 && b[j] < a[i])
            j++;
        seen += j < 300 && b[j] == a[i];
    }
    assert_in_range(seen, 60, 120); /* 90 expected of two independent choices, 5 sigma is 34 */
    assert_int_equal(data_subsample(a, 10, 0, 7, &k), ERR_INPUT);
    assert_int_equal(data_subsample(a, 10, 1.5, 7, &k), ERR_INPUT);
}

static void many_rows(struct buf *b, int n)
{
    for (int i = 0; i < n; i++)
        must(buf_addf(b, "{\"prompt\": \"row %d\", \"chosen\": \"%d\", \"rejected\": \"r%.*s\"}\n",
                      i, i % 17, i % 40, "0123456789012345678901234567890123456789"));
}

static void test_data__subsample_rows(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset all, d;
    struct buf b = { 0 }, text = { 0 };
    int64_t pick[700], k;
    many_rows(&b, 700);
    must(data_fixture_load(&fx, &all, b.data, DATA_PAIRS, &o, fx.chatml));
    o.subsample = 0.1;
    must(data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml));
    must(data_subsample(pick, 700, 0.1, o.seed, &k));
    assert_int_equal(d.n, 70);
    assert_int_equal(d.stats.kept, 700);
    int64_t ids = 0;
    for (int64_t i = 0; i < d.n; i++) {
        const struct example *x = &d.ex[i], *y = &all.ex[pick[i]];
        assert_int_equal(x->line, y->line);
        assert_int_equal(x->at, ids);
        assert_memory_equal(d.ids + x->at, all.ids + y->at,
                            (size_t)(x->np + x->nw + x->nl) * sizeof *d.ids);
        ids += x->np + x->nw + x->nl;
    }
    assert_int_equal(d.n_ids, ids);
    assert_string_equal(d.digest, all.digest);
    must(dataset_describe(&d, &text));
    assert_non_null(strstr(text.data, "70 of them used (subsample)"));
    dataset_release(&d);
    dataset_release(&all);
    buf_release(&b);
    buf_release(&text);
}

static void same_dataset(const struct dataset *a, const struct dataset *b)
{
    assert_int_equal(a->n, b->n);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n_ids * sizeof *a->ids);
    for (int64_t i = 0; i < a->n; i++) {
        assert_int_equal(a->ex[i].at, b->ex[i].at);
        assert_int_equal(a->ex[i].line, b->ex[i].line);
        assert_int_equal(a->ex[i].np, b->ex[i].np);
        assert_int_equal(a->ex[i].nw, b->ex[i].nw);
        assert_int_equal(a->ex[i].nl, b->ex[i].nl);
    }
    assert_string_equal(a->digest, b->digest);
}

static void test_data__threads(void **state)
{
    (void)state;
    struct data_opts o = data_fixture_opts();
    struct dataset one, d;
    struct buf b = { 0 };
    many_rows(&b, 1500);
    o.threads = 1;
    must(data_fixture_load(&fx, &one, b.data, DATA_PAIRS, &o, fx.chatml));
    assert_int_equal(one.n, 1500);
    for (int32_t threads = 0; threads <= 5; threads++) {
        o.threads = threads;
        must(data_fixture_load(&fx, &d, b.data, DATA_PAIRS, &o, fx.chatml));
        same_dataset(&one, &d);
        dataset_release(&d);
    }
    dataset_release(&one);
    buf_release(&b);
}

/* --- prompts of generate ---------------------------------------------------------------------------------------- */

static void test_data__encode_prompt(void **state)
{
    (void)state;
    static const struct {
        const char *row;
        bool user;
        int64_t max;
        const char *prompt; /* NULL: an error that holds the next */
        const char *error;
    } cases[] = {
        { "\"Hi ab\"", false, 0, "\3Hi ab\4", NULL },
        { "\"Hi ab\"", false, 3, "\3 ab\4", NULL }, /* "ab" is one token */
        { "\"Hi ab\"", true, 0, "\3\1user\nHi ab\2\n\1assistant\n\2", NULL },
        { "{\"prompt\": \"Hi\", \"id\": 7}", false, 0, "\3Hi\4", NULL },
        { "{\"prompt\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"chosen\": 3}", false, 0,
          "\3\1user\nHi\2\n\1assistant\n\2", NULL },
        { "{\"prompt\": \"\\n\\nHuman: x\\n\\nAssistant:\", \"chosen\": \"y\"}", false, 0,
          "\3\n\nHuman: x\n\nAssistant:\4", NULL },
        { "{\"chosen\": \"\\n\\nHuman: x\\n\\nAssistant: y\", \"rejected\": \"\\n\\nHuman: "
          "x\\n\\nAssistant: z\"}",
          false, 0, "\3\n\nHuman: x\n\nAssistant:\4", NULL },
        { "{\"prompt\": \"Hi\", \"chosen\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": "
          "\"assistant\", \"content\": \"y\"}]}",
          false, 0, "\3\1user\nHi\2\n\1assistant\n\2", NULL },
        { "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
          "\"content\": \"y\"}]}",
          false, 0, "\3\1user\nHi\2\n\1assistant\n\2", NULL },
        { "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}", false, 0,
          "\3\1user\nHi\2\n\1assistant\n\2", NULL },
        { "{\"text\": \"Hi\"}", false, 0, NULL, "p.jsonl:9: error: missing key \"prompt\"" },
        { "{\"prompt\": 4}", false, 0, NULL,
          "\"prompt\" must be a string or a list of messages; found a number" },
        { "{\"messages\": [{\"role\": \"assistant\", \"content\": \"y\"}]}", false, 0, NULL,
          "no message before the assistant's" },
        { "{\"messages\": []}", false, 0, NULL, "an empty list" },
        { "7", false, 0, NULL, "found a number" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct data_opts o = data_fixture_opts();
        struct ids out = { 0 }, want = { 0 };
        int32_t end = -1;
        json_t *row = json_loads(cases[i].row, JSON_DECODE_ANY, NULL);
        assert_non_null(row);
        o.string_prompts_user = cases[i].user;
        o.max_prompt_length = cases[i].max;
        const int rc = data_encode_prompt(&out, &end, row, &o, fx.tok, fx.chatml, "p.jsonl", 9);
        if (cases[i].prompt) {
            must(rc);
            must(ids_add(&out, end));
            data_fixture_ids(&want, cases[i].prompt);
            assert_int_equal(out.n, want.n);
            assert_memory_equal(out.id, want.id, (size_t)want.n * sizeof *want.id);
        } else {
            assert_int_equal(rc, ERR_INPUT);
            data_fixture_message(cases[i].error);
        }
        json_decref(row);
        ids_release(&out);
        ids_release(&want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data__cut_by_hand),     cmocka_unit_test(test_data__cut_without_bos),
        cmocka_unit_test(test_data__cut_sft),         cmocka_unit_test(test_data__cut_sweep),
        cmocka_unit_test(test_data__lengths_refused), cmocka_unit_test(test_data__dropped),
        cmocka_unit_test(test_data__dropped_share),   cmocka_unit_test(test_data__empty_prompt),
        cmocka_unit_test(test_data__no_eos),          cmocka_unit_test(test_data__specials),
        cmocka_unit_test(test_data__vocabulary),      cmocka_unit_test(test_data__subsample),
        cmocka_unit_test(test_data__subsample_rows),  cmocka_unit_test(test_data__threads),
        cmocka_unit_test(test_data__encode_prompt),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
