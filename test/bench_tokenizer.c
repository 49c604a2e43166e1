/* SPDX-License-Identifier: MIT */
#include "bench_tokenizer.h"
#include "../src/data/tokenizer.h"
#include "../src/io/file.h"
#include "../src/io/json.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PASSES = 7 };
#define SHARED "../shared/data/"
static const char *const PAIRS[] = { SHARED "pairs/gsm8k_model_solutions_pairs.jsonl",
                                     SHARED "pairs/hh_harmless_1500.jsonl.gz",
                                     SHARED "pairs/llamafactory_dpo_en.jsonl" };

struct texts {
    char **s; /* owned */
    size_t *len;
    int64_t n, cap, cap_len;
    double bytes;
};

static void must(int rc)
{
    if (rc >= 0) return;
    fprintf(stderr, "%s\n", err_msg());
    exit(1);
}

static void add_strings(struct texts *t, const json_t *v)
{
    const char *key;
    json_t *item, *object;
    size_t i;
    if (json_is_string(v)) {
        must(MEM_GROW(&t->s, &t->cap, t->n + 1));
        must(MEM_GROW(&t->len, &t->cap_len, t->n + 1));
        t->len[t->n] = json_string_length(v);
        must(mem_strndup(&t->s[t->n], json_string_value(v), t->len[t->n]));
        t->bytes += (double)t->len[t->n++];
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, item) add_strings(t, item);
    } else if (json_is_object(v)) {
        memcpy(&object, &v, sizeof object); /* jansson's iterator takes no const */
        json_object_foreach(object, key, item) add_strings(t, item);
    }
}

static void read_texts(struct texts *t, const char *file)
{
    struct line_reader *r;
    char *line;
    size_t len;
    must(lines_open(&r, file));
    while (lines_next(r, &line, &len) > 0) {
        struct json_doc d = { 0 };
        must(json_doc_parse_any(&d, file, lines_number(r), line, len));
        add_strings(t, d.root);
        json_doc_release(&d);
    }
    lines_close(r);
}

static int64_t encode_all(const struct tokenizer *tok, const struct texts *t, int threads)
{
    int64_t ids = 0;
#pragma omp parallel num_threads(threads) reduction(+ : ids)
    {
        struct ids v = { 0 };
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < t->n; i++) {
            v.n = 0;
            must(tokenizer_encode(tok, t->s[i], t->len[i], SPECIALS_AS_TEXT, &v));
            ids += v.n;
        }
        ids_release(&v);
    }
    return ids;
}

void bench_tokenizer(const char *dir, const char *file, int threads)
{
    struct texts t = { 0 };
    struct tokenizer *tok;
    double best = 1e30;
    int64_t ids = 0;
    if (!dir) dir = SHARED "tokenizers/qwen2.5";
    if (!file && (!dir_exists(dir) || !file_exists(PAIRS[0]))) {
        printf("tokenize: skipped: no " SHARED "pairs\n");
        return;
    }
    if (threads < 1) threads = omp_get_max_threads();
    must(tokenizer_open(&tok, dir));
    for (size_t i = 0; i < (file ? 1 : COUNT_OF(PAIRS)); i++)
        read_texts(&t, file ? file : PAIRS[i]);
    for (int i = 0; i < PASSES; i++) {
        const double start = omp_get_wtime();
        ids = encode_all(tok, &t, threads);
        best = MIN(best, omp_get_wtime() - start);
    }
    printf(
        "tokenize %-24s %9.3f ms %8.1f MB/s %7.2f M ids/s   (%lld texts, %lld ids, %d threads)\n",
        path_base(dir), best * 1e3, t.bytes / best / 1e6, (double)ids / best / 1e6, (long long)t.n,
        (long long)ids, threads);
    for (int64_t i = 0; i < t.n; i++)
        free(t.s[i]);
    free(t.s);
    free(t.len);
    tokenizer_close(tok);
}
