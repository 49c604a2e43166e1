/* SPDX-License-Identifier: MIT
 * Config: every option through file and --set, every kind of error with its place. */
#include "config_fixture.h"
#include "../src/ops/ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int lines_of(const char *s)
{
    int n = *s != 0;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

/* A config in which every option has an effect, as a tree; the caller owns it. */
static json_t *rich(const struct option *o)
{
    const char *loss = "dpo";
    json_t *root;
    for (size_t i = 0; o->use == USE_LOSS && i < loss_count; i++)
        if (loss_table[i].options & o->loss_bit)
            loss = loss_table[i].name; /* lambda: the last, bdpo */
    root = json_pack("{s:{s:s, s:{}}, s:{s:s, s:s, s:s, s:I}, s:{}, s:{s:s}, s:s}", "model", "path",
                     "m", "lora", "data", "train", "t.jsonl", "eval", "e.jsonl", "on_bad_row",
                     "skip", "max_length", (json_int_t)(1 << 20), "sft", "preference", "loss", loss,
                     "output", "o");
    assert_non_null(root);
    return root;
}

/* Put value (taken over) at the dotted path. */
static void put(json_t *root, const char *path, json_t *value)
{
    const char *dot;
    char section[40];
    assert_non_null(value);
    while ((dot = strchr(path, '.'))) {
        snprintf(section, sizeof section, "%.*s", (int)(dot - path), path);
        if (!json_object_get(root, section)) json_object_set_new(root, section, json_object());
        root = json_object_get(root, section);
        path = dot + 1;
    }
    assert_int_equal(json_object_set_new(root, path, value), 0);
}

static char *text_of(const json_t *v)
{
    char *s = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    assert_non_null(s);
    return s;
}

/* Load the rich config with the option at `value` (borrowed), in the file or by --set. */
static int load_with(void **state, struct config **c, const struct option *o, json_t *value,
                     bool by_set)
{
    json_t *root = rich(o);
    char *v = text_of(value), *text, setting[400];
    const char *sets[1] = { setting };
    if (!by_set) put(root, o->path, json_incref(value));
    text = text_of(root);
    snprintf(setting, sizeof setting, "%s=%s", o->path, v);
    const int rc = load(state, c, text, sets, by_set);
    free(v);
    free(text);
    json_decref(root);
    return rc;
}

static void expect(void **state, const struct option *o, json_t *value, bool good)
{
    for (int by_set = 0; by_set < 2; by_set++) {
        struct config *c = NULL;
        char *v = text_of(value);
        const int rc = load_with(state, &c, o, value, by_set);
        if ((rc == 0) != good)
            fail_msg("%s = %s: %s", o->path, v, rc == 0 ? "accepted" : err_msg());
        if (!good && !strstr(err_msg(), o->path))
            fail_msg("%s = %s: not named in: %s", o->path, v, err_msg());
        if (!good && by_set) assert_memory_equal(err_msg(), "--set ", 6);
        if (good) {
            json_t *got = option_value(c, o);
            const bool word = (o->flags & OPTION_SWITCH) && json_is_boolean(got) &&
                              json_number_value(value) == (json_is_true(got) ? o->max : 0);
            const bool same = json_is_number(value) && json_is_number(got)
                                  ? json_number_value(got) == json_number_value(value)
                                  : json_equal(got, value) || word;
            const bool resolved =
                json_is_null(value) && strcmp(o->path, "data.max_prompt_length") == 0;
            if (!same && !resolved) fail_msg("%s = %s was read as something else", o->path, v);
            json_decref(got);
        }
        free(v);
        config_free(c);
    }
    json_decref(value);
}

static void test_config__each_option_both_ways(void **state)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        switch (o->type) {
        case OPTION_TRI:
            expect(state, o, json_string("auto"), true); /* fallthrough */
            __attribute__((fallthrough));
        case OPTION_BOOL:
            expect(state, o, json_true(), true);
            expect(state, o, json_false(), true);
            break;
        case OPTION_INT:
            expect(state, o, json_integer(7), true);
            break;
        case OPTION_REAL:
            expect(state, o, json_real(0.25), true);
            break;
        case OPTION_TEXT:
        case OPTION_CHOICE:
            for (const struct choice *k = o->choices; k && k->name; k++)
                expect(state, o, json_string(k->name),
                       !k->refused && (cuda_built || strcmp(k->name, "cuda") != 0));
            if (o->choices)
                expect(state, o, json_string("qqq"), false);
            else
                expect(state, o, json_string("a b/\"c\\.d"), true);
            expect(state, o, json_string(""), (o->flags & OPTION_EMPTY) != 0);
            break;
        case OPTION_SET:
            expect(state, o, json_pack("[s]", o->choices[0].name), true);
            expect(state, o, json_pack("[s, s]", o->choices[0].name, o->choices[1].name), true);
            expect(state, o, json_pack("[s, s]", o->choices[0].name, o->choices[0].name), false);
            expect(state, o, json_pack("[s, s]", o->choices[0].name, "qqq"), false);
            expect(state, o, json_pack("[i]", 1), false);
            expect(state, o, json_array(), false);
            break;
        case OPTION_PATHS:
            expect(state, o, json_string("a.jsonl"), true);
            expect(state, o, json_pack("[s, s]", "a.jsonl", "b.jsonl.gz"), true);
            expect(state, o, json_array(), false);
            expect(state, o, json_pack("[s, i]", "a.jsonl", 3), false);
            expect(state, o, json_pack("[s, s]", "a.jsonl", ""), false);
            break;
        case OPTION_LOSS:
            for (size_t k = 0; k < loss_count; k++)
                expect(state, o, json_string(loss_table[k].name), true);
            expect(state, o, json_string("simpo"), false);
            break;
        }
        if (o->flags & OPTION_AUTO) expect(state, o, json_string("auto"), true);
        if (!(o->flags & OPTION_SWITCH)) continue;
        expect(state, o, json_true(), true);
        expect(state, o, json_false(), true);
    }
}

/* Every JSON type at every option: "8" for 8, 1.5 for a whole number, null where it means nothing ... */
static void test_config__types(void **state)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        const bool number = o->type == OPTION_INT || o->type == OPTION_REAL;
        const bool flag =
            o->type == OPTION_BOOL || o->type == OPTION_TRI || (o->flags & OPTION_SWITCH);
        const bool needed = strcmp(o->path, "data.train") == 0; /* null: not given */
        const bool text = (o->type == OPTION_TEXT && !o->choices) || o->type == OPTION_PATHS;
        expect(state, o, json_object(), false);
        expect(state, o, json_pack("[s]", o->type == OPTION_PATHS ? "" : "x"), false);
        expect(state, o, json_string("8"), text);
        expect(state, o, json_string("true"), text);
        if (!(needed)) expect(state, o, json_null(), (o->flags & OPTION_NULL) != 0);
        if (!flag) expect(state, o, json_true(), false);
        if (!number) expect(state, o, json_integer(1), false);
        if (o->type == OPTION_INT) expect(state, o, json_real(1.5), false);
        if (o->type == OPTION_INT && o->min <= 8) expect(state, o, json_real(8), true);
        if (o->type == OPTION_REAL && o->max >= 1 && !(o->max == 1 && (o->flags & OPTION_BELOW)))
            expect(state, o, json_integer(1), true); /* 1 for 1.0 */
    }
    load_bad(state, "{" BASE_KEYS ", \"sft\": {\"batch_size\": \"8\"}}", NULL,
             "sft.batch_size: expected a whole number in [1, 1048576], found the string \"8\"; "
             "write it without quotes");
    load_bad(state, BASE, "output=17",
             "--set output: error: output: expected a string, found 17; put quotes around it");
}

static void test_config__ranges(void **state)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        double hi = o->max;
        if (o->type != OPTION_INT && o->type != OPTION_REAL) continue;
        if (o->loss_bit == LOSS_LAMBDA) hi = 1; /* rich() takes bdpo */
        if (o->type == OPTION_INT) {
            expect(state, o, json_integer((json_int_t)o->min), true);
            expect(state, o, json_integer((json_int_t)o->min - 1), false);
            expect(state, o, json_integer((json_int_t)hi), true);
            expect(state, o, json_integer((json_int_t)hi + 1), false);
            expect(state, o, json_integer(INT64_MAX), false);
            expect(state, o, json_integer(INT64_MIN), false);
            expect(state, o, json_real(1e300), false);
            continue;
        }
        expect(state, o, json_real(o->min), !(o->flags & OPTION_ABOVE));
        expect(state, o, json_real(o->min - 1e-9), false);
        expect(state, o, json_real(hi), !(o->flags & OPTION_BELOW));
        expect(state, o, json_real(hi + 1e-9 * hi), false);
        expect(state, o, json_real(-1e300), false);
    }
    load_bad(state, BASE, "seed=9007199254740993",
             "--set seed: error: seed: 9007199254740993 is outside [0, 9007199254740992]");
    load_bad(state, BASE, "preference.lambda=1.5",
             "--set preference.lambda: error: preference.lambda: 1.5 is outside [0, 1]");
    load_bad(state, BASE, "preference.beta=0", "0 is outside [1e-06, 1000]");
    load_bad(state, BASE, "preference.learning_rate=0", "0 is outside (0, 1]");
    load_bad(state, BASE, "data.max_length=1", "1 is outside [2, 1048576]");
    config_free(load_ok(state, BASE, "preference.loss=dpop", "preference.lambda=500", NULL));
}

/* One edit in each key: the first letter lost, the first two swapped, one doubled, one replaced. */
static void test_config__unknown_keys(void **state)
{
    for (size_t i = 0; i < option_count + section_count; i++) {
        const char *path =
            i < option_count ? option_table[i].path : section_table[i - option_count].path;
        const char *dot = strrchr(path, '.'), *leaf = dot ? dot + 1 : path;
        const size_t at = (size_t)(leaf - path), n = strlen(path);
        for (int edit = 0; edit < 4; edit++) {
            char typo[80], setting[100], want[400];
            snprintf(typo, sizeof typo, "%s", path);
            if (edit == 0) memmove(typo + at, typo + at + 1, n - at);
            if (edit == 1) typo[at] = path[at + 1], typo[at + 1] = path[at];
            if (edit == 2) memmove(typo + at + 1, typo + at, n - at + 1);
            if (edit == 3) typo[at + 1] = 'q';
            if (option_find(typo) || section_find(typo)) continue;
            if (strcmp(typo, "rpeference") == 0) continue; /* one edit from reference too */
            snprintf(setting, sizeof setting, "%s=1", typo);
            snprintf(want, sizeof want, "--set %s: error: %s: unknown key; did you mean \"%s\"?",
                     typo, typo, leaf);
            load_bad(state, BASE, setting, want);
        }
    }
    load_bad(state, "{\n" BASE_KEYS ",\n  \"preference\": {\n      \"lamda\": 0.5}}", NULL,
             "run.json:4:7: error: preference.lamda: unknown key; did you mean \"lambda\"?");
    load_bad(state, BASE, "beta=1", "beta: unknown key; did you mean \"preference.beta\"?");
    load_bad(state, BASE, "epochs=1", "did you mean \"sft.epochs\" or \"preference.epochs\"?");
    load_bad(state, "{" BASE_KEYS ", \"preference\": {}, \"model.dtype\": 1}", NULL,
             "did you mean \"model.dtype\"");
    load_bad(state, BASE, "model.qlora.rank=8", "model.qlora: unknown key; did you mean \"lora\"?");
    load_bad(state, BASE, "model.path.rank=8", "\"path\" is not a section");
    load_bad(state, BASE, "zzzzzzzz=8", "--set zzzzzzzz: error: zzzzzzzz: unknown key");
    load_bad(state, "{" BASE_KEYS ", \"preference\": {}, \"a\\u001b[1m\\u00e9/~\": 1}", NULL,
             "a\\x1b[1m\\xc3\\xa9/~: unknown key");
}

static void test_config__all_errors_in_one_pass(void **state)
{
    static const char text[] =
        "{\n"
        "  \"model\": {\"path\": 3},\n"
        "  \"data\": {\"train\": [\"a\", 7], \"max_lenght\": 4, \"max_dropped\": 1.5},\n"
        "  \"preference\": {\"loss\": \"dpo\", \"lambda\": 0.5, \"epochs\": null},\n"
        "  \"sft\": 3,\n"
        "  \"sed\": 1\n"
        "}\n";
    static const char *const want[] = {
        "run.json:2:13: error: model.path: expected a string, found 3",
        "run.json:3:27: error: data.train.1: expected a path, found 7",
        "run.json:3:31: error: data.max_lenght: unknown key; did you mean \"max_length\"?",
        "run.json:3:48: error: data.max_dropped: 1.5 is outside [0, 1]",
        ("run.json:4:33: error: preference.lambda: not used by the loss \"dpo\", which takes beta, "
         "label_smoothing"),
        "run.json:4:48: error: preference.epochs: expected a number in (0, 1000000], found null",
        "run.json:5:3: error: sft: expected a section or null",
        "run.json:6:3: error: sed: unknown key; did you mean \"seed\"?",
        "run.json:1:1: error: output: must be given",
    };
    load_bad(state, text, NULL, want[0]);
    for (size_t i = 0; i < COUNT_OF(want); i++)
        if (!strstr(err_msg(), want[i])) fail_msg("expected \"%s\" in: %s", want[i], err_msg());
    assert_int_equal(lines_of(err_msg()), COUNT_OF(want));
    struct buf b = { 0 };
    assert_int_equal(buf_adds(&b, "{" BASE_KEYS ", \"preference\": {"), 0);
    for (int i = 0; i < 30; i++)
        assert_int_equal(buf_addf(&b, "%s\"wrong%d\": 1", i ? "," : "", i), 0);
    assert_int_equal(buf_adds(&b, "}}"), 0);
    load_bad(state, b.data, NULL, "error: 10 more problems like these");
    assert_int_equal(lines_of(err_msg()), 21);
    buf_release(&b);
}

static void test_config__loss_options(void **state)
{
    for (size_t i = 0; i < loss_count; i++)
        for (unsigned bit = LOSS_BETA; bit <= LOSS_SMOOTHING; bit <<= 1) {
            const struct loss_def *d = &loss_table[i];
            char text[300], want[200];
            snprintf(text, sizeof text,
                     "{" BASE_KEYS ", \"preference\": {\"%s\": 0.25, \"loss\": \"%s\"}}",
                     loss_option_name(bit), d->name);
            snprintf(want, sizeof want,
                     "preference.%s: not used by the loss \"%s\", which takes beta",
                     loss_option_name(bit), d->name);
            if (!(d->options & bit)) {
                load_bad(state, text, NULL, want);
                continue;
            }
            struct config *c = load_ok(state, text, NULL, NULL, NULL);
            assert_string_equal(c->loss, d->name);
            for (unsigned other = LOSS_BETA; other <= LOSS_SMOOTHING; other <<= 1)
                assert_true(loss_option(other, &c->loss_opts) ==
                            (other == bit ? 0.25 : loss_option(other, &d->defaults)));
            config_free(c);
        }
    load_bad(state, BASE, "preference.alpha=1",
             "not used by the loss \"bdpo\" (the default), which takes beta, lambda (alpha is an "
             "option of dpo_nll)");
    load_bad(state, BASE, "preference.loss=bpdo",
             "\"bpdo\" is not one of \"dpo\", \"dpo_nll\", \"dpop\", \"bdpo\", "
             "\"minor_dpo\", \"slic\", \"orpo\", \"sppo\"; did you mean \"bdpo\"?");
    assert_int_equal(lines_of(err_msg()), 1);
    load_bad(state,
             "{" BASE_KEYS
             ", \"preference\": {\"loss\": \"orpo\"}, \"reference\": {\"path\": \"r\"}}",
             NULL, "reference.path: not used by the loss \"orpo\"");
}

static void test_config__cross_checks(void **state)
{
    static const struct {
        const char *set, *want;
    } rows[] = {
        { "data.max_prompt_length=1024",
          "data.max_prompt_length: max_prompt_length 1024 must be below max_length 1024" },
        { "preference=null", "run.json:1:1: error: neither \"sft\" nor \"preference\" is there" },
        { "model=null", "--set model: error: model: expected a section" },
        { "data.train=null", "--set data.train: error: data.train: must be given" },
        { "data.max_bad_rows=3", "not used with \"on_bad_row\": \"error\"; set \"skip\"" },
        { "eval.every=3", "eval.every: needs data.eval" },
        { "output=m", "output: is model.path" },
        { "model.dtype=float16",
          "\"float16\" is not one of \"bfloat16\", \"float32\"; did you mean \"bfloat16\"?" },
        { "optimizer.master=bfloat16", "\"bfloat16\" is not one of \"float32\", \"none\"" },
        { "optimizer.moments=int8", "\"int8\" is not one of \"float32\", \"bfloat16\"" },
        { "model={\"path\": \"m\", \"quantization\": \"nf4\"}",
          "a base in 4 bits is not trained itself" },
        { "note=3", "note: expected a string" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        load_bad(state, BASE, rows[i].set, rows[i].want);
    if (!cuda_built) load_bad(state, BASE, "backend=cuda", "this build has no CUDA");
    load_bad(state,
             "{\"model\": {\"path\": \"m\"}, \"sft\": {\"train\": \"a\"}, "
             "\"preference\": {}, \"output\": \"o\"}",
             NULL, "data.train: must be given");
    struct config *c = load_ok(state, BASE, "data.max_length=7", NULL, NULL);
    assert_int_equal(c->data.max_prompt_length, 3);
    config_free(c);
    c = load_ok(state,
                "{\"model\": {\"path\": \"m\"}, \"sft\": {\"train\": "
                "\"a\"}, \"preference\": {\"train\": [\"b\", \"c\"]}, \"output\": \"o\"}",
                NULL, NULL, NULL);
    assert_true(c->sft.train.n == 1 && c->preference.train.n == 2 && c->data.train.n == 0);
    assert_string_equal(c->preference.train.item[1], "c");
    config_free(c);
}

static void test_config__defaults(void **state)
{
    struct config *c =
        load_ok(state, "{" BASE_KEYS ", \"sft\": {}, \"preference\": {}, \"note\": \"free\"}", NULL,
                NULL, NULL);
    assert_true(c->sft.present && c->preference.present);
    assert_true(c->sft.epochs == 1 && c->sft.learning_rate == 2e-5 && c->sft.batch_size == 64 &&
                c->sft.max_steps == 0);
    assert_true(c->preference.epochs == 3 && c->preference.learning_rate == 5e-7 &&
                c->preference.batch_size == 64);
    assert_true(c->sft.adam_beta1 == 0.9 && c->sft.adam_beta2 == 0.999 &&
                c->sft.adam_epsilon == 1e-8 && c->sft.shuffle);
    assert_true(c->sft.max_grad_norm == 1 && c->sft.weight_decay == 0 && c->sft.warmup_ratio == 0);
    assert_string_equal(c->loss, "bdpo");
    assert_true(c->loss_opts.beta == 0.1 && c->loss_opts.lambda == 0.5);
    assert_true(c->data.max_length == 1024 && c->data.max_prompt_length == 512 &&
                c->data.eval.n == 0);
    assert_true(c->data.max_dropped == 0.05 && c->data.subsample == 1 && !c->data.system_prompt &&
                !c->reference.path);
    assert_true(c->reference.cache && c->eval.at_end && c->eval.every == 0 &&
                c->checkpoint.every == 50);
    assert_true(c->memory.micro_batch_tokens == CONFIG_AUTO &&
                c->memory.gradient_checkpointing == CONFIG_AUTO && c->memory.limit == CONFIG_AUTO);
    assert_true(c->model.dtype == DTYPE_BFLOAT16 && c->model.save_dtype == SAVE_AUTO);
    assert_true(c->seed == 42 && c->threads == 0 && c->max_hours == 0 && !c->cache_dir &&
                c->faults.hang_timeout == 600);
    assert_true(c->logging.every == 1 && c->logging.progress == PROGRESS_AUTO &&
                c->checkpoint.keep == 2);
    assert_string_equal(c->checkpoint.resume, "auto");
    config_free(c);
}

static void test_config__sets(void **state)
{
    struct config *c =
        load_ok(state, BASE, "preference.lambda=0.7", "preference.lambda=0.9", "output=runs/x=y");
    assert_true(c->loss_opts.lambda == 0.9);
    assert_string_equal(c->output, "runs/x=y");
    config_free(c);
    c = load_ok(state, BASE, "sft={\"epochs\": 2}", "sft.epochs=3", "preference=null");
    assert_true(c->sft.present && c->sft.epochs == 3 && !c->preference.present);
    config_free(c);
    c = load_ok(state, BASE, "sft.max_steps=4", "data.train=[\"a\", \"b\"]", "data.system_prompt=");
    assert_true(c->sft.present && c->sft.max_steps == 4 && c->data.train.n == 2);
    assert_string_equal(c->data.system_prompt, "");
    config_free(c);
    load_bad(state, BASE, "preference.lambda",
             "--set: error: expected key=value, found \"preference.lambda\"");
    load_bad(state, BASE, "=3", "expected key=value");
    load_bad(state, BASE, "preference..lambda=3", "the key is not a dotted path");
    load_bad(state, BASE, "seed.x=3",
             "--set seed.x: error: seed: expected a whole number in [0, 9007199254740992], found a "
             "section");
    load_bad(state, "{" BASE_KEYS ", \"preference\": {}, \"seed\": 1}", "seed.x=3",
             "--set seed.x: error: \"seed\" is not a section");
    load_bad(state, BASE,
             "output=a\xff"
             "b",
             "--set output: error: the value is not UTF-8 text");
    load_bad(state, BASE,
             "a\xff"
             "b=1",
             "the key is not UTF-8 text");
    load_bad(state, BASE, "preference.lambda=nan", "found the string \"nan\"");
    load_bad(state, BASE, "preference={\"loss\": \"dpo\", \"lambda\": 1}",
             "--set preference: error: preference.lambda: not used");
    char *deep = malloc(20003);
    assert_non_null(deep);
    for (int i = 0; i < 20000; i++)
        deep[i] = i % 2 ? '.' : 'a';
    memcpy(deep + 20000, "=1", 3);
    load_bad(state, BASE, deep, "the key is not a dotted path");
    free(deep);
}

static void test_config__broken_files(void **state)
{
    struct config *c;
    load_bad(state, "", NULL, "run.json:1:1: error:");
    load_bad(state, "[]", NULL, "run.json:1:1: error: expected an object");
    load_bad(state, "{\"seed\": 1, \"seed\": 2}", NULL, "run.json:1:13: error:");
    load_bad(state, "{\"seed\": 1, // comment\n}", NULL, "run.json:1:");
    load_bad(state, "\xef\xbb\xbf{}", NULL, "run.json:1:1: error:");
    load_bad(state, "{\"seed\": 1e999}", NULL, "run.json:1:10: error:");
    load_bad(state, "{\"seed\": 9223372036854775808}", NULL, "run.json:1:10: error:");
    assert_int_equal(config_load(&c, scratch_dir(state), NULL, 0), ERR_INPUT);
    assert_int_equal(config_load(&c, scratch(state, "absent.json"), NULL, 0), ERR_INPUT);
    assert_null(c);
}

static void test_config__table(void **state)
{
    (void)state;
    struct buf help = { 0 };
    assert_int_equal(config_help(&help), 0);
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        assert_ptr_equal(option_find(o->path), o);
        assert_non_null(strstr(help.data, o->path));
        assert_true(o->dflt || (o->flags & OPTION_NEEDED) || o->use == USE_LOSS);
        for (size_t k = 0; k < i; k++)
            assert_int_not_equal(o->offset, option_table[k].offset);
        const char *dot = strrchr(o->path, '.');
        char section[40];
        snprintf(section, sizeof section, "%.*s", dot ? (int)(dot - o->path) : 0, o->path);
        if (dot) assert_non_null(section_find(section));
    }
    buf_release(&help);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, scratch_make, scratch_remove)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_config__each_option_both_ways),
        TEST(test_config__types),
        TEST(test_config__ranges),
        TEST(test_config__unknown_keys),
        TEST(test_config__all_errors_in_one_pass),
        TEST(test_config__loss_options),
        TEST(test_config__cross_checks),
        TEST(test_config__defaults),
        TEST(test_config__sets),
        TEST(test_config__broken_files),
        TEST(test_config__table),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
