/* SPDX-License-Identifier: MIT */
#include "tokenize.h"
#include "../data/template.h"
#include "../io/file.h"
#include "../io/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The message of an error that knows no place, at the row. */
static int placed(int rc, const struct json_doc *d)
{
    return rc < 0 ? json_err(rc, d, "", "%s", err_msg()) : rc;
}

static int encode_messages(const struct json_doc *d, const struct chat_template *tmpl,
                           struct ids *out)
{
    const json_t *list = json_object_get(d->root, "messages");
    struct message *msg = NULL;
    if (!json_is_array(list) || json_array_size(list) == 0)
        return json_err(ERR_INPUT, d, "",
                        "expected a JSON string, or an object with a list of \"messages\"");
    const size_t n = json_array_size(list);
    int rc = MEM_NEW(&msg, (int64_t)n);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const json_t *m = json_array_get(list, i), *content = json_object_get(m, "content");
        msg[i].role = json_string_value(json_object_get(m, "role"));
        msg[i].content = json_string_value(content);
        msg[i].content_len = json_string_length(content);
        if (!msg[i].role || !msg[i].content)
            rc = json_err(ERR_INPUT, d, "/messages",
                          "message %zu needs the strings \"role\" and \"content\"", i + 1);
    }
    if (rc == 0)
        rc = placed(template_encode(tmpl, msg, (int64_t)n,
                                    json_is_true(json_object_get(d->root, "add_generation_prompt")),
                                    SPECIALS_AS_TEXT, out),
                    d);
    free(msg);
    return rc;
}

static int print_ids(const struct ids *v)
{
    putchar('[');
    for (int64_t i = 0; i < v->n; i++)
        printf("%s%d", i ? ", " : "", v->id[i]);
    puts("]");
    return ferror(stdout) ? err_set(ERR_IO, "cannot write to the standard output") : 0;
}

int tokenize_run(const char *dir, const char *file, const char *chat_template)
{
    struct tokenizer *tok = NULL;
    struct chat_template *tmpl = NULL;
    struct line_reader *lines = NULL;
    struct ids ids = { 0 };
    char *line;
    size_t len;
    int rc;
    TRY_OUT(tokenizer_open(&tok, dir));
    TRY_OUT(lines_open(&lines, file));
    while ((rc = lines_next(lines, &line, &len)) > 0) {
        struct json_doc d = { 0 };
        if (strspn(line, " \t") == len) continue;
        ids.n = 0;
        rc = json_doc_parse_any(&d, file, lines_number(lines), line, len);
        if (rc == 0 && json_is_string(d.root)) {
            rc = placed(tokenizer_encode(tok, json_string_value(d.root), json_string_length(d.root),
                                         SPECIALS_AS_TEXT, &ids),
                        &d);
        } else if (rc == 0) {
            if (!tmpl)
                rc = template_open(&tmpl, tok, dir, chat_template ? chat_template : "auto", NULL,
                                   NULL);
            if (rc == 0) rc = encode_messages(&d, tmpl, &ids);
        }
        if (rc == 0) rc = print_ids(&ids);
        json_doc_release(&d);
        if (rc < 0) break;
    }
    if (rc == 0 && fflush(stdout) != 0) rc = err_set(ERR_IO, "cannot write to the standard output");
out:
    ids_release(&ids);
    lines_close(lines);
    template_close(tmpl);
    tokenizer_close(tok);
    return rc;
}
