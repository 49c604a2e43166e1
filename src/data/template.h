/* SPDX-License-Identifier: MIT
 * template.h - chat templates as pieces (never as programs): prefix and suffix per role, default system prompt, BOS,
 * generation prompt, end-of-turn token. */
#ifndef BDPO_TEMPLATE_H
#define BDPO_TEMPLATE_H
#include "tokenizer.h"

struct message {
    const char *role, *content; /* content may hold any text */
    size_t content_len;
};
struct chat_template; /* immutable after open */

/* What data.chat_template may be instead of a name. */
#define TEMPLATE_EXAMPLE                                                                                              \
    "{\"system\": [\"<|system|>\\n\", \"</s>\\n\"], \"user\": [\"<|user|>\\n\", \"</s>\\n\"], \"assistant\": [\"<|assistant|>\\n\", " \
    "\"</s>\\n\"]}"

/* `name`: "auto" (recognised by the markers in the template text of DIR/chat_template.jinja or of tokenizer_config.json:
 * <|im_start|>: chatml, with the default system prompt where that text has one; <|start_header_id|>: llama3; <<SYS>>: llama2; <|user|>
 * with EOS: zephyr; "### Instruction:": alpaca), one of these names, "raw", or JSON text that begins with "{" and holds the pieces
 * (docs/data.md).
 * "auto" without any template text gives raw. A template text that is not recognised: ERR_INPUT naming what can be set.
 * What is read from the text: the default system prompt, whether BOS stands first, the generation prompt, trimming, Llama 3.1's
 * date block (with the template's own date), Qwen3's handling of <think>. A style that is named has none of it: no default prompt, BOS
 * where the tokenizer adds one (llama3: always). A style whose markers are not added tokens of the tokenizer: ERR_INPUT.
 * date (may be NULL): in place of the template's own in Llama 3.1's block.
 * system_prompt (may be NULL): put first where the conversation has no system message; overrides the template's default. */
int template_open(struct chat_template **out, const struct tokenizer *t, const char *dir, const char *name, const char *system_prompt,
                  const char *date);
/* Is this a JSON object with pieces? Before a tokenizer is there, which template_open asks about the end token ("data.chat_template.end", or
 * ".assistant" where that is absent). ERR_INPUT, a message that begins with "data.chat_template.KEY: ". */
int template_pieces_check(const char *json);
void template_close(struct chat_template *c);
const char *template_name(const struct chat_template *c);
/* Add as text all that the ids of a conversation depend on, beside the tokenizer. */
int template_identity(const struct chat_template *c, struct buf *b);

/* Append the ids of a conversation; with add_generation_prompt the header of the assistant's turn last. Content is encoded with
 * `mode`; the markers are single ids. BOS first where the template (or for raw the tokenizer) has one, once.
 * raw has no roles: contents are joined as they are. ERR_INPUT for an unknown role, an empty list. */
int template_encode(const struct chat_template *c, const struct message *msg, int64_t n, bool add_generation_prompt,
                    enum special_mode mode, struct ids *out);
/* A string prompt as it is: BOS once where the tokenizer adds one, then the text. */
int template_encode_raw(const struct chat_template *c, const char *text, size_t len, enum special_mode mode, struct ids *out);
/* A response as the template writes it, without its end token: of a conversation trimmed where the template trims (llama3, llama2),
 * with llama2's spaces around it; of a string row the text as it is. */
int template_encode_response(const struct chat_template *c, bool conversation, const char *text, size_t len, enum special_mode mode,
                             struct ids *out);
/* The token that ends a response: the template's end-of-turn, raw: EOS. `conversation` false: a raw string row (EOS). -1: none. */
int32_t template_end(const struct chat_template *c, bool conversation);
#endif
