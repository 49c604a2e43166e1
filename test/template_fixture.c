/* SPDX-License-Identifier: MIT */
#include "template_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

/* Byte-level, a token a byte, then these; ids are written out as text with the markers' names. */
const char TEMPLATE_ADDED[] =
    "[{\"id\": 256, \"content\": \"<|endoftext|>\", \"special\": true},"
    " {\"id\": 257, \"content\": \"<|im_start|>\", \"special\": true},"
    " {\"id\": 258, \"content\": \"<|im_end|>\", \"special\": true},"
    " {\"id\": 259, \"content\": \"<|begin_of_text|>\", \"special\": true},"
    " {\"id\": 260, \"content\": \"<|start_header_id|>\", \"special\": true},"
    " {\"id\": 261, \"content\": \"<|end_header_id|>\", \"special\": true},"
    " {\"id\": 262, \"content\": \"<|eot_id|>\", \"special\": true},"
    " {\"id\": 263, \"content\": \"<think>\", \"special\": false},"
    " {\"id\": 264, \"content\": \"</think>\", \"special\": false}]";
static const char *const marker[] = { "{end}",   "{start}", "{stop}",  "{bos}",   "{head}",
                                      "{/head}", "{eot}",   "{think}", "{/think}" };

struct tokenizer *template_fixture_tokenizer(const char *dir, const char *config)
{
    fixture_write(dir, "tokenizer_config.json", config);
    return fixture_open(dir, fixture_bytes(&(struct fixture){ .added = TEMPLATE_ADDED }));
}

const char *template_fixture_shown(const struct ids *v)
{
    static char out[4096];
    size_t n = 0;
    for (int64_t i = 0; i < v->n && n + 20 < sizeof out; i++) {
        if (v->id[i] < 256)
            out[n++] = (char)v->id[i];
        else
            n += (size_t)snprintf(out + n, sizeof out - n, "%s", marker[v->id[i] - 256]);
    }
    out[n] = 0;
    return out;
}

void template_fixture_expect(const struct chat_template *c, const struct message *msg, int64_t n,
                             bool generation, const char *want)
{
    struct ids v = { 0 };
    if (template_encode(c, msg, n, generation, SPECIALS_AS_TEXT, &v) < 0) fail_msg("%s", err_msg());
    assert_string_equal(template_fixture_shown(&v), want);
    ids_release(&v);
}

struct chat_template *template_fixture_open(const struct tokenizer *t, const char *dir,
                                            const char *jinja, const char *name, const char *system)
{
    struct chat_template *c = NULL;
    fixture_write(dir, "chat_template.jinja", jinja);
    if (template_open(&c, t, dir, name, system, NULL) < 0) fail_msg("%s", err_msg());
    return c;
}
