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

static int open_regex(struct loader *l, const char *at, struct regex **regex, const char *pattern)
{
    const int rc = regex_open(regex, pattern);
    return rc == ERR_INPUT ? json_err(rc, l->d, at, "%s", err_msg()) : rc;
}

/* pattern: {"String": text}, or {"Regex": text}, for which *regex is opened and *text is NULL. regex NULL: there may be none. */
static int load_pattern(struct loader *l, const json_t *o, const char *at, const char **text,
                        struct regex **regex)
{
    char where[AT_MAX + 16];
    const json_t *p = json_object_get(o, "pattern");
    const bool is_regex = json_object_get(p, "Regex") != NULL;
    *text = NULL;
    snprintf(where, sizeof where, "%s/pattern", at);
    if (is_regex && !regex) return unsupported(l, where, "Replace with the pattern", "Regex");
    TRY(member_text(text, l->d, p, where, is_regex ? "Regex" : "String"));
    if (**text == 0) return json_err(ERR_INPUT, l->d, where, "an empty pattern");
    if (!is_regex) return 0;
    TRY(open_regex(l, where, regex, *text));
    *text = NULL;
    return 0;
}

static int load_replace(struct loader *l, const json_t *o, const char *at, struct norm_step *n)
{
    const char *from, *to;
    CHECK_KEYS(l, o, at, "Replace's key", "type", "pattern", "content");
    TRY(load_pattern(l, o, at, &from, &n->regex));
    if (n->regex && regex_matches_empty(n->regex))
        return json_err(ERR_INPUT, l->d, at,
                        "Replace with a regular expression that matches nothing is not supported");
    if (from) TRY(mem_strdup(&n->from, from));
    n->from_len = from ? strlen(from) : 0;
    TRY(member_text(&to, l->d, o, at, "content"));
    n->to_len = strlen(to);
    return mem_strdup(&n->to, to);
}

static int load_charsmap(struct loader *l, const json_t *o, const char *at, struct norm_step *n)
{
    const char *base64;
    CHECK_KEYS(l, o, at, "Precompiled's key", "type", "precompiled_charsmap");
    TRY(member_text(&base64, l->d, o, at, "precompiled_charsmap"));
    const int rc = charsmap_open(&n->charsmap, base64);
    return rc == ERR_INPUT ? json_err(rc, l->d, at, "%s", err_msg()) : rc;
}

static int load_norm(struct loader *l, const json_t *o, const char *at)
{
    static const struct {
        const char *type;
        enum norm_kind kind;
        enum text_form form;
    } plain[] = {
        { "NFC", NORM_FORM, TEXT_NFC },        { "NFD", NORM_FORM, TEXT_NFD },
        { "NFKC", NORM_FORM, TEXT_NFKC },      { "NFKD", NORM_FORM, TEXT_NFKD },
        { "Lowercase", NORM_LOWER, TEXT_NFC }, { "StripAccents", NORM_ACCENTS, TEXT_NFC }
    };
    struct tokenizer *t = l->t;
    const char *type, *to;
    TRY(type_of(l, o, at, &type));
    TRY(room(l, at, t->n_norms));
    struct norm_step *n = &t->norms[t->n_norms++];
    for (size_t i = 0; i < COUNT_OF(plain); i++) {
        if (strcmp(type, plain[i].type) != 0) continue;
        CHECK_KEYS(l, o, at, "this normalizer's key", "type");
        n->kind = plain[i].kind;
        n->form = plain[i].form;
        return 0;
    }
    if (strcmp(type, "Strip") == 0) {
        n->kind = NORM_STRIP;
        CHECK_KEYS(l, o, at, "Strip's key", "type", "strip_left", "strip_right");
        TRY(member_bool(&n->left, l->d, o, at, "strip_left", true));
        return member_bool(&n->right, l->d, o, at, "strip_right", true);
    }
    if (strcmp(type, "Prepend") == 0) {
        n->kind = NORM_PREPEND;
        CHECK_KEYS(l, o, at, "Prepend's key", "type", "prepend");
        TRY(member_text(&to, l->d, o, at, "prepend"));
        n->to_len = strlen(to);
        return mem_strdup(&n->to, to);
    }
    if (strcmp(type, "Precompiled") == 0) {
        n->kind = NORM_CHARSMAP;
        return load_charsmap(l, o, at, n);
    }
    if (strcmp(type, "Replace") != 0) return unsupported(l, at, "normalizer", type);
    n->kind = NORM_REPLACE;
    return load_replace(l, o, at, n);
}

static int load_behavior(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    static const char *const names[] = {
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_WITH_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *behavior;
    size_t i = 0;
    TRY(member_text(&behavior, l->d, o, at, "behavior"));
    while (i < COUNT_OF(names) && strcmp(behavior, names[i]) != 0)
        i++;
    if (i == COUNT_OF(names)) return unsupported(l, at, "Split's behavior", behavior);
    p->behavior = (enum split_behavior)i;
    return 0;
}

static int load_split(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    const char *literal;
    CHECK_KEYS(l, o, at, "Split's key", "type", "pattern", "behavior", "invert");
    TRY(load_behavior(l, o, at, p));
    TRY(member_bool(&p->invert, l->d, o, at, "invert", false));
    TRY(load_pattern(l, o, at, &literal, &p->regex));
    return literal ? mem_strdup(&p->literal, literal) : 0;
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
    return use_regex ? open_regex(l, at, &p->regex, GPT2_PATTERN) : 0;
}

/* Whole pre-tokenizers that cut by a class of characters, in one or two steps. */
static int load_classes(struct loader *l, const json_t *o, const char *at, const char *type,
                        bool *known)
{
    static const struct {
        const char *type;
        struct {
            bool (*test)(uint32_t);
            enum split_behavior behavior;
        } step[2];
    } table[] = {
        { "WhitespaceSplit", { { cp_is_space, SPLIT_REMOVED } } },
        { "Whitespace", { { cp_is_space, SPLIT_REMOVED }, { cp_is_word, SPLIT_CONTIGUOUS } } },
        { "BertPreTokenizer",
          { { cp_is_space, SPLIT_REMOVED }, { cp_is_punctuation, SPLIT_ISOLATED } } },
    };
    struct tokenizer *t = l->t;
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        if (strcmp(type, table[i].type) != 0) continue;
        *known = true;
        CHECK_KEYS(l, o, at, "this pre-tokenizer's key", "type");
        for (int k = 0; k < 2 && table[i].step[k].test; k++) {
            TRY(room(l, at, t->n_pretoks));
            t->pretoks[t->n_pretoks++] =
                (struct pretok_step){ .kind = PRETOK_SPLIT,
                                      .test = table[i].step[k].test,
                                      .behavior = table[i].step[k].behavior };
        }
    }
    return 0;
}

static int load_digits(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    bool each;
    CHECK_KEYS(l, o, at, "Digits' key", "type", "individual_digits");
    TRY(member_bool(&each, l->d, o, at, "individual_digits", false));
    return open_regex(l, at, &p->regex, each ? "\\p{N}" : "\\p{N}+");
}

static int load_delimiter(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    const char *text;
    uint32_t cp;
    CHECK_KEYS(l, o, at, "CharDelimiterSplit's key", "type", "delimiter");
    TRY(member_text(&text, l->d, o, at, "delimiter"));
    if (*text == 0 || (size_t)utf8_step(text, strlen(text), &cp) != strlen(text))
        return json_err(ERR_INPUT, l->d, at, "CharDelimiterSplit's delimiter is not one character");
    p->behavior = SPLIT_REMOVED;
    return mem_strdup(&p->literal, text);
}

static int load_punctuation(struct loader *l, const json_t *o, const char *at,
                            struct pretok_step *p)
{
    CHECK_KEYS(l, o, at, "Punctuation's key", "type", "behavior");
    p->test = cp_is_punctuation;
    return json_object_get(o, "behavior") ? load_behavior(l, o, at, p) : 0;
}

static int load_mark(struct loader *l, const json_t *o, const char *at, struct pretok_step *p)
{
    const char *mark;
    TRY(load_metaspace(l, o, at, &p->scheme, &p->split, &mark));
    memcpy(p->mark, mark, strlen(mark));
    return 0;
}

static int load_pretok(struct loader *l, const json_t *o, const char *at)
{
    static const struct {
        const char *type;
        enum pretok_kind kind;
        int (*load)(struct loader *, const json_t *, const char *, struct pretok_step *);
    } table[] = { { "Split", PRETOK_SPLIT, load_split },
                  { "Digits", PRETOK_SPLIT, load_digits },
                  { "Punctuation", PRETOK_SPLIT, load_punctuation },
                  { "CharDelimiterSplit", PRETOK_SPLIT, load_delimiter },
                  { "ByteLevel", PRETOK_BYTE_LEVEL, load_byte_level },
                  { "Metaspace", PRETOK_METASPACE, load_mark } };
    struct tokenizer *t = l->t;
    const char *type;
    bool known = false;
    TRY(type_of(l, o, at, &type));
    TRY(room(l, at, t->n_pretoks));
    if (t->byte_level)
        return json_err(ERR_INPUT, l->d, at, "a pre-tokenizer after ByteLevel is not supported");
    TRY(load_classes(l, o, at, type, &known));
    if (known) return 0;
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        if (strcmp(type, table[i].type) != 0) continue;
        t->pretoks[t->n_pretoks].kind = table[i].kind;
        return table[i].load(l, o, at, &t->pretoks[t->n_pretoks++]);
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
        TRY(load_pattern(l, o, at, &from, NULL));
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

static int load_unigram(struct loader *l, const json_t *m)
{
    struct tokenizer *t = l->t;
    const json_t *unk = json_object_get(m, "unk_id");
    CHECK_KEYS(l, m, "/model", "model key", "type", "unk_id", "byte_fallback", "vocab");
    TRY(member_bool(&t->byte_fallback, l->d, m, "/model", "byte_fallback", false));
    t->is_unigram = true;
    t->unk = -1;
    if (unk && !json_is_null(unk)) {
        const size_t n = json_array_size(json_object_get(m, "vocab"));
        const json_int_t id = json_is_integer(unk) ? json_integer_value(unk) : -1;
        if (id < 0 || id >= (json_int_t)n)
            return json_err(ERR_INPUT, l->d, "/model/unk_id",
                            "unk_id is not the place of a token in model.vocab");
        t->unk = (int32_t)id;
    }
    TRY(tokenizer_load_vocab(t, l->d));
    return unigram_index(t);
}

static int load_model(struct loader *l)
{
    struct tokenizer *t = l->t;
    const json_t *m = json_object_get(l->d->root, "model"), *unk;
    const char *type = "BPE"; /* files of early versions leave it out */
    if (!json_is_object(m)) return json_err(ERR_INPUT, l->d, "/model", "model is not there");
    if (json_object_get(m, "type")) TRY(member_text(&type, l->d, m, "/model", "type"));
    if (strcmp(type, "Unigram") == 0) return load_unigram(l, m);
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
    if (t->n_decodes == 0 && t->byte_level)
        return json_err(ERR_INPUT, l->d, "/decoder",
                        "a ByteLevel pre_tokenizer without a decoder is not supported");
    if (t->is_unigram && t->byte_level)
        return json_err(ERR_INPUT, l->d, "/pre_tokenizer",
                        "ByteLevel before a Unigram model is not supported");
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
