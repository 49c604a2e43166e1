/* SPDX-License-Identifier: MIT */
#include "data_fixture.h"
#include "../src/io/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const ADDED[] = { "<|im_start|>", "<|im_end|>", "<bos>", "<eos>" };

/* GPT-2's printable stand-in for a byte. */
static int stand_in(int byte)
{
    int next = 256;
    for (int b = 0; b < 256; b++) {
        const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte) return plain ? b : next;
        next += !plain;
    }
    return -1;
}

static void write_vocab(FILE *f)
{
    for (int b = 0; b < 256; b++) {
        const int c = stand_in(b);
        fprintf(f, "\"\\u%04x\": %d, ", (unsigned)c, b);
    }
    fprintf(f, "\"ab\": %d", TOK_AB);
}

static void write_tokenizer(const char *dir, int flags)
{
    char path[128];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs("{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [", f);
    for (int i = 0; i < 4; i++)
        fprintf(f,
                "%s{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
                "\"rstrip\": false, "
                "\"normalized\": false, \"special\": true}",
                i ? ", " : "", TOK_START + i, ADDED[i]);
    fputs("], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
          "\"add_prefix_space\": false, "
          "\"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": ",
          f);
    if (flags & FIXTURE_BOS)
        fprintf(f,
                "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": "
                "\"<bos>\", \"type_id\": 0}}, "
                "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [{\"Sequence\": "
                "{\"id\": \"A\", \"type_id\": "
                "0}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], \"special_tokens\": "
                "{\"<bos>\": {\"id\": \"<bos>\", "
                "\"ids\": [%d], \"tokens\": [\"<bos>\"]}}}",
                TOK_BOS);
    else
        fputs("null", f);
    fputs(", \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": "
          "true, \"use_regex\": "
          "true}, \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
          "\"continuing_subword_prefix\": "
          "null, \"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, "
          "\"vocab\": {",
          f);
    write_vocab(f);
    fputs("}, \"merges\": [\"a b\"]}}\n", f);
    assert_int_equal(fclose(f), 0);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    f = fopen(path, "wb");
    assert_non_null(f);
    fputs("{\"clean_up_tokenization_spaces\": false", f);
    if (flags & FIXTURE_BOS) fputs(", \"bos_token\": \"<bos>\"", f);
    fputs(flags & FIXTURE_EOS ? ", \"eos_token\": \"<eos>\"" : ", \"eos_token\": null", f);
    fputs("}\n", f);
    assert_int_equal(fclose(f), 0);
}

static void must(int rc)
{
    if (rc < 0) fail_msg("%s", err_msg());
}

void data_fixture_open(struct data_fixture *f, int flags)
{
    memset(f, 0, sizeof *f);
    strcpy(f->dir, "/tmp/bdpo-t_data-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    write_tokenizer(f->dir, flags);
    must(tokenizer_open(&f->tok, f->dir));
    must(template_open(&f->chatml, f->tok, f->dir, "chatml", NULL, NULL));
    must(template_open(&f->raw, f->tok, f->dir, "raw", NULL, NULL));
}

void data_fixture_close(struct data_fixture *f)
{
    template_close(f->raw);
    template_close(f->chatml);
    tokenizer_close(f->tok);
    must(dir_remove(f->dir));
}

const char *data_fixture_put(const struct data_fixture *f, const char *name, const char *text,
                             size_t len)
{
    static char path[8][128];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", f->dir, name);
    FILE *out = fopen(p, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, len, out), len);
    assert_int_equal(fclose(out), 0);
    return p;
}

void data_fixture_ids(struct ids *out, const char *s)
{
    out->n = 0;
    for (; *s; s++) {
        if (*s >= 1 && *s <= 4) {
            must(ids_add(out, TOK_START + *s - 1));
        } else if (s[0] == 'a' && s[1] == 'b') {
            must(ids_add(out, TOK_AB));
            s++;
        } else {
            must(ids_add(out, (unsigned char)*s));
        }
    }
}

struct data_opts data_fixture_opts(void)
{
    return (struct data_opts){ .max_length = 1000,
                               .max_prompt_length = 500,
                               .max_dropped = 1,
                               .subsample = 1,
                               .seed = 42,
                               .vocab_size = TOK_SIZE,
                               .threads = 2 };
}

int data_fixture_load(const struct data_fixture *f, struct dataset *d, const char *text,
                      enum data_kind kind, const struct data_opts *o,
                      const struct chat_template *tmpl)
{
    char path[128];
    char *paths[1] = { path };
    snprintf(path, sizeof path, "%s", data_fixture_put(f, "pairs.jsonl", text, strlen(text)));
    return dataset_load(d, paths, 1, kind, o, f->tok, tmpl);
}

static void expect_ids(const int32_t *ids, int64_t n, const char *expected, const char *what)
{
    struct ids want = { 0 };
    data_fixture_ids(&want, expected);
    bool same = n == want.n;
    for (int64_t i = 0; same && i < n; i++)
        same = ids[i] == want.id[i];
    if (!same) {
        for (int64_t i = 0; i < n; i++)
            print_message("%d ", ids[i]);
        print_message("\n");
    }
    ids_release(&want);
    if (!same) fail_msg("%s is not as expected: %s", what, expected);
}

void data_fixture_expect(const struct dataset *d, int64_t i, const char *prompt, const char *chosen,
                         const char *rejected)
{
    assert_true(i < d->n);
    const struct example *e = &d->ex[i];
    const int32_t *ids = d->ids + e->at;
    expect_ids(ids, e->np, prompt, "prompt");
    expect_ids(ids + e->np, e->nw, chosen, "chosen");
    expect_ids(ids + e->np + e->nw, e->nl, rejected ? rejected : "", "rejected");
}

void data_fixture_message(const char *part)
{
    if (!strstr(err_msg(), part)) fail_msg("\"%s\" is not in: %s", part, err_msg());
}
