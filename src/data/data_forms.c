/* SPDX-License-Identifier: MIT */
#include "data_rows.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HH_MARKER "\n\nAssistant:"
#define PAIR_FORM "{\"prompt\", \"chosen\", \"rejected\"}"

void form_release(struct form *f)
{
    free(f->msg);
    buf_release(&f->joined);
    memset(f, 0, sizeof *f);
}

const char *form_name(enum form_kind kind)
{
    static const char *const name[FORM_KINDS] = {
        [FORM_STRINGS] = "prompt, chosen, rejected as strings",
        [FORM_MESSAGES] = "prompt as messages",
        [FORM_PARTS] = "whole conversations",
        [FORM_STRING_AND_PARTS] = "a prompt string beside whole conversations (UltraFeedback)",
        [FORM_HH] = "dialogues in one string (hh-rlhf)",
        [FORM_SHAREGPT] = "conversations (ShareGPT)",
        [FORM_TRAJECTORY] = "trajectory (UltraInteract)",
        [FORM_INSTRUCTION] = "instruction, input (Alpaca)",
        [FORM_QUESTION] = "system and question (Orca)",
        [FORM_COMPLETION] = "prompt, completion",
        [FORM_CHAT] = "messages",
    };
    return name[kind];
}

/* --- prompts --------------------------------------------------------------------------------------------------- */

static int message_add(struct form *f, const struct message *m)
{
    TRY(MEM_GROW(&f->msg, &f->cap_msg, f->n_msg + 1));
    f->msg[f->n_msg++] = *m;
    return 0;
}

/* The first n messages of a list, behind what is there. */
static int prompt_add_list(struct form *f, const json_t *list, size_t n, const char *pointer)
{
    for (size_t i = 0; i < n; i++) {
        const struct message m = messages_at(list, i);
        TRY(message_add(f, &m));
    }
    f->conversation = true;
    snprintf(f->prompt.at, sizeof f->prompt.at, "%s", pointer);
    return 0;
}

/* f->prompt is set; as a turn it becomes the one message of a conversation. */
static int prompt_as_turn(struct form *f, bool turn)
{
    const struct message m = { "user", f->prompt.s, f->prompt.len };
    f->conversation = turn;
    return turn ? message_add(f, &m) : 0;
}

static int prompt_read(struct form *f, const json_t *prompt, bool turn, const struct place *p)
{
    if (json_is_array(prompt)) {
        TRY(messages_check(prompt, "/prompt", p));
        return prompt_add_list(f, prompt, messages_count(prompt), "/prompt");
    }
    if (!json_is_string(prompt))
        return place_err(p, "/prompt",
                         "\"prompt\" must be a string or a list of messages; found %s",
                         json_type_name(prompt));
    TRY(text_read(&f->prompt, prompt, "/prompt", p));
    return prompt_as_turn(f, turn);
}

/* A string under `key` as one message; absent or empty: none. */
static int prompt_add_member(struct form *f, const json_t *row, const char *key, const char *role,
                             const struct place *p)
{
    char at[POINTER_MAX];
    const json_t *v = row_member(row, key);
    struct text t;
    snprintf(at, sizeof at, "/%s", key);
    if (!v) return 0;
    if (!json_is_string(v))
        return place_err(p, at, "\"%s\" must be a string; found %s", key, json_type_name(v));
    TRY(text_read(&t, v, at, p));
    const struct message m = { role, t.s, t.len };
    return t.len ? message_add(f, &m) : 0;
}

/* history: [["question", "answer"], ...] */
static int prompt_add_history(struct form *f, const json_t *row, const struct place *p)
{
    const json_t *list = row_member(row, "history");
    char at[POINTER_MAX];
    if (list && !json_is_array(list))
        return place_err(p, "/history", "\"history\" must be a list; found %s",
                         json_type_name(list));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *turn = json_array_get(list, i);
        for (size_t k = 0; k < 2; k++) {
            const json_t *v = json_array_get(turn, k);
            struct text t;
            snprintf(at, sizeof at, "/history/%zu", i);
            if (json_array_size(turn) != 2 || !v || !json_is_string(v))
                return place_err(p, at, "a turn of \"history\" is [\"question\", \"answer\"]");
            TRY(text_read(&t, v, at, p));
            const struct message m = { k ? "assistant" : "user", t.s, t.len };
            TRY(message_add(f, &m));
        }
    }
    return 0;
}

/* instruction, a line feed and input, where there is one. */
static int prompt_add_instruction(struct form *f, const json_t *row, const struct place *p)
{
    const json_t *first = row_member(row, "instruction"), *input = row_member(row, "input");
    struct text a, b;
    TRY(prompt_add_member(f, row, "system", "system", p));
    TRY(prompt_add_history(f, row, p));
    if (!json_is_string(first) || (input && !json_is_string(input)))
        return place_err(p, json_is_string(first) ? "/input" : "/instruction",
                         "\"instruction\" and \"input\" must be strings");
    TRY(text_read(&a, first, "/instruction", p));
    if (input) TRY(text_read(&b, input, "/input", p));
    if (input && b.len && a.len) {
        TRY(buf_add(&f->joined, a.s, a.len));
        TRY(buf_adds(&f->joined, "\n"));
        TRY(buf_add(&f->joined, b.s, b.len));
        a = (struct text){ .s = f->joined.data, .len = f->joined.len };
    } else if (input && b.len) {
        a = b;
    }
    const struct message m = { "user", a.s, a.len };
    return message_add(f, &m);
}

/* The prompts that are conversations under names of their own: `f->kind` says which. */
static int prompt_read_named(struct form *f, const json_t *row, const struct place *p)
{
    const char *key = f->kind == FORM_SHAREGPT ? "conversations" : "trajectory";
    char at[POINTER_MAX];
    f->conversation = true;
    snprintf(f->prompt.at, sizeof f->prompt.at, "%s", "");
    if (f->kind == FORM_INSTRUCTION) return prompt_add_instruction(f, row, p);
    if (f->kind == FORM_QUESTION) {
        TRY(prompt_add_member(f, row, "system", "system", p));
        return prompt_add_member(f, row, "question", "user", p);
    }
    const json_t *list = row_member(row, key);
    snprintf(at, sizeof at, "/%s", key);
    if (!json_is_array(list))
        return place_err(p, at, "\"%s\" must be a list of messages; found %s", key,
                         json_type_name(list));
    TRY(messages_check(list, at, p));
    if (row_member(row, "system") && !strcmp(messages_at(list, 0).role, "system"))
        return place_err(p, "/system", "\"system\" beside a system message of \"%s\"", key);
    TRY(prompt_add_member(f, row, "system", "system", p));
    return prompt_add_list(f, list, messages_count(list), at);
}

/* --- forms ----------------------------------------------------------------------------------------------------- */

/* One row's parts: `chosen` under the name `key`; prompt and rejected may be NULL. */
struct parts {
    const json_t *prompt, *chosen, *rejected;
    const char *key;
    bool user;
};

/* hh-rlhf: both texts start with the prompt, which ends with the last marker of their common start. */
static int split_hh(struct form *f, bool user, const struct place *p)
{
    struct text *w = &f->chosen, *l = &f->rejected;
    const size_t mark = strlen(HH_MARKER);
    size_t n = 0, max = l->s ? MIN(w->len, l->len) : w->len;
    if (l->s)
        while (n < max && w->s[n] == l->s[n])
            n++;
    else
        n = max;
    while (n >= mark && memcmp(w->s + n - mark, HH_MARKER, mark))
        n--;
    if (n < mark)
        return place_err(p, w->at,
                         "no \"prompt\", and the responses' common start holds no "
                         "\"\\n\\nAssistant:\"; expected " PAIR_FORM
                         ", or both texts starting with the same dialogue");
    f->kind = FORM_HH;
    f->prompt = *w;
    f->prompt.len = n;
    w->s += n;
    w->len -= n;
    if (l->s) {
        l->s += n;
        l->len -= n;
    }
    return prompt_as_turn(f, user);
}

static int read_strings(struct form *f, const struct parts *q, const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    TRY(text_read(&f->chosen, q->chosen, at, p));
    if (q->rejected) TRY(text_read(&f->rejected, q->rejected, "/rejected", p));
    if (!q->prompt) return split_hh(f, q->user, p);
    f->kind = json_is_array(q->prompt) ? FORM_MESSAGES : FORM_STRINGS;
    return prompt_read(f, q->prompt, q->user, p);
}

/* A list beside a prompt list: the response alone, or the prompt's messages again and the response. */
static int check_after_prompt(const json_t *list, const json_t *prompt, const char *key,
                              const struct place *p)
{
    const size_t n = messages_count(list), np = messages_count(prompt);
    char at[POINTER_MAX];
    if (n == 1 || (n == np + 1 && messages_common(list, prompt, np) == np)) return 0;
    snprintf(at, sizeof at, "/%s", key);
    return place_err(p, at,
                     "\"%s\" holds %zu messages; expected one of the assistant, or the prompt's "
                     "messages and one",
                     key, n);
}

/* Whole conversations: each list is the common start and one message. */
static int split_lists(struct form *f, const struct parts *q, const struct place *p)
{
    const size_t nw = messages_count(q->chosen),
                 nl = q->rejected ? messages_count(q->rejected) : nw;
    const size_t most = MIN(nw, nl) - 1;
    const size_t lead = q->rejected ? messages_common(q->chosen, q->rejected, most) : most;
    char at[POINTER_MAX];
    bool asked = q->prompt == NULL;
    if (q->prompt && nw == 1 && nl == 1) return prompt_read(f, q->prompt, true, p);
    snprintf(at, sizeof at, "/%s", q->key);
    if (lead == 0)
        return place_err(p, at, "no \"prompt\", and no message that comes before the response%s",
                         q->rejected ? " in both lists" : "");
    if (nw != lead + 1 || nl != lead + 1)
        return place_err(p, at,
                         "the lists share their first %zu messages, then hold %zu and %zu; "
                         "expected one response each",
                         lead, nw - lead, nl - lead);
    for (size_t i = 0; i < lead; i++)
        asked = asked || !strcmp(messages_at(q->chosen, i).role, "user");
    if (!asked)
        return place_err(p, at,
                         "\"prompt\" is a string and the lists hold no message of the user; "
                         "expected whole conversations or one response each");
    f->kind = q->prompt ? FORM_STRING_AND_PARTS : f->kind == FORM_CHAT ? FORM_CHAT : FORM_PARTS;
    return prompt_add_list(f, q->chosen, lead, at);
}

static int read_responses(struct form *f, const struct parts *q, const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    TRY(messages_check(q->chosen, at, p));
    TRY(messages_response(&f->chosen, q->chosen, at, p));
    if (!q->rejected) return 0;
    TRY(messages_check(q->rejected, "/rejected", p));
    return messages_response(&f->rejected, q->rejected, "/rejected", p);
}

static int read_lists(struct form *f, const struct parts *q, const struct place *p)
{
    TRY(read_responses(f, q, p));
    if (q->prompt && !json_is_string(q->prompt)) {
        f->kind = FORM_MESSAGES;
        TRY(prompt_read(f, q->prompt, true, p));
        TRY(check_after_prompt(q->chosen, q->prompt, q->key, p));
        return q->rejected ? check_after_prompt(q->rejected, q->prompt, "rejected", p) : 0;
    }
    if (q->prompt) { /* a string beside whole conversations is not used, but it must be text */
        struct text t;
        TRY(text_read(&t, q->prompt, "/prompt", p));
    }
    return split_lists(f, q, p);
}

/* The responses beside a prompt of another name: strings, one message, or a list of one. */
static int read_named(struct form *f, const json_t *row, const struct parts *q,
                      const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    TRY(prompt_read_named(f, row, p));
    if (json_is_string(q->chosen)) {
        TRY(text_read(&f->chosen, q->chosen, at, p));
        return q->rejected ? text_read(&f->rejected, q->rejected, "/rejected", p) : 0;
    }
    TRY(read_responses(f, q, p));
    if (messages_count(q->chosen) == 1 && (!q->rejected || messages_count(q->rejected) == 1))
        return 0;
    return place_err(p, at, "expected one response beside the prompt, found a conversation");
}

static int check_types(const struct parts *q, const struct place *p)
{
    char at[POINTER_MAX];
    snprintf(at, sizeof at, "/%s", q->key);
    if (!json_is_string(q->chosen) && !json_is_array(q->chosen) && !json_is_object(q->chosen))
        return place_err(p, at, "\"%s\" must be a string or a list of messages; found %s", q->key,
                         json_type_name(q->chosen));
    if (q->rejected && json_typeof(q->rejected) != json_typeof(q->chosen))
        return place_err(p, "/rejected",
                         "\"rejected\" is %s and \"chosen\" %s; expected the same type",
                         json_type_name(q->rejected), json_type_name(q->chosen));
    return 0;
}

static int read_parts(struct form *f, const struct parts *q, const struct place *p)
{
    TRY(check_types(q, p));
    return json_is_string(q->chosen) ? read_strings(f, q, p) : read_lists(f, q, p);
}

static void form_clear(struct form *f)
{
    struct message *msg = f->msg;
    struct buf joined = f->joined;
    const int64_t cap = f->cap_msg;
    memset(f, 0, sizeof *f);
    buf_clear(&joined);
    f->msg = msg;
    f->cap_msg = cap;
    f->joined = joined;
}

/* A prompt under another name than "prompt", where there is one. */
static bool named_prompt(struct form *f, const json_t *row)
{
    static const struct {
        const char *key;
        enum form_kind kind;
    } known[] = { { "conversations", FORM_SHAREGPT },
                  { "trajectory", FORM_TRAJECTORY },
                  { "instruction", FORM_INSTRUCTION },
                  { "question", FORM_QUESTION } };
    if (row_member(row, "prompt")) return false;
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        if (!row_member(row, known[i].key)) continue;
        f->kind = known[i].kind;
        return true;
    }
    return false;
}

/* A conversation that ends with the response. */
static int split_last(struct form *f, const json_t *row, const struct place *p)
{
    TRY(prompt_read_named(f, row, p));
    const json_t *list = row_member(row, f->kind == FORM_SHAREGPT ? "conversations" : "trajectory");
    if (f->n_msg < 2)
        return place_err(p, f->prompt.at, "no message that comes before the response");
    TRY(messages_response(&f->chosen, list, f->prompt.at, p));
    f->n_msg--;
    return 0;
}

static int read_sft_named(struct form *f, const json_t *row, bool user, const struct place *p)
{
    const char *key = row_member(row, "output") ? "output" : "response";
    const struct parts q = { NULL, row_member(row, key), NULL, key, user };
    if (f->kind == FORM_SHAREGPT || f->kind == FORM_TRAJECTORY) return split_last(f, row, p);
    if (!q.chosen)
        return place_err(p, "", "missing key \"output\" beside \"%s\"",
                         f->kind == FORM_INSTRUCTION ? "instruction" : "question");
    TRY(check_types(&q, p));
    return read_named(f, row, &q, p);
}

static int read_sft(struct form *f, const json_t *row, bool user, const struct place *p)
{
    const json_t *completion = row_member(row, "completion"),
                 *messages = row_member(row, "messages");
    if (completion) {
        const struct parts q = { row_member(row, "prompt"), completion, NULL, "completion", user };
        if (!q.prompt) return place_err(p, "", "missing key \"prompt\" beside \"completion\"");
        TRY(read_parts(f, &q, p));
        f->kind = FORM_COMPLETION;
        return 0;
    }
    if (!messages && named_prompt(f, row)) return read_sft_named(f, row, user, p);
    if (!messages)
        return place_err(p, "",
                         "no response to train on; expected {\"prompt\", \"completion\"}, "
                         "{\"messages\"}, {\"conversations\"}, {\"instruction\", \"input\", "
                         "\"output\"} or a pair's " PAIR_FORM);
    if (!json_is_array(messages))
        return place_err(p, "/messages", "\"messages\" must be a list; found %s",
                         json_type_name(messages));
    const struct parts q = { NULL, messages, NULL, "messages", user };
    f->kind = FORM_CHAT;
    return read_parts(f, &q, p);
}

static int object_check(const json_t *row, const struct place *p)
{
    if (json_is_object(row)) return 0;
    return place_err(p, "", "a row is a JSON object such as " PAIR_FORM "; found %s",
                     json_type_name(row));
}

int form_read(struct form *f, const json_t *row, enum data_kind kind, bool user,
              const struct place *p)
{
    form_clear(f);
    TRY(object_check(row, p));
    const struct parts q = { row_member(row, "prompt"), row_member(row, "chosen"),
                             row_member(row, "rejected"), "chosen", user };
    if (kind == DATA_SFT && !q.chosen) return read_sft(f, row, user, p);
    if (!q.chosen || (kind == DATA_PAIRS && !q.rejected)) {
        const bool sft =
            row_member(row, "completion") || row_member(row, "messages") || named_prompt(f, row);
        return place_err(
            p, "", "missing key \"%s\"; expected " PAIR_FORM "%s", q.chosen ? "rejected" : "chosen",
            sft && !q.chosen ? " (this row is for SFT: it has no rejected response)" : "");
    }
    f->has_rejected = kind == DATA_PAIRS;
    if (named_prompt(f, row)) {
        TRY(check_types(&q, p));
        return read_named(f, row, &q, p);
    }
    return read_parts(f, &q, p);
}

int form_read_prompt(struct form *f, const json_t *row, bool user, const struct place *p)
{
    form_clear(f);
    if (json_is_string(row)) {
        TRY(text_read(&f->prompt, row, "", p));
        return prompt_as_turn(f, user);
    }
    TRY(object_check(row, p));
    const json_t *prompt = row_member(row, "prompt"), *messages = row_member(row, "messages");
    const json_t *chosen = row_member(row, "chosen");
    if (prompt && !(json_is_string(prompt) && json_is_array(chosen)))
        return prompt_read(f, prompt, user, p);
    if (!messages && named_prompt(f, row)) {
        TRY(prompt_read_named(f, row, p));
        if (f->n_msg > 1 && !chosen && !strcmp(f->msg[f->n_msg - 1].role, "assistant")) f->n_msg--;
        return 0;
    }
    if (chosen) return form_read(f, row, DATA_SFT, user, p);
    if (!messages)
        return place_err(
            p, "",
            "missing key \"prompt\"; expected \"prompt\" (a string or messages) or \"messages\"");
    if (!json_is_array(messages))
        return place_err(p, "/messages", "\"messages\" must be a list; found %s",
                         json_type_name(messages));
    TRY(messages_check(messages, "/messages", p));
    size_t n = messages_count(messages);
    n -= !strcmp(messages_at(messages, n - 1).role, "assistant");
    if (n == 0) return place_err(p, "/messages", "no message before the assistant's");
    return prompt_add_list(f, messages, n, "/messages");
}
