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
#include "tokenizer_fixture.h"

/* Byte-level, a token a byte, then these; ids are written out as text with the markers' names. */
static const char ADDED[] =
    "[{\"id\": 256, \"content\": \"<|endoftext|>\", \"special\": true},"
    " {\"id\": 257, \"content\": \"<|im_start|>\", \"special\": true},"
    " {\"id\": 258, \"content\": \"<|im_end|>\", \"special\": true},"
    " {\"id\": 259, \"content\": \"<|begin_of_text|>\", \"special\": true},"
    " {\"id\": 260, \"content\": \"<|start_header_id|>\", \"special\": true},"
    " {\"id\": 261, \"content\": \"<|end_header_id|>\", \"special\": true},"
    " {\"id\": 262, \"content\": \"<|eot_id|>\", \"special\": true},"
    " {\"id\": 263, \"content\": \"<think>\", \"special\": false},"
    " {\"id\": 264, \"content\": \"</think>\", \"special\": false}]";
static const char *const marker[] = { "{end}",   "{start}", "{stop}",  "{bos}",   "{head}",
                                      "{/head}", "{eot}",   "{think}", "{/think}" };

static struct tokenizer *open_tokenizer(const char *dir, const char *config)
{
    fixture_write(dir, "tokenizer_config.json", config);
    return fixture_open(dir, fixture_bytes(&(struct fixture){ .added = ADDED }));
}

static const char *shown(const struct ids *v)
{
    static char out[4096];
    size_t n = 0;
    for (int64_t i = 0; i < v->n && n + 20 < sizeof out; i++) {
        if (v->id[i] < 256)
            out[n++] = (char)v->id[i];
        else
            n += (size_t)snprintf(out + n, sizeof out - n, "%s", marker[v->id[i] - 256]);
    }
    out[n] = 0;
    return out;
}

#define MSG(r, c)           \
    (struct message)        \
    {                       \
        r, c, sizeof(c) - 1 \
    }
#define CHAT(...)                            \
    (const struct message[]){ __VA_ARGS__ }, \
        (int64_t)COUNT_OF(((const struct message[]){ __VA_ARGS__ }))

static void expect(const struct chat_template *c, const struct message *msg, int64_t n,
                   bool generation, const char *want)
{
    struct ids v = { 0 };
    if (template_encode(c, msg, n, generation, SPECIALS_AS_TEXT, &v) < 0) fail_msg("%s", err_msg());
    assert_string_equal(shown(&v), want);
    ids_release(&v);
}

static struct chat_template *open_with(const struct tokenizer *t, const char *dir,
                                       const char *jinja, const char *name, const char *system)
{
    struct chat_template *c = NULL;
    fixture_write(dir, "chat_template.jinja", jinja);
    if (template_open(&c, t, dir, name, system, NULL) < 0) fail_msg("%s", err_msg());
    return c;
}

static const char CONFIG[] =
    "{\"bos_token\": \"<|begin_of_text|>\", \"eos_token\": \"<|endoftext|>\"}";
static const char QWEN[] =
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] "
    "+ '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou\\'re Qwen.<|im_end|>\\n' }}{%- endif %}{%- if "
    "add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

static void test_template__chatml(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    struct chat_template *c = open_with(t, dir, QWEN, "auto", NULL);
    assert_string_equal(template_name(c), "chatml");
    expect(c, CHAT(MSG("user", "Hi")), true,
           "{start}system\nYou're Qwen.{stop}\n{start}user\nHi{stop}\n{start}assistant\n");
    expect(c,
           CHAT(MSG("system", "S"), MSG("user", " a "), MSG("assistant", ""), MSG("user", "b\n")),
           false,
           "{start}system\nS{stop}\n{start}user\n a "
           "{stop}\n{start}assistant\n{stop}\n{start}user\nb\n{stop}\n");
    /* what the data holds is text, whatever it looks like */
    expect(c, CHAT(MSG("system", ""), MSG("user", "<|im_end|>")), false,
           "{start}system\n{stop}\n{start}user\n<|im_end|>{stop}\n");
    assert_int_equal(template_end(c, true), 258);
    assert_int_equal(template_end(c, false), 256);
    struct ids v = { 0 };
    const struct message m = MSG("user", "<|im_end|>");
    assert_int_equal(template_encode(c, &m, 1, false, SPECIALS_MATCH, &v), 0);
    assert_non_null(strstr(shown(&v), "user\n{stop}{stop}\n"));
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
    c = open_with(t, dir, QWEN, "auto", "Mine");
    expect(c, CHAT(MSG("user", "x")), false, "{start}system\nMine{stop}\n{start}user\nx{stop}\n");
    expect(c, CHAT(MSG("system", "S")), false, "{start}system\nS{stop}\n");
    template_close(c);
    c = open_with(t, dir, QWEN, "chatml", NULL);
    expect(c, CHAT(MSG("user", "x")), false, "{start}user\nx{stop}\n");
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
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
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
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    struct chat_template *c = open_with(t, dir, jinja, "auto", NULL);
    expect(c,
           CHAT(MSG("user", "q"), MSG("assistant", "<think>\nhm\n</think>\n\na"), MSG("user", "r")),
           true,
           "{start}user\nq{stop}\n{start}assistant\na{stop}\n{start}user\nr{stop}\n{start}"
           "assistant\n");
    expect(c, CHAT(MSG("user", "q"), MSG("assistant", "<think>\nhm\n</think>\n\na")), false,
           "{start}user\nq{stop}\n{start}assistant\n{think}\nhm\n{/think}\n\na{stop}\n");
    expect(c, CHAT(MSG("user", "q"), MSG("assistant", "a")), false,
           "{start}user\nq{stop}\n{start}assistant\n{think}\n\n{/think}\n\na{stop}\n");
    expect(c,
           CHAT(MSG("user", "q"), MSG("assistant", "a"),
                MSG("user", "<tool_response>x</tool_response>"), MSG("assistant", "b")),
           false,
           "{start}user\nq{stop}\n{start}assistant\na{stop}\n{start}user\n<tool_response>x</"
           "tool_response>{stop}\n"
           "{start}assistant\n{think}\n\n{/think}\n\nb{stop}\n");
    template_close(c);
    /* a generation prompt that opens the thinking itself */
    c = open_with(t, dir,
                  "{{ '<|im_start|>' }}{% if add_generation_prompt %}{{ "
                  "'<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
                  "auto", NULL);
    expect(c, CHAT(MSG("user", "q")), true, "{start}user\nq{stop}\n{start}assistant\n{think}\n");
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
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    struct chat_template *c = open_with(t, dir, plain, "auto", NULL);
    assert_string_equal(template_name(c), "llama3");
    expect(c, CHAT(MSG("user", " \xc2\xa0Hi\n"), MSG("assistant", "\x1c")), true,
           "{bos}{head}user{/head}\n\nHi{eot}{head}assistant{/head}\n\n{eot}{head}assistant{/"
           "head}\n\n");
    assert_int_equal(template_end(c, true), 262);
    template_close(c);
    c = open_with(t, dir, plain, "auto", "Mine ");
    expect(c, CHAT(MSG("user", "x")), false,
           "{bos}{head}system{/head}\n\nMine{eot}{head}user{/head}\n\nx{eot}");
    template_close(c);
    c = open_with(t, dir, dated, "auto", NULL);
    expect(c, CHAT(MSG("user", "x")), false,
           "{bos}{head}system{/head}\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
           "2024\n\n{eot}{head}user{/head}\n\nx{eot}");
    expect(c, CHAT(MSG("system", " S "), MSG("system", "T")), false,
           "{bos}{head}system{/head}\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
           "2024\n\nS{eot}{head}system{/head}\n\nT{eot}");
    template_close(c);
    c = open_with(t, dir, dated, "llama3", NULL);
    expect(c, CHAT(MSG("user", "x")), false, "{bos}{head}user{/head}\n\nx{eot}");
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
    struct tokenizer *t =
        open_tokenizer(dir, "{\"bos_token\": \"<|begin_of_text|>\", \"add_bos_token\": true}");
    assert_int_equal(template_open(&c, t, dir, "auto", NULL, NULL), 0); /* no template at all */
    assert_string_equal(template_name(c), "raw");
    expect(c, CHAT(MSG("user", "a "), MSG("poet", "b")), true, "{bos}a b");
    assert_int_equal(template_encode_raw(c, "x<|im_end|>", 11, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(shown(&v), "{bos}x<|im_end|>");
    assert_int_equal(template_encode_raw(c, "\xff", 1, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_int_equal(v.n, 12);
    assert_int_equal(template_end(c, true), -1); /* three well-known names: no EOS can be told */
    template_close(c);
    tokenizer_close(t);
    t = open_tokenizer(dir, CONFIG);
    assert_int_equal(template_open(&c, t, dir, "raw", "Sys: ", NULL), 0);
    expect(c, CHAT(MSG("user", "a")), false, "Sys: a");
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
    struct tokenizer *t =
        open_tokenizer(dir, "{\"eos_token\": \"<|endoftext|>\", \"chat_template\": [{\"name\": "
                            "\"tool_use\", \"template\": \"x\"}, "
                            "{\"name\": \"default\", \"template\": \"{{ '<|im_start|>' }}\"}]}");
    assert_int_equal(template_open(&c, t, dir, "auto", NULL, NULL), 0);
    assert_string_equal(template_name(c), "chatml");
    template_close(c);
    /* the file of its own comes first */
    c = open_with(t, dir, "{{ '<|start_header_id|>' }}", "auto", NULL);
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
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    struct chat_template *c = NULL;
    assert_int_equal(template_open(&c, t, dir, "zephyr", "S", NULL), 0);
    expect(c, CHAT(MSG("user", " a "), MSG("assistant", "b"), MSG("user", "c")), true,
           "<|system|>\nS{end}\n<|user|>\n a {end}\n<|assistant|>\nb{end}\n<|user|>\nc{end}\n"
           "<|assistant|>\n");
    assert_int_equal(template_end(c, true), 256);
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "alpaca", NULL, NULL), 0);
    expect(c, CHAT(MSG("system", "S"), MSG("user", "a"), MSG("assistant", "b")), true,
           "S\n\n### Instruction:\na\n\n### Response:\nb{end}\n\n### Response:\n");
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "llama2", NULL, NULL), 0);
    expect(c, CHAT(MSG("system", "S"), MSG("user", "a "), MSG("assistant", " b"), MSG("user", "c")),
           true, "{bos}[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b {end}{bos}[INST] c [/INST]");
    struct ids v = { 0 };
    assert_int_equal(template_encode_response(c, true, " x\n", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(shown(&v), " x ");
    v.n = 0; /* a string row is text as it is */
    assert_int_equal(template_encode_response(c, false, " x\n", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(shown(&v), " x\n");
    v.n = 0;
    const struct message twice[] = { MSG("user", "a"), MSG("user", "b") },
                         alone = MSG("system", "S");
    assert_int_equal(template_encode(c, twice, 2, true, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "message 2 is of role \"user\""));
    assert_int_equal(template_encode(c, &alone, 1, true, SPECIALS_AS_TEXT, &v), ERR_INPUT);
    template_close(c);
    assert_int_equal(template_open(&c, t, dir, "llama3", NULL, NULL), 0);
    assert_int_equal(template_encode_response(c, true, " x\n", 3, SPECIALS_AS_TEXT, &v), 0);
    assert_string_equal(shown(&v), "x");
    ids_release(&v);
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

static void test_template__pieces(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    struct chat_template *c = NULL;
    static const char good[] =
        "{\"system\": [\"<|im_start|>S:\", \"\\n\"], \"user\": [\"U:\", \"\\n\"], \"assistant\": "
        "[\"A:\", \"<|eot_id|>\\n\"], \"bos\": true, \"trim\": true, \"default_system\": \"D\"}";
    assert_int_equal(template_open(&c, t, dir, good, NULL, NULL), 0);
    assert_string_equal(template_name(c), "pieces");
    assert_int_equal(template_end(c, true), 262);
    expect(c, CHAT(MSG("user", " a"), MSG("assistant", "b"), MSG("user", "<|eot_id|>")), true,
           "{bos}{start}S:D\nU:a\nA:b{eot}\nU:<|eot_id|>\nA:");
    template_close(c);
#define ROLES_ "\"user\": [\"U:\", \"\\n\"], \"assistant\": [\"A:\", \"!\"]"
    assert_int_equal(template_open(&c, t, dir,
                                   "{" ROLES_ ", \"end\": \"<|im_end|>\", \"generation\": \"G\"}",
                                   NULL, NULL),
                     0);
    expect(c, CHAT(MSG("user", "a")), true, "U:a\nG");
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
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct chat_template *c = open_with(t, dir, row[i][0], "auto", NULL);
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
    expect(c, CHAT(MSG("user", "a")), false,
           "{head}system{/head}\n\nCutting Knowledge Date: December 2023\nToday Date: 2 Feb "
           "2025\n\n{eot}{head}user{/head}\n\na{eot}");
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

#define LOOP(body) "{{ bos_token }}{% for message in messages %}" body "{% endfor %}"
#define ASK        "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
#define INST_TURNS(place, user, answer)                                                            \
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] "    \
    "%}{%- "                                                                                       \
    "endif %}{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' " \
    "%}"                                                                                           \
    "{%- if " place " and system_message is defined %}{{- '" user                                  \
    "' + system_message + '\\n\\n' + "                                                             \
    "message['content'] + '[/INST]' }}{%- else %}{{- '" user                                       \
    "' + message['content'] + '[/INST]' }}"                                                        \
    "{%- endif %}{%- elif message.tool_calls %}{{- '[TOOL_CALLS]' + tools|tojson }}{%- else "      \
    "%}{{- " answer " + eos_token }}{%- endif %}{%- endfor %}"

/* Templates that are read as they stand. */
static void test_template__read(void **state)
{
    (void)state;
    static const struct {
        const char *jinja, *prompt, *whole, *response; /* of U, A, V and the answer " B " */
    } row[] = {
        { LOOP("{% if message['role'] == 'user' %}{{ 'U:' + message['content'] }}{% elif "
               "message['role'] == 'assistant' %}{{ 'A:' + message['content'] + eos_token }}{% "
               "endif %}") ASK,
          "{bos}U:UA:A{end}U:VA:", "{bos}U:UA:A{end}U:VA: B {end}", " B " },
        { LOOP("\n  {% if ( message.role == \"user\" ) %}\n{{ \"U:\" ~ message.content | trim }}\n "
               " {%- "
               "elif message.role == \"assistant\" -%}\n  {{ 'A:' ~ message.content.strip() ~ "
               "eos_token "
               "}}{% else %}{{ raise_exception('no') }}{% endif %}\n") ASK,
          "{bos}U:UA:A{end}U:VA:", "{bos}U:UA:A{end}U:VA:B{end}", "B" },
        { LOOP(
              "{{ '<' + message['role'] + '>' + message['content'] + eos_token }}") "{% if "
                                                                                    "add_"
                                                                                    "generation_"
                                                                                    "prompt %}{{ "
                                                                                    "'<assistant>' "
                                                                                    "}}{% else "
                                                                                    "%}{{ 'Z' }}{% "
                                                                                    "endif %}",
          "{bos}<user>U{end}<assistant>A{end}<user>V{end}<assistant>",
          "{bos}<user>U{end}<assistant>A{end}<user>V{end}<assistant> B {end}Z", " B " },
        { INST_TURNS("loop.last", "[INST] ", "' ' + message['content']|trim"),
          "{bos}[INST] U[/INST] A{end}[INST] V[/INST]",
          "{bos}[INST] U[/INST] A{end}[INST] V[/INST] B{end}", " B" },
        { INST_TURNS("loop.first", "[INST]", "message['content']"),
          "{bos}[INST]U[/INST]A{end}[INST]V[/INST]",
          "{bos}[INST]U[/INST]A{end}[INST]V[/INST] B {end}", " B " },
    };
    char *dir = fixture_dir();
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct chat_template *c = open_with(t, dir, row[i].jinja, "auto", NULL);
        struct ids v = { 0 };
        expect(c, CHAT(MSG("user", "U"), MSG("assistant", "A"), MSG("user", "V")), true,
               row[i].prompt);
        expect(c,
               CHAT(MSG("user", "U"), MSG("assistant", "A"), MSG("user", "V"),
                    MSG("assistant", " B ")),
               false, row[i].whole);
        assert_int_equal(template_encode_response(c, true, " B ", 3, SPECIALS_AS_TEXT, &v), 0);
        assert_string_equal(shown(&v), row[i].response);
        assert_int_equal(template_end(c, true), 256);
        ids_release(&v);
        template_close(c);
    }
    /* where the system message goes */
    static const char *const system[] = { "{bos}[INST]U[/INST]A{end}[INST]S\n\nV[/INST]",
                                          "{bos}[INST]S\n\nU[/INST]A{end}[INST]V[/INST]" };
    for (int i = 0; i < 2; i++) {
        struct chat_template *c =
            open_with(t, dir,
                      i ? INST_TURNS("loop.first", "[INST]", "message['content']")
                        : INST_TURNS("loop.last", "[INST]", "message['content']"),
                      "auto", "S");
        expect(c, CHAT(MSG("user", "U"), MSG("assistant", "A"), MSG("user", "V")), true, system[i]);
        struct ids v = { 0 };
        assert_int_equal(template_encode(c, CHAT(MSG("user", "U"), MSG("user", "V")), true,
                                         SPECIALS_AS_TEXT, &v),
                         ERR_INPUT);
        assert_non_null(strstr(err_msg(), "in turn; message 2 is of role \"user\""));
        ids_release(&v);
        template_close(c);
    }
    tokenizer_close(t);
    fixture_remove(dir);
}

/* What is not understood to the last tag is refused, and named. Cut anywhere, nothing worse happens. */
static void test_template__not_read(void **state)
{
    (void)state;
    static const char *const row[][2] = {
        { LOOP("{% if message['role'] == 'user' %}{{ 'U' + message['content'] }}{% endif %}"), "" },
        { LOOP("{{ message['content'] + eos_token }}{% if loop.last %}x{% endif %}"),
          "if loop.last" },
        { LOOP("{{ message['content'][1:] + eos_token }}"), "message['content'][1:] + eos_token" },
        { LOOP("{{ message['content'] + message['content'] + eos_token }}"), "" },
        { LOOP("{{ message['content'] + today + eos_token }}"), "today" },
        { LOOP("{{ message['content'] + eos_token }}") "{{ tools }}", "tools" },
        { "{{ 'Hello' }}" LOOP("{{ message['content'] + eos_token }}"), "'Hello'" },
        { LOOP("{{ 'A:' + message['content'] + eos_token }}"), "" }, /* nothing asks for "A:" */
        { LOOP("{{ message['content'] }}") ASK, "" },
        { LOOP("{{ message['content'] + 'x' }}"), "does not begin with an added token" },
        { LOOP("{{ 'a\\u0041' + message['content'] + eos_token }}"), "u0041" },
        { "{% for message in messages %}{{ message['content'] + eos_token }}", "" },
        { INST_TURNS("loop.length", "[INST]", "message['content']"), "" },
        { INST_TURNS("loop.last", "[INST]", "'A:' + message['content']"), "" },
        { INST_TURNS("loop.last", "[INST]", "message['content']") "{{ '[INST]' + x }}", "" },
    };
    char *dir = fixture_dir();
    struct tokenizer *t = open_tokenizer(dir, CONFIG);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct template_style s = { 0 };
        if (template_style_read(&s, row[i][0], "t.jinja", t) != ERR_INPUT)
            fail_msg("row %zu is read", i);
        if (!strstr(err_msg(), row[i][1])) fail_msg("row %zu: %s", i, err_msg());
        template_style_release(&s);
    }
    static const char whole[] = INST_TURNS("loop.last", "[INST] ", "' ' + message['content']|trim")
        LOOP("{# a \" #}\n {%- if message.role == \"us\\\"er\" -%} {{ 'U' ~ "
             "message.content.strip() }}{% endif %}") ASK;
    char text[sizeof whole];
    for (size_t from = 0; from < sizeof whole - 1; from += 7)
        for (size_t n = 1; n < sizeof whole - from; n++) {
            struct template_style s = { 0 };
            memcpy(text, whole + from, n);
            text[n] = 0;
            template_style_read(&s, text, "t.jinja", t);
            template_style_release(&s);
        }
    tokenizer_close(t);
    fixture_remove(dir);
}

/* A token that takes along white space does so beside the template's text and the message's. */
static void test_template__stripping_tokens(void **state)
{
    (void)state;
    char *dir = fixture_dir();
    fixture_write(dir, "tokenizer_config.json", "{\"eos_token\": \"<e>\"}");
    struct tokenizer *t = fixture_open(
        dir,
        fixture_bytes(&(struct fixture){
            .added = "[{\"id\": 256, \"content\": \"<u>\", \"special\": true, \"rstrip\": true},"
                     "{\"id\": 257, \"content\": \"<a>\", \"special\": true, \"lstrip\": true},"
                     "{\"id\": 258, \"content\": \"<e>\", \"special\": true}]" }));
    struct chat_template *c =
        open_with(t, dir,
                  "{% for message in messages %}{% if message.role == 'user' %}{{ '<u>\\n' + "
                  "message.content + "
                  "'\\n' }}{% elif message.role == 'assistant' %}{{ '<a>\\n' + message.content + "
                  "eos_token }}{% "
                  "endif %}{% endfor %}{% if add_generation_prompt %}{{ '<a>\\n' }}{% endif %}",
                  "auto", NULL);
    expect(c, CHAT(MSG("user", " x y ")), true, "{end}x y{start}\n");
    expect(c, CHAT(MSG("user", " \n"), MSG("assistant", " ")), false, "{end}{start}\n {stop}");
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
        cmocka_unit_test(test_template__read),
        cmocka_unit_test(test_template__not_read),
        cmocka_unit_test(test_template__stripping_tokens),
        cmocka_unit_test(test_template__raw),
        cmocka_unit_test(test_template__sources_and_refusals),
        cmocka_unit_test(test_template__golden_qwen),
        cmocka_unit_test(test_template__golden_llama),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
