/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../src/data/template_impl.h"
#include "../src/io/file.h"
#include "../src/io/json.h"
#include "template_fixture.h"

static const char QWEN[] =
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] "
    "+ '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou\\'re Qwen.<|im_end|>\\n' }}{%- endif %}{%- if "
    "add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

static void test_template__chatml(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    struct chat_template *c = template_fixture_open(t, dir, QWEN, "auto", NULL);
    assert_string_equal(template_name(c), "chatml");
    template_fixture_expect(
        c, CHAT(MSG("user", "Hi")), true,
        "{start}system\nYou're Qwen.{stop}\n{start}user\nHi{stop}\n{start}assistant\n");
    template_fixture_expect(
        c, CHAT(MSG("system", "S"), MSG("user", " a "), MSG("assistant", ""), MSG("user", "b\n")),
        false,
        "{start}system\nS{stop}\n{start}user\n a "
        "{stop}\n{start}assistant\n{stop}\n{start}user\nb\n{stop}\n");
    /* what the data holds is text, whatever it looks like */
    template_fixture_expect(c, CHAT(MSG("system", ""), MSG("user", "<|im_end|>")), false,
                            "{start}system\n{stop}\n{start}user\n<|im_end|>{stop}\n");
    assert_int_equal(template_end(c, true), 258);
    assert_int_equal(template_end(c, false), 256);
    struct ids v = { 0 };
    const struct message m = MSG("user", "<|im_end|>");
    assert_int_equal(template_encode(c, &m, 1, false, SPECIALS_MATCH, &v), 0);
    assert_non_null(strstr(template_fixture_shown(&v), "user\n{stop}{stop}\n"));
    /* errors add nothing */
    const int64_t before = v.n;
    const struct message bad[] = { MSG("user", "a"), MSG("tool", "b") },
                         broken = MSG("user", "\xff");
    assert_int_equal(template_encode(c, bad, 2, false, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "\"tool\" of message 2"));
    assert_int_equal(template_encode(c, &broken, 1, false, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_int_equal(template_encode(c, NULL, 0, true, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_int_equal(v.n, before);
    ids_release(&v);
    template_close(c);
    /* the user's prompt instead of the template's; a system message in the data before both */
    c = template_fixture_open(t, dir, QWEN, "auto", "Mine");
    template_fixture_expect(c, CHAT(MSG("user", "x")), false,
                            "{start}system\nMine{stop}\n{start}user\nx{stop}\n");
    template_fixture_expect(c, CHAT(MSG("system", "S")), false, "{start}system\nS{stop}\n");
    template_close(c);
    c = template_fixture_open(t, dir, QWEN, "chatml", NULL);
    template_fixture_expect(c, CHAT(MSG("user", "x")), false, "{start}user\nx{stop}\n");
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__default_system(void **state)
{
    (void)state;
    static const struct {
        const char *jinja, *system; /* NULL: none */
    } row[] = {
        { "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
          "'\\n'}}",
          NULL },
        { "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{{'<|im_start|>' }}",
          "You are a helpful assistant." },
        { "{{ \"<|im_start|>system\\nA \\\"b\\\"\\tc<|im_end|>\\n\" }}", "A \"b\"\tc" },
        { "{% if x %}<|im_start|>system\nPlain.<|im_end|>\n{% endif %}<|im_start|>{{ role }}",
          "Plain." },
        { "<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n", NULL },
        { "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}", NULL },
        { "{%- if tools %}{{- '<|im_start|>system\\n' }}{{- \"# Tools\\n<|im_end|>\\n\" }}{%- "
          "endif %}{{ '<|im_start|>' }}",
          NULL },
        { "{% set system_message = 'Set.' %}{{ '<|im_start|>system\\n' + system_message + "
          "'<|im_end|>\\n' }}",
          "Set." },
        { "{% set system_message = messages[0]['content'] %}{{ '<|im_start|>system\\n' + "
          "system_message + '<|im_end|>\\n' }}",
          NULL },
        { "'<|im_start|>system\\nS<|im_end|>' x '<|im_start|>system\\nS<|im_end|>'", "S" },
    };
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct template_style s = { 0 };
        if (template_style_read(&s, row[i].jinja, "t.jinja", t) < 0) fail_msg("%s", err_msg());
        assert_int_equal(s.kind, TEMPLATE_CHATML);
        if (!row[i].system && s.default_system) fail_msg("row %zu: %s", i, s.default_system);
        if (row[i].system) assert_non_null(s.default_system);
        if (row[i].system) assert_string_equal(s.default_system, row[i].system);
        template_style_release(&s);
    }
    struct template_style s = { 0 };
    assert_int_equal(template_style_read(
                         &s, "'<|im_start|>system\\nA<|im_end|>''<|im_start|>system\\nB<|im_end|>'",
                         "t.jinja", t),
                     ERR_INPUT);
    assert_non_null(
        strstr(err_msg(), "t.jinja: error: the chat template has two default system prompts"));
    template_style_release(&s);
    assert_int_equal(template_style_read(&s, "[INST] {{ content }} [/INST]", "t.jinja", t),
                     ERR_INPUT);
    assert_non_null(strstr(err_msg(), "set data.chat_template to"));
    template_style_release(&s);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__thinking(void **state)
{
    (void)state;
    static const char jinja[] =
        "{%- set ns = namespace(last_query_index=0) %}{%- set content = "
        "message.content.split('</think>')[-1].lstrip('\\n') %}"
        "{{- '<|im_start|>' }}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{{- "
        "'<think>\\n\\n</think>\\n\\n' }}{%- endif %}";
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    struct chat_template *c = template_fixture_open(t, dir, jinja, "auto", NULL);
    template_fixture_expect(
        c, CHAT(MSG("user", "q"), MSG("assistant", "<think>\nhm\n</think>\n\na"), MSG("user", "r")),
        true,
        "{start}user\nq{stop}\n{start}assistant\na{stop}\n{start}user\nr{stop}\n{start}"
        "assistant\n");
    template_fixture_expect(
        c, CHAT(MSG("user", "q"), MSG("assistant", "<think>\nhm\n</think>\n\na")), false,
        "{start}user\nq{stop}\n{start}assistant\n{think}\nhm\n{/think}\n\na{stop}\n");
    template_fixture_expect(
        c, CHAT(MSG("user", "q"), MSG("assistant", "a")), false,
        "{start}user\nq{stop}\n{start}assistant\n{think}\n\n{/think}\n\na{stop}\n");
    template_fixture_expect(
        c,
        CHAT(MSG("user", "q"), MSG("assistant", "a"),
             MSG("user", "<tool_response>x</tool_response>"), MSG("assistant", "b")),
        false,
        "{start}user\nq{stop}\n{start}assistant\na{stop}\n{start}user\n<tool_response>x</"
        "tool_response>{stop}\n"
        "{start}assistant\n{think}\n\n{/think}\n\nb{stop}\n");
    template_close(c);
    /* a generation prompt that opens the thinking itself */
    c = template_fixture_open(t, dir,
                              "{{ '<|im_start|>' }}{% if add_generation_prompt %}{{ "
                              "'<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
                              "auto", NULL);
    template_fixture_expect(c, CHAT(MSG("user", "q")), true,
                            "{start}user\nq{stop}\n{start}assistant\n{think}\n");
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__llama3(void **state)
{
    (void)state;
    static const char plain[] =
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
        "message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}";
    static const char dated[] =
        "{{- bos_token }}{%- set date_string = strftime_now(\"%d %b %Y\") %}{%- set date_string = "
        "\"26 Jul 2024\" %}{{- \"<|start_header_id|>\" }}"
        "{{- \"Cutting Knowledge Date: December 2023\\n\" }}{{- \"Today Date: \" + date_string + "
        "\"\\n\\n\" }}{{ x|trim }}";
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    struct chat_template *c = template_fixture_open(t, dir, plain, "auto", NULL);
    assert_string_equal(template_name(c), "llama3");
    template_fixture_expect(
        c, CHAT(MSG("user", " \xc2\xa0Hi\n"), MSG("assistant", "\x1c")), true,
        "{bos}{head}user{/head}\n\nHi{eot}{head}assistant{/head}\n\n{eot}{head}assistant{/"
        "head}\n\n");
    assert_int_equal(template_end(c, true), 262);
    template_close(c);
    c = template_fixture_open(t, dir, plain, "auto", "Mine ");
    template_fixture_expect(c, CHAT(MSG("user", "x")), false,
                            "{bos}{head}system{/head}\n\nMine{eot}{head}user{/head}\n\nx{eot}");
    template_close(c);
    c = template_fixture_open(t, dir, dated, "auto", NULL);
    template_fixture_expect(
        c, CHAT(MSG("user", "x")), false,
        "{bos}{head}system{/head}\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
        "2024\n\n{eot}{head}user{/head}\n\nx{eot}");
    template_fixture_expect(
        c, CHAT(MSG("system", " S "), MSG("system", "T")), false,
        "{bos}{head}system{/head}\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
        "2024\n\nS{eot}{head}system{/head}\n\nT{eot}");
    template_close(c);
    c = template_fixture_open(t, dir, dated, "llama3", NULL);
    template_fixture_expect(c, CHAT(MSG("user", "x")), false, "{bos}{head}user{/head}\n\nx{eot}");
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__raw(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct chat_template *c = NULL;
    struct ids v = { 0 };
    struct tokenizer *t = template_fixture_tokenizer(
        dir, "{\"bos_token\": \"<|begin_of_text|>\", \"add_bos_token\": true}");
    assert_int_equal(template_open(&c, t, dir, "auto", NULL, NULL), 0); /* no template at all */
    assert_string_equal(template_name(c), "raw");
    template_fixture_expect(c, CHAT(MSG("user", "a "), MSG("poet", "b")), true, "{bos}a b");
    assert_int_equal(template_encode_raw(c, "x<|im_end|>", 11, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(template_fixture_shown(&v), "{bos}x<|im_end|>");
    assert_int_equal(template_encode_raw(c, "\xff", 1, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_int_equal(v.n, 12);
    assert_int_equal(template_end(c, true), -1); /* three well-known names: no EOS can be told */
    template_close(c);
    tokenizer_close(t);
    t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    assert_int_equal(template_open(&c, t, dir, "raw", "Sys: ", NULL), 0);
    template_fixture_expect(c, CHAT(MSG("user", "a")), false, "Sys: a");
    assert_int_equal(template_end(c, true), 256);
    template_close(c);
    ids_release(&v);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__sources_and_refusals(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct chat_template *c = NULL;
    struct tokenizer *t = template_fixture_tokenizer(
        dir, "{\"eos_token\": \"<|endoftext|>\", \"chat_template\": [{\"name\": "
             "\"tool_use\", \"template\": \"x\"}, "
             "{\"name\": \"default\", \"template\": \"{{ '<|im_start|>' }}\"}]}");
    assert_int_equal(template_open(&c, t, dir, "auto", NULL, NULL), 0);
    assert_string_equal(template_name(c), "chatml");
    template_close(c);
    /* the file of its own comes first */
    c = template_fixture_open(t, dir, "{{ '<|start_header_id|>' }}", "auto", NULL);
    assert_string_equal(template_name(c), "llama3");
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "mistral", NULL, NULL), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "\"mistral\" is not known"));
    fixture_write(dir, "chat_template.jinja", "{{ messages }}");
    assert_int_equal(template_open(&c, t, dir, "auto", NULL, NULL), ERR_INPUT);
    assert_non_null(
        strstr(err_msg(), "chat_template.jinja: error: the chat template is not recognised"));
    assert_null(c);
    tokenizer_close(t);
    t = fixture_open(dir, fixture_bytes(&(struct fixture){
                              .added = "[" FIXTURE_ADDED(256, "<|endoftext|>", "") "]" }));
    assert_int_equal(template_open(&c, t, dir, "chatml", NULL, NULL), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "needs the token <|im_end|>"));
    tokenizer_close(t);
    fixture_remove(dir);
}

/* The renderings of transformers, kept beside the templates. */
static void golden(const char *model, const char *path)
{
    struct tokenizer *t = NULL;
    struct chat_template *c = NULL;
    struct json_doc d = { 0 };
    const char *name;
    json_t *v;
    int n = 0;
    if (!file_exists(path)) {
        print_message("skipped: %s is not there\n", path);
        skip();
    }
    assert_int_equal(tokenizer_open(&t, model), 0);
    assert_int_equal(template_open(&c, t, model, "auto", NULL, NULL), 0);
    assert_int_equal(json_doc_read(&d, path), 0);
    json_object_foreach(d.root, name, v)
    {
        struct message msg[16];
        struct ids got = { 0 };
        json_t *list = json_object_get(v, "messages"), *want = json_object_get(v, "ids");
        const size_t k = json_array_size(list);
        for (size_t i = 0; i < k; i++) {
            json_t *o = json_array_get(list, i), *s = json_object_get(o, "content");
            msg[i] = (struct message){ json_string_value(json_object_get(o, "role")),
                                       json_string_value(s), json_string_length(s) };
        }
        assert_int_equal(template_encode(c, msg, (int64_t)k,
                                         json_is_true(json_object_get(v, "add_generation_prompt")),
                                         SPECIALS_AS_TEXT, &got),
                         0);
        assert_int_equal(got.n, json_array_size(want));
        for (int64_t i = 0; i < got.n; i++)
            assert_int_equal(got.id[i], json_integer_value(json_array_get(want, (size_t)i)));
        ids_release(&got);
        n++;
    }
    assert_int_equal(n, 4);
    json_doc_release(&d);
    template_close(c);
    tokenizer_close(t);
}

static void test_template__golden_qwen(void **state)
{
    (void)state;
    golden("../shared/data/tokenizers/qwen2.5",
           "../shared/data/chat-templates/golden_qwen2.5.json");
}

static void test_template__golden_llama(void **state)
{
    (void)state;
    golden("../shared/data/tokenizers/llama3.2",
           "../shared/data/chat-templates/golden_llama3.2.json");
}

static void test_template__families(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    struct chat_template *c = NULL;
    assert_int_equal(template_open(&c, t, dir, "zephyr", "S", NULL), 0);
    template_fixture_expect(
        c, CHAT(MSG("user", " a "), MSG("assistant", "b"), MSG("user", "c")), true,
        "<|system|>\nS{end}\n<|user|>\n a {end}\n<|assistant|>\nb{end}\n<|user|>\nc{end}\n"
        "<|assistant|>\n");
    assert_int_equal(template_end(c, true), 256);
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "alpaca", NULL, NULL), 0);
    template_fixture_expect(c, CHAT(MSG("system", "S"), MSG("user", "a"), MSG("assistant", "b")),
                            true,
                            "S\n\n### Instruction:\na\n\n### Response:\nb{end}\n\n### Response:\n");
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "llama2", NULL, NULL), 0);
    template_fixture_expect(
        c, CHAT(MSG("system", "S"), MSG("user", "a "), MSG("assistant", " b"), MSG("user", "c")),
        true, "{bos}[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b {end}{bos}[INST] c [/INST]");
    struct ids v = { 0 };
    assert_int_equal(template_encode_response(c, true, " x\n", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(template_fixture_shown(&v), " x ");
    v.n = 0; /* a string row is text as it is */
    assert_int_equal(template_encode_response(c, false, " x\n", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(template_fixture_shown(&v), " x\n");
    v.n = 0;
    const struct message twice[] = { MSG("user", "a"), MSG("user", "b") },
                         alone = MSG("system", "S");
    assert_int_equal(template_encode(c, twice, 2, true, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "message 2 is of role \"user\""));
    assert_int_equal(template_encode(c, &alone, 1, true, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "llama3", NULL, NULL), 0);
    assert_int_equal(template_encode_response(c, true, " x\n", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(template_fixture_shown(&v), "x");
    ids_release(&v);
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__pieces(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    struct chat_template *c = NULL;
    static const char good[] =
        "{\"system\": [\"<|im_start|>S:\", \"\\n\"], \"user\": [\"U:\", \"\\n\"], \"assistant\": "
        "[\"A:\", \"<|eot_id|>\\n\"], \"bos\": true, \"trim\": true, \"default_system\": \"D\"}";
    assert_int_equal(template_open(&c, t, dir, good, NULL, NULL), 0);
    assert_string_equal(template_name(c), "pieces");
    assert_int_equal(template_end(c, true), 262);
    template_fixture_expect(
        c, CHAT(MSG("user", " a"), MSG("assistant", "b"), MSG("user", "<|eot_id|>")), true,
        "{bos}{start}S:D\nU:a\nA:b{eot}\nU:<|eot_id|>\nA:");
    template_close(c);
#define ROLES_ "\"user\": [\"U:\", \"\\n\"], \"assistant\": [\"A:\", \"!\"]"
    assert_int_equal(template_open(&c, t, dir,
                                   "{" ROLES_ ", \"end\": \"<|im_end|>\", \"generation\": \"G\"}",
                                   NULL, NULL),
                     0);
    template_fixture_expect(c, CHAT(MSG("user", "a")), true, "U:a\nG");
    assert_int_equal(template_end(c, true), 258);
    struct ids v = { 0 };
    const struct message system = MSG("system", "S");
    assert_int_equal(template_encode(c, &system, 1, true, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "no place for a message of role \"system\""));
    template_close(c);
    static const char *const bad[][2] = {
        { "{\"user\": [\"U\", \"\"]}", "data.chat_template.assistant: is missing" },
        { "{" ROLES_ "}",
          "assistant: the text after the response does not begin with an added token" },
        { "{" ROLES_ ", \"end\": \"x\"}", "end: is not an added token" },
        { "{" ROLES_ ", \"end\": 5}", "end: is not a text" },
        { "{" ROLES_ ", \"bos\": 5}", "bos: is neither true nor false" },
        { "{" ROLES_ ", \"usr\": 5}", "usr: unknown key" },
        { "{\"user\": \"U\"}", "user: is not [\"before\", \"after\"]" },
        { "{" ROLES_ ", \"default_system\": \"D\"}", "default_system: needs \"system\"" },
        { "{", "data.chat_template:1:" },
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(template_open(&c, t, dir, bad[i][0], NULL, NULL), ERR_INPUT);
        if (!strstr(err_msg(), bad[i][1])) fail_msg("%s: %s", bad[i][0], err_msg());
    }
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__recognised(void **state)
{
    (void)state;
    static const char *const row[][2] = {
        { "{{ '[INST] <<SYS>>' }}{{ eos_token }}", "llama2" },
        { "{{ '<|user|>\n' + c + eos_token }}{{ '<|system|>' }}{{ '<|assistant|>' }}", "zephyr" },
        { "Below is an instruction that describes a task. Write a response that appropriately "
          "completes the request.### Instruction:### Response:{{ eos_token }}",
          "alpaca" },
    };
    char *dir = fixture_dir();
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct chat_template *c = template_fixture_open(t, dir, row[i][0], "auto", NULL);
        assert_string_equal(template_name(c), row[i][1]);
        template_close(c);
    }
    static const char *const strangers[] = {
        "{{ '[INST] ' + m }}{{ eos_token }}", /* Mistral's differ from each other */
        "{{ '<|user|>' }}{{ '<|end|>' }}{{ '<|assistant|>' }}{{ '<|system|>' }}{{ eos_token }}",
        "{{ '<|im_start|>user<|im_sep|>' }}",
    };
    for (size_t i = 0; i < COUNT_OF(strangers); i++) {
        struct chat_template *c = NULL;
        fixture_write(dir, "chat_template.jinja", strangers[i]);
        assert_int_equal(template_open(&c, t, dir, "auto", NULL, NULL), ERR_INPUT);
        assert_non_null(strstr(err_msg(), "set data.chat_template to "));
        assert_non_null(strstr(err_msg(), "{\"system\": [\"<|system|>\\n\","));
    }
    /* the date of Llama 3.1's block */
    struct chat_template *c = NULL;
    fixture_write(dir, "chat_template.jinja",
                  "<|start_header_id|>{{ 'Cutting Knowledge Date: December 2023\\nToday Date: 1 "
                  "Jan 2024' }}");
    assert_int_equal(template_open(&c, t, dir, "auto", NULL, "2 Feb 2025"), 0);
    template_fixture_expect(
        c, CHAT(MSG("user", "a")), false,
        "{head}system{/head}\n\nCutting Knowledge Date: December 2023\nToday Date: 2 Feb "
        "2025\n\n{eot}{head}user{/head}\n\na{eot}");
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template__chatml),
        cmocka_unit_test(test_template__families),
        cmocka_unit_test(test_template__pieces),
        cmocka_unit_test(test_template__recognised),
        cmocka_unit_test(test_template__default_system),
        cmocka_unit_test(test_template__thinking),
        cmocka_unit_test(test_template__llama3),
        cmocka_unit_test(test_template__raw),
        cmocka_unit_test(test_template__sources_and_refusals),
        cmocka_unit_test(test_template__golden_qwen),
        cmocka_unit_test(test_template__golden_llama),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
