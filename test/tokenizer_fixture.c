/* SPDX-License-Identifier: MIT */
#include "tokenizer_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../src/io/file.h"

char *fixture_dir(void)
{
    char *dir = strdup("/tmp/bdpo-tokenizer-XXXXXX");
    assert_non_null(mkdtemp(dir));
    return dir;
}

void fixture_remove(char *dir)
{
    assert_int_equal(dir_remove(dir), 0);
    free(dir);
}

void fixture_write(const char *dir, const char *name, const char *text)
{
    char *path;
    assert_int_equal(path_join(&path, dir, name), 0);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
    free(path);
}

/* GPT-2's table, written down in another way than the code under test has it. */
static unsigned letter_of(int byte)
{
    int moved = 0;
    for (int b = 0; b < 256; b++) {
        const bool plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte) return plain ? (unsigned)b : 256u + (unsigned)moved;
        moved += !plain;
    }
    return 0;
}

static void member(struct buf *b, const char *name, const char *value, const char *dflt)
{
    if (!value) value = dflt;
    if (*value) assert_int_equal(buf_addf(b, "\"%s\": %s,\n", name, value), 0);
}

static char *finish(struct buf *b, const struct fixture *f, const char *model, const char *merges)
{
    if (f->vocab) buf_addf(b, ", %s", f->vocab);
    buf_addf(b, "}, \"merges\": %s", f->merges ? f->merges : merges);
    if (f->model) model = f->model;
    if (*model) buf_addf(b, ", %s", model);
    assert_int_equal(buf_adds(b, "}}\n"), 0);
    return b->data;
}

char *fixture_bytes(const struct fixture *f)
{
    static const char level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                "\"trim_offsets\": false, \"use_regex\": false}";
    struct buf b = { 0 };
    buf_adds(&b, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n");
    member(&b, "added_tokens", f->added, "[]");
    member(&b, "normalizer", f->normalizer, "null");
    member(&b, "pre_tokenizer", f->pre_tokenizer, level);
    member(&b, "post_processor", f->post_processor, "null");
    member(&b, "decoder", f->decoder, level);
    buf_adds(&b, "\"model\": {\"type\": \"BPE\", \"vocab\": {");
    for (int i = 0; i < 256; i++)
        buf_addf(&b, "%s\"\\u%04x\": %d", i ? ", " : "", letter_of(i), i);
    return finish(&b, f, "\"unk_token\": null", "[]");
}

char *fixture_pieces(const struct fixture *f)
{
    struct buf b = { 0 };
    buf_adds(&b, "{\"version\": \"1.0\",\n");
    member(&b, "added_tokens", f->added, "[]");
    member(&b, "normalizer", f->normalizer,
           "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": "
           "\"\\u2581\"}, "
           "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\\u2581\"}]}");
    member(&b, "pre_tokenizer", f->pre_tokenizer, "null");
    member(&b, "post_processor", f->post_processor, "null");
    member(&b, "decoder", f->decoder,
           "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": "
           "{\"String\": \"\\u2581\"}, "
           "\"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}, "
           "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}");
    buf_adds(&b,
             "\"model\": {\"type\": \"BPE\", \"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2");
    for (int i = 0; i < 256; i++)
        buf_addf(&b, ", \"<0x%02X>\": %d", (unsigned)i, i + 3);
    return finish(&b, f, "\"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true",
                  "[]");
}

struct tokenizer *fixture_open(const char *dir, char *text)
{
    struct tokenizer *t = NULL;
    fixture_write(dir, "tokenizer.json", text);
    free(text);
    if (tokenizer_open(&t, dir) < 0) fail_msg("%s", err_msg());
    return t;
}

const char *fixture_list(const struct ids *v)
{
    static char out[4096];
    size_t n = 0;
    out[0] = 0;
    for (int64_t i = 0; i < v->n && n + 16 < sizeof out; i++)
        n += (size_t)snprintf(out + n, sizeof out - n, "%s%d", i ? " " : "", v->id[i]);
    return out;
}

const char *fixture_ids(const struct tokenizer *t, const char *text, enum special_mode mode)
{
    struct ids v = { 0 };
    const int rc = tokenizer_encode(t, text, strlen(text), mode, &v);
    const char *s = rc < 0 ? "error" : fixture_list(&v);
    ids_release(&v);
    return s;
}
