/* SPDX-License-Identifier: MIT */
#include "template_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>
#include "../src/data/template_impl.h"

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
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct chat_template *c = template_fixture_open(t, dir, row[i].jinja, "auto", NULL);
        struct ids v = { 0 };
        template_fixture_expect(c, CHAT(MSG("user", "U"), MSG("assistant", "A"), MSG("user", "V")),
                                true, row[i].prompt);
        template_fixture_expect(c,
                                CHAT(MSG("user", "U"), MSG("assistant", "A"), MSG("user", "V"),
                                     MSG("assistant", " B ")),
                                false, row[i].whole);
        assert_int_equal(template_encode_response(c, true, " B ", 3, SPECIALS_AS_TEXT, &v), 0);
        assert_string_equal(template_fixture_shown(&v), row[i].response);
        assert_int_equal(template_end(c, true), 256);
        ids_release(&v);
        template_close(c);
    }
    /* where the system message goes */
    static const char *const system[] = { "{bos}[INST]U[/INST]A{end}[INST]S\n\nV[/INST]",
                                          "{bos}[INST]S\n\nU[/INST]A{end}[INST]V[/INST]" };
    for (int i = 0; i < 2; i++) {
        struct chat_template *c =
            template_fixture_open(t, dir,
                                  i ? INST_TURNS("loop.first", "[INST]", "message['content']")
                                    : INST_TURNS("loop.last", "[INST]", "message['content']"),
                                  "auto", "S");
        template_fixture_expect(c, CHAT(MSG("user", "U"), MSG("assistant", "A"), MSG("user", "V")),
                                true, system[i]);
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
    struct tokenizer *t = template_fixture_tokenizer(dir, TEMPLATE_CONFIG);
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
    struct chat_template *c = template_fixture_open(
        t, dir,
        "{% for message in messages %}{% if message.role == 'user' %}{{ '<u>\\n' + "
        "message.content + "
        "'\\n' }}{% elif message.role == 'assistant' %}{{ '<a>\\n' + message.content + "
        "eos_token }}{% "
        "endif %}{% endfor %}{% if add_generation_prompt %}{{ '<a>\\n' }}{% endif %}",
        "auto", NULL);
    template_fixture_expect(c, CHAT(MSG("user", " x y ")), true, "{end}x y{start}\n");
    template_fixture_expect(c, CHAT(MSG("user", " \n"), MSG("assistant", " ")), false,
                            "{end}{start}\n {stop}");
    template_close(c);
    tokenizer_close(t);
    fixture_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template__read),
        cmocka_unit_test(test_template__not_read),
        cmocka_unit_test(test_template__stripping_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
