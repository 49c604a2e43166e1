/* SPDX-License-Identifier: MIT
 * template_fixture.h - chat templates over a byte-level tokenizer, a token a byte and a few added ones, whose ids are written out as text. */
#ifndef BDPO_TEMPLATE_FIXTURE_H
#define BDPO_TEMPLATE_FIXTURE_H
#include "../src/data/template.h"
#include "tokenizer_fixture.h"

extern const char TEMPLATE_ADDED[]; /* the added tokens, from id 256 on: <|endoftext|>, <|im_start|>, <|im_end|>, ... */
#define TEMPLATE_CONFIG "{\"bos_token\": \"<|begin_of_text|>\", \"eos_token\": \"<|endoftext|>\"}"

/* With this tokenizer_config.json in dir. */
struct tokenizer *template_fixture_tokenizer(const char *dir, const char *config);
/* Write dir/chat_template.jinja and open it. */
struct chat_template *template_fixture_open(const struct tokenizer *t, const char *dir, const char *jinja, const char *name,
                                            const char *system);
/* Bytes as they are, added tokens as {end}, {start}, {stop}, {bos}, {head}, {/head}, {eot}, {think}, {/think}; borrowed until the next call. */
const char *template_fixture_shown(const struct ids *v);
/* The conversation's ids are these. */
void template_fixture_expect(const struct chat_template *c, const struct message *msg, int64_t n, bool generation, const char *want);

#define MSG(r, c)           \
    (struct message)        \
    {                       \
        r, c, sizeof(c) - 1 \
    }
#define CHAT(...)                            \
    (const struct message[]){ __VA_ARGS__ }, \
        (int64_t)COUNT_OF(((const struct message[]){ __VA_ARGS__ }))
#endif
