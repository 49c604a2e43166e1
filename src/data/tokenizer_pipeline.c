/* SPDX-License-Identifier: MIT */
#include "tokenizer_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GPT-2's own pattern, which ByteLevel brings along with use_regex. */
static const char GPT2_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum { AT_MAX = 160 };
struct loader {
    struct tokenizer *t;
    const struct json_doc *d;
};

static int unsupported(const struct loader *l, const char *at, const char *what, const char *name)
{
    char shown[80];
    return json_err(ERR_INPUT, l->d, at, "%s \"%s\" is not supported", what,
                    err_quote(shown, sizeof shown, name, strlen(name)));
}

/* Keys that a component may have; another one may change what it does. */
static int check_keys(const struct loader *l, const json_t *o, const char *at,
                      const char *const *known, size_t n, const char *what)
{
    const char *key;
    json_t *v, *object;
    memcpy(&object, &o, sizeof object); /* jansson's iterator takes no const */
    json_object_foreach(object, key, v)
    {
        bool ok = false;
        for (size_t i = 0; i < n; i++)
            ok = ok || strcmp(key, known[i]) == 0;
        if (!ok) return unsupported(l, at, what, key);
    }
    return 0;
}
#define CHECK_KEYS(l, o, at, what, ...)                          \
    do {                                                         \
        static const char *const keys_[] = { __VA_ARGS__ };      \
        TRY(check_keys(l, o, at, keys_, COUNT_OF(keys_), what)); \
    } while (0)

static int type_of(const struct loader *l, const json_t *o, const char *at, const char **type)
{
    if (!json_is_object(o)) return json_err(ERR_INPUT, l->d, at, "is not an object with a type");
    return member_text(type, l->d, o, at, "type");
}

typedef int load_one(struct loader *l, const json_t *o, const char *at);

/* A Sequence's list, or the component itself. */
static int load_each(struct loader *l, const json_t *o, const char *at, const char *list,
                     load_one *one)
{
    const char *type;
    char where[AT_MAX];
    if (!o || json_is_null(o)) return 0;
    TRY(type_of(l, o, at, &type));
    if (strcmp(type, "Sequence") != 0) return one(l, o, at);
    const json_t *v = json_object_get(o, list);
    if (!json_is_array(v))
        return json_err(ERR_INPUT, l->d, at, "a Sequence without its list \"%s\"", list);
    for (size_t i = 0; i < json_array_size(v); i++) {
        snprintf(where, sizeof where, "%s/%s/%zu", at, list, i);
        TRY(one(l, json_array_get(v, i), where));
    }
    return 0;
}

static int room(const struct loader *l, const char *at, int32_t n)
{
    if (n < STEPS_MAX) return 0;
    return json_err(ERR_INPUT, l->d, at, "more than %d steps", STEPS_MAX);
}

/* pattern: {"String": text} */
static int literal_pattern(struct loader *l, const json_t *o, const char *at, const char **text)
{
    char where[AT_MAX + 16];
    const json_t *p = json_object_get(o, "pattern");
    snprintf(where, sizeof where, "%s/pattern", at);
    if (json_object_get(p, "Regex"))
        return unsupported(l, where, "Replace with the pattern", "Regex");
    TRY(member_text(text, l->d, p, where, "String"));
    if (**text == 0) return json_err(ERR_INPUT, l->d, where, "an empty pattern");
    return 0;
}

static int load_norm(struct loader *l, const json_t *o, const char *at)
{
    struct tokenizer *t = l->t;
    const char *type, *from, *to;
    TRY(type_of(l, o, at, &type));
    TRY(room(l, at, t->n_norms));
    struct norm_step *n = &t->norms[t->n_norms];
    if (strcmp(type, "NFC") == 0) {
        n->kind = NORM_NFC;
    } else if (strcmp(type, "Prepend") == 0) {
        n->kind = NORM_PREPEND;
        TRY(member_text(&to, l->d, o, at, "prepend"));
        TRY(mem_strdup(&n->to, to));
        n->to_len = strlen(to);
    } else if (strcmp(type, "Replace") == 0) {
        n->kind = NORM_REPLACE;
        TRY(literal_pattern(l, o, at, &from));
        TRY(member_text(&to, l->d, o, at, "content"));
        TRY(mem_strdup(&n->from, from));
        n->from_len = strlen(from);
        t->n_norms++; /* counted, so that a failure below frees it */
        TRY(mem_strdup(&n->to, to));
        n->to_len = strlen(to);
        return 0;
    } else {
        return unsupported(l, at, "normalizer", type);
    }
    t->n_norms++;
    return 0;
}

static int open_regex(struct loader *l, const char *at, struct pretok_step *p, const char *pattern)
{
    const int rc = regex_open(&p->regex, pattern);
    char why[512];
    if (rc != ERR_INPUT) return rc;
    snprintf(why, sizeof why, "%s", err_msg());
    return json_err(rc, l->d, at, "%s", why);
}

static int load_split(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    static const char *const names[] = {
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_WITH_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *behavior, *pattern;
    const json_t *how = json_object_get(o, "pattern");
    char where[AT_MAX + 16];
    size_t i = 0;
    CHECK_KEYS(l, o, at, "Split's key", "type", "pattern", "behavior", "invert");
    TRY(member_text(&behavior, l->d, o, at, "behavior"));
    TRY(member_bool(&p->invert, l->d, o, at, "invert", false));
    while (i < COUNT_OF(names) && strcmp(behavior, names[i]) != 0)
        i++;
    if (i == COUNT_OF(names)) return unsupported(l, at, "Split's behavior", behavior);
    p->behavior = (enum split_behavior)i;
    snprintf(where, sizeof where, "%s/pattern", at);
    if (json_object_get(how, "String")) {
        TRY(member_text(&pattern, l->d, how, where, "String"));
        if (*pattern == 0) return json_err(ERR_INPUT, l->d, where, "an empty pattern");
        return mem_strdup(&p->literal, pattern);
    }
    TRY(member_text(&pattern, l->d, how, where, "Regex"));
    return open_regex(l, where, p, pattern);
}

static int load_metaspace(struct loader *l, const json_t *o, const char *at,
                          enum metaspace_scheme *scheme, bool *split, const char **mark)
{
    const json_t *s = json_object_get(o, "prepend_scheme");
    const char *name = "always";
    bool add;
    uint32_t cp;
    CHECK_KEYS(l, o, at, "Metaspace's key", "type", "replacement", "str_rep", "add_prefix_space",
               "prepend_scheme", "split");
    TRY(member_text(mark, l->d, o, at, "replacement"));
    if (**mark == 0 || (size_t)utf8_step(*mark, strlen(*mark), &cp) != strlen(*mark))
        return json_err(ERR_INPUT, l->d, at, "Metaspace's replacement is not one character");
    TRY(member_bool(&add, l->d, o, at, "add_prefix_space", true));
    TRY(member_bool(split, l->d, o, at, "split", true));
    if (s && !json_is_null(s)) TRY(member_text(&name, l->d, o, at, "prepend_scheme"));
    if (strcmp(name, "always") == 0)
        *scheme = METASPACE_ALWAYS;
    else if (strcmp(name, "first") == 0)
        *scheme = METASPACE_FIRST;
    else if (strcmp(name, "never") == 0)
        *scheme = METASPACE_NEVER;
    else
        return unsupported(l, at, "Metaspace's prepend_scheme", name);
    if (!add) {
        if (s && *scheme != METASPACE_NEVER)
            return json_err(
                ERR_INPUT, l->d, at,
                "Metaspace's add_prefix_space and prepend_scheme contradict each other");
        *scheme = METASPACE_NEVER;
    }
    return 0;
}

static int load_byte_level(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    bool use_regex;
    CHECK_KEYS(l, o, at, "ByteLevel's key", "type", "add_prefix_space", "trim_offsets",
               "use_regex");
    TRY(member_bool(&p->add_prefix_space, l->d, o, at, "add_prefix_space", true));
    TRY(member_bool(&use_regex, l->d, o, at, "use_regex", true));
    l->t->byte_level = true;
    return use_regex ? open_regex(l, at, p, GPT2_PATTERN) : 0;
}

static int load_pretok(struct loader *l, const json_t *o, const char *at)
{
    struct tokenizer *t = l->t;
    const char *type, *mark;
    TRY(type_of(l, o, at, &type));
    TRY(room(l, at, t->n_pretoks));
    if (t->byte_level)
        return json_err(ERR_INPUT, l->d, at, "a pre-tokenizer after ByteLevel is not supported");
    struct pretok_step *p = &t->pretoks[t->n_pretoks++];
    if (strcmp(type, "Split") == 0) {
        p->kind = PRETOK_SPLIT;
        return load_split(l, o, at, p);
    }
    if (strcmp(type, "Digits") == 0) {
        bool each;
        p->kind = PRETOK_SPLIT;
        TRY(member_bool(&each, l->d, o, at, "individual_digits", false));
        return open_regex(l, at, p, each ? "\\p{N}" : "\\p{N}+");
    }
    if (strcmp(type, "ByteLevel") == 0) {
        p->kind = PRETOK_BYTE_LEVEL;
        return load_byte_level(l, o, at, p);
    }
    if (strcmp(type, "Metaspace") == 0) {
        p->kind = PRETOK_METASPACE;
        TRY(load_metaspace(l, o, at, &p->scheme, &p->split, &mark));
        memcpy(p->mark, mark, strlen(mark));
        return 0;
    }
    return unsupported(l, at, "pre_tokenizer", type);
}

static int load_strip(struct loader *l, const json_t *o, const char *at, struct decode_step *p)
{
    const char *text;
    const json_t *a = json_object_get(o, "start"), *b = json_object_get(o, "stop");
    TRY(member_text(&text, l->d, o, at, "content"));
    if (!json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 0 ||
        json_integer_value(b) < 0)
        return json_err(ERR_INPUT, l->d, at, "Strip's start and stop are not counts");
    p->start = json_integer_value(a);
    p->stop = json_integer_value(b);
    uint32_t cp;
    if (*text == 0 || (size_t)utf8_step(text, strlen(text), &cp) != strlen(text))
        return json_err(ERR_INPUT, l->d, at, "Strip's content is not one character");
    return mem_strdup(&p->from, text);
}

static int load_decode(struct loader *l, const json_t *o, const char *at)
{
    struct tokenizer *t = l->t;
    const char *type, *from, *to;
    TRY(type_of(l, o, at, &type));
    TRY(room(l, at, t->n_decodes));
    struct decode_step *p = &t->decodes[t->n_decodes++];
    if (strcmp(type, "ByteLevel") == 0) {
        p->kind = DECODE_BYTE_LEVEL;
        return 0;
    }
    if (strcmp(type, "ByteFallback") == 0) {
        p->kind = DECODE_BYTE_FALLBACK;
        return 0;
    }
    if (strcmp(type, "Fuse") == 0) {
        p->kind = DECODE_FUSE;
        return 0;
    }
    if (strcmp(type, "Replace") == 0) {
        p->kind = DECODE_REPLACE;
        TRY(literal_pattern(l, o, at, &from));
        TRY(member_text(&to, l->d, o, at, "content"));
        TRY(mem_strdup(&p->from, from));
        return mem_strdup(&p->to, to);
    }
    if (strcmp(type, "Strip") == 0) {
        p->kind = DECODE_STRIP;
        return load_strip(l, o, at, p);
    }
    if (strcmp(type, "Metaspace") == 0) {
        enum metaspace_scheme scheme;
        bool split;
        p->kind = DECODE_METASPACE;
        TRY(load_metaspace(l, o, at, &scheme, &split, &from));
        p->keep_first = scheme == METASPACE_NEVER;
        return mem_strdup(&p->from, from);
    }
    return unsupported(l, at, "decoder", type);
}

/* The character of each byte, or with byte fallback the token <0xNN>, two upper-case hexadecimal digits
 * and nothing else. */
static void load_bytes(struct tokenizer *t)
{
    char s[8];
    for (int b = 0; b < 256; b++) {
        size_t n = 6;
        if (t->byte_level)
            n = (size_t)utf8_put(s, byte_level_char((uint8_t)b));
        else
            snprintf(s, sizeof s, "<0x%02X>", (unsigned)b);
        const int32_t id = vocab_find(t, s, n);
        t->byte_id[b] = id >= 0 && t->tok[id].in_vocab ? id : -1;
    }
}

static int empty_or_refused(struct loader *l, const json_t *m, const char *key)
{
    char at[64];
    const json_t *v = json_object_get(m, key);
    snprintf(at, sizeof at, "/model/%s", key);
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0)) return 0;
    if (json_is_number(v) && json_number_value(v) == 0) return 0; /* dropout */
    return json_err(ERR_INPUT, l->d, at, "model.%s is not supported", key);
}

static int load_model(struct loader *l)
{
    struct tokenizer *t = l->t;
    const json_t *m = json_object_get(l->d->root, "model"), *unk;
    const char *type = "BPE"; /* files of early versions leave it out */
    if (!json_is_object(m)) return json_err(ERR_INPUT, l->d, "/model", "model is not there");
    if (json_object_get(m, "type")) TRY(member_text(&type, l->d, m, "/model", "type"));
    if (strcmp(type, "BPE") != 0) return unsupported(l, "/model/type", "model", type);
    CHECK_KEYS(l, m, "/model", "model key", "type", "dropout", "unk_token",
               "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
               "ignore_merges", "vocab", "merges");
    TRY(empty_or_refused(l, m, "dropout"));
    TRY(empty_or_refused(l, m, "continuing_subword_prefix"));
    TRY(empty_or_refused(l, m, "end_of_word_suffix"));
    TRY(member_bool(&t->fuse_unk, l->d, m, "/model", "fuse_unk", false));
    TRY(member_bool(&t->byte_fallback, l->d, m, "/model", "byte_fallback", false));
    TRY(member_bool(&t->ignore_merges, l->d, m, "/model", "ignore_merges", false));
    TRY(tokenizer_load_vocab(t, l->d));
    TRY(tokenizer_load_merges(t, l->d));
    t->unk = -1;
    unk = json_object_get(m, "unk_token");
    if (unk && !json_is_null(unk)) {
        const char *s;
        TRY(member_text(&s, l->d, m, "/model", "unk_token"));
        t->unk = vocab_find(t, s, strlen(s));
        if (t->unk < 0 || !t->tok[t->unk].in_vocab)
            return json_err(ERR_INPUT, l->d, "/model/unk_token", "unk_token is not in model.vocab");
    }
    return 0;
}

/* A byte-level vocabulary is read back as bytes, another one is not. */
static int check_decoder(const struct loader *l)
{
    const struct tokenizer *t = l->t;
    bool bytes = false;
    for (int32_t i = 0; i < t->n_decodes; i++)
        bytes = bytes || t->decodes[i].kind == DECODE_BYTE_LEVEL;
    if (t->n_decodes == 0)
        return json_err(ERR_INPUT, l->d, "/decoder",
                        "a tokenizer without a decoder is not supported");
    if (bytes != t->byte_level)
        return json_err(ERR_INPUT, l->d, "/decoder",
                        "the decoder does not go with the pre_tokenizer: ByteLevel in "
                        "one of them only");
    if (t->byte_level && t->byte_fallback)
        return json_err(ERR_INPUT, l->d, "/model/byte_fallback",
                        "byte_fallback beside ByteLevel is not supported");
    return 0;
}

int tokenizer_load_pipeline(struct tokenizer *t, const struct json_doc *d)
{
    struct loader l = { t, d };
    TRY(load_model(&l));
    TRY(load_each(&l, json_object_get(d->root, "normalizer"), "/normalizer", "normalizers",
                  load_norm));
    TRY(load_each(&l, json_object_get(d->root, "pre_tokenizer"), "/pre_tokenizer", "pretokenizers",
                  load_pretok));
    TRY(load_each(&l, json_object_get(d->root, "decoder"), "/decoder", "decoders", load_decode));
    TRY(check_decoder(&l));
    load_bytes(t);
    return tokenizer_index_added(t);
}
