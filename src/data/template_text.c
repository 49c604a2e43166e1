/* SPDX-License-Identifier: MIT */
#include "template_impl.h"
#include "../io/file.h"
#include "../io/json.h"
#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

/* The text of tokenizer_config.json's chat_template: a string, or the one named "default" of a list. */
static int from_config(char **out, const char *path)
{
    struct json_doc d = { 0 };
    const json_t *v, *name;
    int rc = 0;
    TRY_OUT(json_doc_read(&d, path));
    v = json_object_get(d.root, "chat_template");
    if (json_is_array(v)) {
        const json_t *list = v;
        v = NULL;
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *o = json_array_get(list, i);
            name = json_object_get(o, "name");
            if (name && json_is_string(name) && !strcmp(json_string_value(name), "default"))
                v = json_object_get(o, "template");
        }
        if (!v)
            TRY_OUT(json_err(ERR_INPUT, &d, "/chat_template",
                             "chat_template: no template is named \"default\""));
    }
    if (v && !json_is_null(v)) {
        if (!json_is_string(v))
            TRY_OUT(json_err(ERR_INPUT, &d, "/chat_template", "chat_template is not a string"));
        TRY_OUT(mem_strdup(out, json_string_value(v)));
    }
out:
    json_doc_release(&d);
    return rc;
}

int template_text_read(char **out, char **path, const char *dir)
{
    size_t len;
    *out = *path = NULL;
    TRY(path_join(path, dir, "chat_template.jinja"));
    if (file_exists(*path)) return file_read(out, &len, *path, TEMPLATE_BYTES_MAX);
    free(*path);
    TRY(path_join(path, dir, "tokenizer_config.json"));
    return file_exists(*path) ? from_config(out, *path) : 0;
}

/* Copy a string literal's text from s to its closing quote (or `stop` before it), escapes resolved. quote 0: plain template text,
 * which ends where code begins. Returns what follows, NULL where the literal ends before `stop`. */
static int read_literal(struct buf *out, const char *s, char quote, const char *stop,
                        const char **rest)
{
    *rest = NULL;
    for (; *s; s++) {
        char c = *s;
        if (stop && strncmp(s, stop, strlen(stop)) == 0) {
            *rest = s;
            return 0;
        }
        if (quote ? c == quote : c == '{' && (s[1] == '{' || s[1] == '%' || s[1] == '#')) break;
        if (quote && c == '\\' && s[1]) {
            c = *++s;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        TRY(buf_add(out, &c, 1));
    }
    if (!stop) *rest = s;
    return 0;
}

/* The quote that a literal starting at s stands in, 0: none. */
static char quote_before(const char *text, const char *s)
{
    return s > text && (s[-1] == '\'' || s[-1] == '"') ? s[-1] : 0;
}

/* Past a line feed, written as such or as \n; NULL: there is none. */
static const char *past_newline(const char *s)
{
    if (*s == '\n') return s + 1;
    return s[0] == '\\' && s[1] == 'n' ? s + 2 : NULL;
}

static int keep_default(struct template_style *t, const struct buf *found, const char *path)
{
    if (t->default_system && strcmp(t->default_system, found->data) != 0)
        return err_at(ERR_INPUT, path, 0, 0,
                      "the chat template has two default system prompts; set data.chat_template to "
                      "\"chatml\" and "
                      "data.system_prompt to the one you want");
    return t->default_system ? 0 : mem_strdup(&t->default_system, found->data);
}

/* '<|im_start|>system\nTEXT<|im_end|>' as one literal: what the template says without a system message. A template may also
 * set system_message to a literal first. */
static int find_default_system(struct template_style *t, const char *text, const char *path)
{
    static const char head[] = "<|im_start|>system", set[] = "set system_message = ";
    struct buf b = { 0 };
    int rc = 0;
    for (const char *s = text; (s = strstr(s, head)); s += sizeof head - 1) {
        const char *body = past_newline(s + sizeof head - 1), *rest;
        buf_clear(&b);
        TRY_OUT(buf_adds(&b, ""));
        if (!body) continue;
        TRY_OUT(read_literal(&b, body, quote_before(text, s), "<|im_end|>", &rest));
        if (rest && b.len) TRY_OUT(keep_default(t, &b, path));
    }
    for (const char *s = text; !t->default_system && (s = strstr(s, set)); s += sizeof set - 1) {
        const char *q = s + sizeof set - 1, *rest;
        buf_clear(&b);
        TRY_OUT(buf_adds(&b, ""));
        if (*q != '\'' && *q != '"') continue;
        TRY_OUT(read_literal(&b, q + 1, *q, NULL, &rest));
        if (b.len) TRY_OUT(keep_default(t, &b, path));
    }
out:
    buf_release(&b);
    return rc;
}

/* What stands after the assistant's header in the generation prompt ("<think>\n" of models that always think). */
static int find_generation(struct template_style *t, const char *text)
{
    static const char head[] = "<|im_start|>assistant";
    const char *s = text, *last = NULL, *rest;
    struct buf b = { 0 };
    int rc = 0;
    while ((s = strstr(s, "add_generation_prompt")))
        last = s++;
    s = last ? strstr(last, head) : NULL;
    const char *body = s ? past_newline(s + sizeof head - 1) : NULL;
    if (!body) return 0;
    TRY_OUT(buf_adds(&b, ""));
    TRY_OUT(read_literal(&b, body, quote_before(text, s), NULL, &rest));
    if (quote_before(text, s) && b.len) TRY_OUT(mem_strdup(&t->generation, b.data));
out:
    buf_release(&b);
    return rc;
}

/* The system block that Llama 3.1 and later open with. The date is the template's own constant, not today's, so that the same
 * data gives the same tokens on any day. */
static int find_dates(struct template_style *t, const char *text)
{
    static const char cut[] = "Cutting Knowledge Date: ", today[] = "Today Date: ",
                      date[] = "date_string = ";
    const char *c = strstr(text, cut), *d = strstr(text, today), *s, *rest;
    struct buf b = { 0 };
    int rc = 0;
    if (!c || !d) return 0;
    TRY_OUT(buf_adds(&b, cut));
    for (s = c + sizeof cut - 1; *s && *s != '\\' && *s != '\'' && *s != '"' && *s != '\n'; s++)
        TRY_OUT(buf_add(&b, s, 1));
    TRY_OUT(buf_adds(&b, "\nToday Date: "));
    d += sizeof today - 1;
    if (*d == '"' || *d == '\'') {
        for (s = text;
             (s = strstr(s, date)) && s[sizeof date - 1] != '"' && s[sizeof date - 1] != '\'';)
            s++;
        if (s) TRY_OUT(read_literal(&b, s + sizeof date, s[sizeof date - 1], NULL, &rest));
    } else {
        for (; *d && *d != '\\' && *d != '\'' && *d != '"' && *d != '\n'; d++)
            TRY_OUT(buf_add(&b, d, 1));
    }
    TRY_OUT(buf_adds(&b, "\n\n"));
    TRY_OUT(mem_strdup(&t->system_head, b.data));
out:
    buf_release(&b);
    return rc;
}

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

static int style_chatml(struct template_style *t, const char *text, const char *path)
{
    t->kind = TEMPLATE_CHATML;
    t->trim = has(text, "| trim") || has(text, "|trim");
    t->drops_thinking = has(text, "split('</think>')[-1]");
    t->keeps_last_thinking = has(text, "last_query_index");
    TRY(find_default_system(t, text, path));
    return find_generation(t, text);
}

/* Gemma's, which calls the assistant "model" and, from the third on, puts a system message before the first question. */
static int style_gemma(struct template_style *t, const char *text)
{
    t->kind = TEMPLATE_PIECES;
    t->alternates = true;
    t->trims[ROLE_USER] = t->trims[ROLE_ASSISTANT] = true;
    if (has(text, "first_user_prefix")) {
        t->system_place = SYSTEM_FIRST_QUESTION;
        TRY(mem_strdup(&t->system_joint, "\n\n"));
    }
    TRY(mem_strdup(&t->before[ROLE_USER], "<start_of_turn>user\n"));
    TRY(mem_strdup(&t->before[ROLE_ASSISTANT], "<start_of_turn>model\n"));
    TRY(mem_strdup(&t->generation, "<start_of_turn>model\n"));
    TRY(mem_strdup(&t->after[ROLE_USER], "<end_of_turn>\n"));
    return mem_strdup(&t->after[ROLE_ASSISTANT], "<end_of_turn>\n");
}

static int not_recognised(const char *path, const char *stopped)
{
    char shown[80];
    struct buf b = { 0 };
    int rc = buf_adds(&b, "");
    if (rc == 0 && stopped)
        rc = buf_addf(&b, "\"%s\" in it is not understood, and ",
                      err_quote(shown, sizeof shown, stopped, strlen(stopped)));
    if (rc == 0)
        rc =
            err_at(ERR_INPUT, path, 0, 0,
                   "the chat template is not recognised: %sit is none of ChatML, Llama 3, Llama 2, "
                   "Zephyr, Alpaca, Mistral and Gemma; set data.chat_template to \"raw\" or to its "
                   "pieces, such as " TEMPLATE_EXAMPLE,
                   b.data);
    buf_release(&b);
    return rc;
}

static bool is_gemma(const char *text)
{
    return has(text, "<start_of_turn>") && has(text, "<end_of_turn>") && has(text, "model") &&
           has(text, "trim");
}

/* A template that is read as it stands, or Mistral's with its tools. */
static int style_pieces(struct template_style *t, const char *text, const char *path,
                        const struct tokenizer *tok)
{
    char *stopped = NULL;
    const bool bos = t->bos;
    int rc = template_branches_read(t, text, tok, &stopped);
    if (rc == 0) {
        template_style_release(t);
        t->bos = bos;
        if (is_gemma(text)) {
            rc = style_gemma(t, text);
            if (rc == 0) rc = 1;
        } else if (has(text, "[INST]") && !has(text, "<<SYS>>") && !has(text, "[SYSTEM_PROMPT]")) {
            rc = template_inst_read(t, text, tok);
        }
    }
    if (rc == 1) rc = template_pieces_end(t, tok) < 0 ? err_note(ERR_INPUT, "%s", path) : 1;
    if (rc == 0) rc = not_recognised(path, stopped);
    free(stopped);
    return MIN(rc, 0);
}

int template_style_read(struct template_style *t, const char *text, const char *path,
                        const struct tokenizer *tok)
{
    t->bos = has(text, "bos_token");
    if (has(text, "<|im_start|>") && !has(text, "<|im_sep|>")) return style_chatml(t, text, path);
    if (has(text, "<|start_header_id|>")) {
        t->kind = TEMPLATE_LLAMA3;
        t->trim = has(text, "trim");
        return find_dates(t, text);
    }
    if (has(text, "[INST]") && has(text, "<<SYS>>") && has(text, "eos_token")) {
        t->kind = TEMPLATE_LLAMA2;
        t->trim = true;
        return 0;
    }
    if (has(text, "<|user|>") && has(text, "<|assistant|>") && has(text, "<|system|>") &&
        has(text, "eos_token") && !has(text, "<|end|>")) {
        t->kind = TEMPLATE_ZEPHYR;
        return 0;
    }
    if (has(text, "### Instruction:") && has(text, "### Response:") && has(text, "eos_token") &&
        has(text, "Below is an instruction that describes a task. Write a response that "
                  "appropriately completes the request.")) {
        t->kind = TEMPLATE_ALPACA;
        return 0;
    }
    return style_pieces(t, text, path, tok);
}

void template_style_release(struct template_style *t)
{
    free(t->default_system);
    free(t->generation);
    free(t->end);
    for (int r = 0; r < ROLES; r++) {
        free(t->before[r]);
        free(t->after[r]);
    }
    free(t->system_head);
    free(t->system_joint);
    free(t->tail);
    memset(t, 0, sizeof *t);
}
