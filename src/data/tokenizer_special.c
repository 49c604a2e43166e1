/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include "../io/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What one file says about a token: nothing, that there is none, or which. */
enum said { SAID_NOTHING, SAID_NONE, SAID_ID };

static int read_token(const struct tokenizer *t, const struct json_doc *d, const char *key,
                      enum said *said, int32_t *id)
{
    char at[64], shown[80];
    const json_t *v = json_object_get(d->root, key);
    *said = SAID_NOTHING;
    if (!v) return 0;
    *said = SAID_NONE;
    if (json_is_null(v)) return 0;
    if (json_is_object(v)) v = json_object_get(v, "content");
    snprintf(at, sizeof at, "/%s", key);
    if (!v || !json_is_string(v))
        return json_err(ERR_INPUT, d, at, "%s is neither a string nor an object with \"content\"",
                        key);
    const char *s = json_string_value(v);
    *id = vocab_find(t, s, strlen(s));
    *said = SAID_ID;
    if (*id >= 0) return 0;
    return json_err(ERR_INPUT, d, at, "%s: tokenizer.json has no token \"%s\"", key,
                    err_quote(shown, sizeof shown, s, strlen(s)));
}

/* DIR/name, if it is there. */
static int read_optional(struct json_doc *d, const char *dir, const char *name)
{
    char *path;
    int rc = 0;
    TRY(path_join(&path, dir, name));
    if (file_exists(path)) rc = json_doc_read(d, path);
    free(path);
    if (rc == 0 && d->root && !json_is_object(d->root))
        return json_err(ERR_INPUT, d, "", "is not a JSON object");
    return rc;
}

/* single: [SpecialToken ..., Sequence A, ...] - the token before A. What follows A (an EOS) is added by
 * nobody here: a response ends as its template says. */
static int template_bos(struct tokenizer *t, const struct json_doc *d, const json_t *p,
                        const char *at)
{
    const json_t *single = json_object_get(p, "single"), *v, *ids;
    const char *name = NULL;
    if (!json_is_array(single))
        return json_err(ERR_INPUT, d, at, "TemplateProcessing without \"single\"");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *o = json_array_get(single, i);
        if (json_object_get(o, "Sequence")) break;
        v = json_object_get(json_object_get(o, "SpecialToken"), "id");
        if (!v || !json_is_string(v) || name)
            return json_err(
                ERR_INPUT, d, at,
                "a TemplateProcessing that is not one token and a sequence is not supported");
        name = json_string_value(v);
    }
    if (!name) return 0;
    ids = json_object_get(json_object_get(json_object_get(p, "special_tokens"), name), "ids");
    v = json_array_get(ids, 0);
    const json_int_t id =
        json_array_size(ids) == 1 && json_is_integer(v) ? json_integer_value(v) : -1;
    if (id < 0 || id >= t->size || t->tok[id].len == 0)
        return json_err(ERR_INPUT, d, at,
                        "TemplateProcessing's first token is not a token of this file");
    t->bos = (int32_t)id;
    t->adds_bos = true;
    return 0;
}

static int post_processor(struct tokenizer *t, const struct json_doc *d, const json_t *p,
                          const char *at, bool inner)
{
    const char *type;
    char where[64], shown[80];
    if (!p || json_is_null(p)) return 0;
    TRY(member_text(&type, d, p, at, "type"));
    if (strcmp(type, "ByteLevel") == 0) return 0; /* changes offsets only */
    if (strcmp(type, "TemplateProcessing") == 0) return template_bos(t, d, p, at);
    if (strcmp(type, "Sequence") != 0 || inner)
        return json_err(ERR_INPUT, d, at, "post_processor \"%s\" is not supported",
                        err_quote(shown, sizeof shown, type, strlen(type)));
    const json_t *v = json_object_get(p, "processors");
    for (size_t i = 0; i < json_array_size(v); i++) {
        snprintf(where, sizeof where, "%s/processors/%zu", at, i);
        TRY(post_processor(t, d, json_array_get(v, i), where, true));
    }
    return 0;
}

/* Neither file names an end: the one well-known name among the special tokens, if there is only one. */
static int32_t well_known_eos(const struct tokenizer *t)
{
    static const char *const names[] = { "<|endoftext|>", "</s>", "<|end_of_text|>", "<|eot_id|>",
                                         "<|im_end|>" };
    int32_t found = -1;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const int32_t id = vocab_find(t, names[i], strlen(names[i]));
        if (id < 0 || !t->tok[id].added) continue;
        if (found >= 0) return -1;
        found = id;
    }
    return found;
}

/* transformers' Llama classes put BOS first unless they are told not to; for others the post-processor says. */
static int config_adds_bos(struct tokenizer *t, const struct json_doc *c)
{
    static const char *const llama[] = { "LlamaTokenizer", "LlamaTokenizerFast",
                                         "CodeLlamaTokenizer", "CodeLlamaTokenizerFast" };
    const json_t *v = json_object_get(c->root, "add_bos_token"),
                 *name = json_object_get(c->root, "tokenizer_class");
    bool add = t->adds_bos;
    for (size_t i = 0; name && json_is_string(name) && i < COUNT_OF(llama); i++)
        if (strcmp(json_string_value(name), llama[i]) == 0 && t->bos >= 0) add = true;
    TRY(member_bool(&t->adds_bos, c, c->root, "", "add_bos_token", add));
    if (t->adds_bos && t->bos < 0)
        return json_err(ERR_INPUT, c, v ? "/add_bos_token" : "",
                        "add_bos_token is true, but there is no bos_token");
    return 0;
}

static int resolve(struct tokenizer *t, const struct json_doc *config, const struct json_doc *map)
{
    const struct json_doc *file[2] = { config, map };
    enum said bos = SAID_NOTHING, eos = SAID_NOTHING;
    int32_t bos_id = -1, eos_id = -1;
    t->eos = -1;
    for (int i = 0; i < 2; i++) {
        if (!file[i]->root) continue;
        if (bos == SAID_NOTHING) TRY(read_token(t, file[i], "bos_token", &bos, &bos_id));
        if (eos == SAID_NOTHING) TRY(read_token(t, file[i], "eos_token", &eos, &eos_id));
    }
    if (bos == SAID_ID) {
        if (t->adds_bos && t->bos != bos_id)
            return json_err(
                ERR_INPUT, config->root ? config : map, "/bos_token",
                "bos_token has the id %d, but tokenizer.json's post_processor puts %d first",
                bos_id, t->bos);
        t->bos = bos_id;
    }
    t->eos = eos == SAID_NOTHING ? well_known_eos(t) : eos_id;
    return config->root ? config_adds_bos(t, config) : 0;
}

int tokenizer_load_special(struct tokenizer *t, const struct json_doc *d, const char *dir)
{
    struct json_doc config = { 0 }, map = { 0 };
    int rc = 0;
    t->bos = -1;
    TRY_OUT(
        post_processor(t, d, json_object_get(d->root, "post_processor"), "/post_processor", false));
    TRY_OUT(read_optional(&config, dir, "tokenizer_config.json"));
    TRY_OUT(read_optional(&map, dir, "special_tokens_map.json"));
    TRY_OUT(resolve(t, &config, &map));
out:
    json_doc_release(&config);
    json_doc_release(&map);
    return rc;
}
