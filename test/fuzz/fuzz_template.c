/* SPDX-License-Identifier: MIT
 * Bytes as a chat template: the first byte says how (chat_template.jinja, tokenizer_config.json, pieces of the config). It is opened or refused, never a
 * crash; what is opened writes conversations of ids that exist, the same twice, or refuses them and adds nothing. */
#include "../template_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *tok;
static char *dir;

static void clean(void)
{
    tokenizer_close(tok);
    fixture_remove(dir);
}

static void begin(void)
{
    dir = fixture_dir();
    tok = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    atexit(clean);
}

static void drop(const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static void check_conversation(const struct chat_template *c, const struct message *msg, int64_t n,
                               bool generation)
{
    struct ids a = { 0 }, b = { 0 };
    const int rc = template_encode(c, msg, n, generation, SPECIALS_AS_TEXT, &a);
    BUG_IF(template_encode(c, msg, n, generation, SPECIALS_AS_TEXT, &b) != rc || a.n != b.n);
    BUG_IF(rc < 0 && a.n != 0);
    BUG_IF(a.n && memcmp(a.id, b.id, (size_t)a.n * sizeof *a.id) != 0);
    for (int64_t i = 0; i < a.n; i++)
        BUG_IF(a.id[i] < 0 || a.id[i] >= tokenizer_size(tok));
    ids_release(&a);
    ids_release(&b);
}

static void check_template(const struct chat_template *c)
{
    static const struct message msg[] = { MSG("system", " Be <brief>. "), MSG("user", "Hi\n"),
                                          MSG("assistant", "<think>\na\n</think>\n\nYes"),
                                          MSG("user", "") };
    struct buf b = { 0 };
    struct ids v = { 0 };
    for (int64_t from = 0; from < 2; from++)
        for (int64_t n = 1; from + n <= (int64_t)COUNT_OF(msg); n++)
            for (int generation = 0; generation < 2; generation++)
                check_conversation(c, msg + from, n, generation);
    BUG_IF(template_identity(c, &b) < 0 || !template_name(c));
    if (template_encode_response(c, true, " a ", 3, SPECIALS_MATCH, &v) < 0) BUG_IF(v.n != 0);
    BUG_IF(template_end(c, true) >= tokenizer_size(tok));
    ids_release(&v);
    buf_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { JINJA, CONFIG, PIECES, WAYS };
    struct chat_template *c = NULL;
    if (size == 0) return 0;
    if (!tok) begin();
    const int way = *data % WAYS;
    char *text = strndup((const char *)data + 1, size - 1);
    BUG_IF(!text);
    if (way == JINJA) fixture_write(dir, "chat_template.jinja", text);
    if (way == CONFIG) fixture_write(dir, "tokenizer_config.json", text);
    if (template_open(&c, tok, dir, way == PIECES ? text : "auto", NULL, NULL) == 0)
        check_template(c);
    template_close(c);
    drop("chat_template.jinja");
    drop("tokenizer_config.json");
    free(text);
    return 0;
}
