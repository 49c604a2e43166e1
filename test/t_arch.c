/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../src/io/file.h"
#include "../src/model/arch.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/t_arch-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return dir_remove(dir);
}

static int load(struct arch *a, const char *text)
{
    char path[96];
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(file_write_all(path, text, strlen(text)), 0);
    return arch_load(a, dir);
}

/* A config.json of this type with `more` put before the closing brace (it starts with a comma, or
 * is empty). */
static int load_with(struct arch *a, const char *type, const char *more)
{
    char text[2048];
    snprintf(text, sizeof text,
             "{\n\"model_type\": \"%s\",\n\"hidden_size\": 64, \"intermediate_size\": 96, "
             "\"num_hidden_layers\": 2,\n"
             "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 300%s%s\n}\n",
             type, *more ? ",\n" : "", more);
    return load(a, text);
}

static void expect_error(int rc, const char *part)
{
    assert_int_equal(rc, ERR_INPUT);
    if (!strstr(err_msg(), part)) fail_msg("\"%s\" does not contain \"%s\"", err_msg(), part);
    if (strstr(part, "missing")) return;
    assert_non_null(strstr(err_msg(), "config.json:"));
}

static void test_arch__defaults(void **state)
{
    struct arch a;
    (void)state;
    assert_int_equal(load_with(&a, "llama", ""), 0);
    assert_string_equal(a.model_type, "llama");
    assert_int_equal(a.C, 64);
    assert_int_equal(a.F, 96);
    assert_int_equal(a.L, 2);
    assert_int_equal(a.H, 4);
    assert_int_equal(a.K, 2);
    assert_int_equal(a.D, 16);
    assert_int_equal(a.V, 300);
    assert_int_equal(a.max_positions, 2048);
    assert_false(a.tied || a.qkv_bias || a.o_bias || a.mlp_bias || a.qk_norm || a.rope_llama3);
    assert_true(a.rms_eps == 1e-6 && a.rope_theta == 10000 && a.init_range == 0.02);
    assert_string_equal(a.dtype, "");
    assert_int_equal(load_with(&a, "qwen2", ""), 0);
    assert_true(a.qkv_bias && !a.o_bias && !a.qk_norm && a.D == 16 && a.max_positions == 32768);
    assert_int_equal(load_with(&a, "qwen3", ""), 0);
    assert_true(!a.qkv_bias && !a.o_bias && a.qk_norm);
    assert_int_equal(a.D, 128); /* Qwen3's class says so */
}

static void test_arch__optional_keys(void **state)
{
    struct arch a;
    (void)state;
    assert_int_equal(
        load_with(&a, "llama",
                  "\"attention_bias\": true, \"mlp_bias\": true, \"head_dim\": 8, "
                  "\"rms_norm_eps\": 1e-05,"
                  "\"tie_word_embeddings\": true, \"rope_theta\": 500000, \"pretraining_tp\": 1,"
                  "\"initializer_range\": 0.05, \"max_position_embeddings\": 77, \"unknown\": [1]"),
        0);
    assert_true(a.qkv_bias && a.o_bias && a.mlp_bias && a.tied && a.D == 8);
    assert_true(a.rms_eps == 1e-5 && a.rope_theta == 500000 && a.init_range == 0.05 &&
                a.max_positions == 77);
    assert_int_equal(load_with(&a, "qwen3", "\"attention_bias\": true, \"head_dim\": 32"), 0);
    assert_true(a.qkv_bias && a.o_bias && a.D == 32);
    /* Qwen2 reads neither of these */
    assert_int_equal(load_with(&a, "qwen2", "\"attention_bias\": false, \"mlp_bias\": true"), 0);
    assert_true(a.qkv_bias && !a.o_bias && !a.mlp_bias);
    /* null is "not set"; for key-value heads it means as many as query heads */
    assert_int_equal(
        load_with(&a, "llama", "\"head_dim\": null, \"rope_scaling\": null, \"dtype\": null"), 0);
    assert_int_equal(a.D, 16);
    assert_int_equal(
        load(&a, "{\"model_type\": \"qwen2\", \"hidden_size\": 64, \"intermediate_size\": 96, "
                 "\"num_hidden_layers\": 2,"
                 "\"num_attention_heads\": 4, \"num_key_value_heads\": null, \"vocab_size\": 300}"),
        0);
    assert_int_equal(a.K, 4);
    assert_int_equal(load(&a, "{\"model_type\": \"llama\", \"hidden_size\": 64, "
                              "\"intermediate_size\": 96, \"num_hidden_layers\": 2,"
                              "\"num_attention_heads\": 4, \"vocab_size\": 300}"),
                     0);
    assert_int_equal(a.K, 4);
    expect_error(load(&a, "{\"model_type\": \"qwen2\", \"hidden_size\": 64, \"intermediate_size\": "
                          "96, \"num_hidden_layers\": 2,"
                          "\"num_attention_heads\": 4, \"vocab_size\": 300}"),
                 "num_key_value_heads: 32 (the default of this model type) does not divide "
                 "num_attention_heads (4)");
}

/* As transformers 4 and 5 write them. */
static void test_arch__rope_spellings(void **state)
{
    static const char *const llama3[] = {
        "\"rope_theta\": 500000.0, \"max_position_embeddings\": 131072, \"rope_scaling\": "
        "{\"factor\": 32.0, \"high_freq_factor\": 4.0,"
        "\"low_freq_factor\": 1.0, \"original_max_position_embeddings\": 8192, \"rope_type\": "
        "\"llama3\"}, \"torch_dtype\": \"bfloat16\"",
        "\"rope_theta\": 500000.0, \"rope_scaling\": {\"factor\": 32, \"high_freq_factor\": 4, "
        "\"low_freq_factor\": 1,"
        "\"original_max_position_embeddings\": 8192, \"type\": \"llama3\"}, \"torch_dtype\": "
        "\"bfloat16\"",
        "\"rope_parameters\": {\"factor\": 32.0, \"high_freq_factor\": 4.0, \"low_freq_factor\": "
        "1.0, \"rope_theta\": 500000.0,"
        "\"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}, \"dtype\": "
        "\"bfloat16\"",
    };
    static const char *const plain[] = {
        "\"rope_theta\": 1000000.0, \"rope_scaling\": null, \"torch_dtype\": \"float16\"",
        "\"rope_theta\": 1000000, \"rope_scaling\": {\"rope_type\": \"default\"}, \"torch_dtype\": "
        "\"float16\"",
        "\"rope_parameters\": {\"rope_theta\": 1000000.0, \"rope_type\": \"default\"}, \"dtype\": "
        "\"float16\"",
        "\"rope_theta\": 1000000.0, \"rope_parameters\": {\"rope_type\": \"default\"}, \"dtype\": "
        "\"float16\", \"torch_dtype\": \"float32\"",
    };
    struct arch a;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(llama3); i++) {
        assert_int_equal(load_with(&a, "llama", llama3[i]), 0);
        assert_true(a.rope_llama3 && a.rope_theta == 500000 && a.rope_factor == 32 &&
                    a.rope_low == 1 && a.rope_high == 4);
        assert_int_equal(a.rope_original, 8192);
        assert_string_equal(a.dtype, "bfloat16");
    }
    for (size_t i = 0; i < COUNT_OF(plain); i++) {
        assert_int_equal(load_with(&a, "qwen2", plain[i]), 0);
        assert_true(!a.rope_llama3 && a.rope_theta == 1e6);
        assert_string_equal(a.dtype, "float16");
    }
}

static void test_arch__transformers_5_extras(void **state)
{
    struct arch a;
    (void)state;
    assert_int_equal(
        load_with(&a, "qwen2",
                  "\"architectures\": [\"Qwen2ForCausalLM\"], \"attention_dropout\": 0.0, "
                  "\"bos_token_id\": null,"
                  "\"eos_token_id\": [1, 2], \"hidden_act\": \"silu\", \"layer_types\": "
                  "[\"full_attention\", \"full_attention\"],"
                  "\"max_window_layers\": 28, \"sliding_window\": null, \"use_sliding_window\": "
                  "false, \"use_cache\": true,"
                  "\"transformers_version\": \"5.24.0\", \"pad_token_id\": null, "
                  "\"quantization_config\": null,"
                  "\"num_experts\": 0, \"logit_scaling\": 1.0, \"partial_rotary_factor\": 1.0"),
        0);
    /* transformers 4's Qwen2.5: the window is there and not in use */
    assert_int_equal(
        load_with(
            &a, "qwen2",
            "\"sliding_window\": 131072, \"use_sliding_window\": false, \"use_mrope\": false"),
        0);
}

static void test_arch__refusals(void **state)
{
    static const struct {
        const char *type, *more, *message;
    } rows[] = {
        { "qwen2", "\"use_sliding_window\": true",
          "use_sliding_window: not supported: sliding window" },
        { "llama", "\"sliding_window\": 4096", "sliding_window: not supported" },
        { "qwen3", "\"layer_types\": [\"full_attention\", \"sliding_attention\"]",
          "layer_types/1: \"sliding_attention\"" },
        { "qwen3", "\"layer_types\": [\"full_attention\"]",
          "layer_types: expected a list of 2 names" },
        { "llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}",
          "rope_scaling.type: \"linear\" is not supported" },
        { "llama", "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}",
          "rope_scaling.type: \"dynamic\" is not" },
        { "qwen2", "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}",
          "rope_scaling.rope_type: \"yarn\" is not" },
        { "llama", "\"rope_parameters\": {\"rope_type\": \"longrope\"}",
          "rope_parameters.rope_type: \"longrope\" is not" },
        { "llama", "\"rope_scaling\": \"linear\"", "rope_scaling: expected an object or null" },
        { "llama", "\"rope_scaling\": {\"rope_type\": 3}",
          "rope_scaling.rope_type: expected a string" },
        { "llama", "\"rope_scaling\": {\"rope_type\": \"llama3\"}",
          "rope_scaling.factor: is missing" },
        { "llama",
          "\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
          "\"high_freq_factor\": 4}",
          "high_freq_factor: 4 is not above low_freq_factor (4)" },
        { "llama",
          "\"rope_scaling\": {\"type\": \"default\"}, \"rope_parameters\": {\"rope_theta\": 5}",
          "keep one of them" },
        { "qwen3", "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}",
          "rotary embeddings by layer type" },
        { "qwen3", "\"rope_parameters\": {\"partial_rotary_factor\": 0.5}",
          "rope_parameters.partial_rotary_factor: not supported" },
        { "llama", "\"partial_rotary_factor\": 0.5", "partial_rotary_factor: not supported" },
        { "llama", "\"num_experts\": 8", "num_experts: not supported: mixtures of experts" },
        { "llama", "\"num_local_experts\": 8", "num_local_experts: not supported" },
        { "llama", "\"hidden_act\": \"gelu\"", "hidden_act: \"gelu\" is not supported (silu)" },
        { "qwen2", "\"architectures\": [\"Qwen2ForSequenceClassification\"]",
          "architectures: \"Qwen2ForSequenceClassification\" is not" },
        { "qwen2", "\"architectures\": \"Qwen2ForCausalLM\"",
          "architectures: expected a list of one name" },
        { "mistral", "", "model_type: \"mistral\" is not supported (qwen2, qwen3 or llama)" },
        { "qwen2_moe", "", "model_type: \"qwen2_moe\" is not supported" },
        { "llama", "\"quantization_config\": {\"quant_method\": \"gptq\"}",
          "quantization_config: not supported: quantised" },
        { "llama", "\"attention_multiplier\": 0.015625", "attention_multiplier: not supported" },
        { "llama", "\"logit_scaling\": 8.0", "logit_scaling: not supported" },
        { "llama", "\"final_logit_softcapping\": 30.0", "final_logit_softcapping: not supported" },
        { "llama", "\"attention_dropout\": 0.1", "attention_dropout: not supported: dropout" },
        { "qwen2", "\"dual_chunk_attention_config\": {\"chunk_size\": 1}",
          "dual_chunk_attention_config: not supported" },
        { "llama", "\"torch_dtype\": \"float8_e4m3fn\"",
          "torch_dtype: \"float8_e4m3fn\" is not supported" },
        { "llama", "\"head_dim\": 7", "head_dim: a head of 7 is not supported" },
        { "llama", "\"head_dim\": 0", "head_dim: 0 is outside [1, 1024]" },
        { "llama", "\"rms_norm_eps\": 0", "rms_norm_eps: 0 is outside" },
        { "llama", "\"rms_norm_eps\": \"1e-6\"", "rms_norm_eps: expected a number" },
        { "llama", "\"max_position_embeddings\": 1.5",
          "max_position_embeddings: expected an integer" },
        { "llama", "\"tie_word_embeddings\": 1", "tie_word_embeddings: expected true or false" },
        { "llama", "\"rope_theta\": -1", "rope_theta: -1 is outside" },
        { "llama", "\"initializer_range\": -0.1", "initializer_range: -0.1 is outside" },
    };
    struct arch a;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_error(load_with(&a, rows[i].type, rows[i].more), rows[i].message);
}

static void test_arch__places_and_all_in_one_pass(void **state)
{
    struct arch a;
    char want[256];
    (void)state;
    expect_error(load_with(&a, "llama", "\"hidden_act\": \"relu\",\n  \"num_experts\": 4"),
                 "hidden_act");
    snprintf(want, sizeof want, "%s/config.json:5:1: error: hidden_act: \"relu\"", dir);
    assert_non_null(strstr(err_msg(), want));
    snprintf(want, sizeof want, "%s/config.json:6:3: error: num_experts:", dir);
    assert_non_null(strstr(err_msg(), want));
}

static void test_arch__shapes(void **state)
{
    static const struct {
        const char *text, *message;
    } rows[] = {
        { "[]", "expected an object" },
        { "{}", "model_type: is missing" },
        { "{\"model_type\": 3}", "model_type: expected a string" },
        { "{\"model_type\": \"llama\"}", "hidden_size: is missing" },
        { "{\"model_type\": \"llama\", \"hidden_size\": -64, \"intermediate_size\": 96, "
          "\"num_hidden_layers\": 2,"
          "\"num_attention_heads\": 4, \"vocab_size\": 300}",
          "hidden_size: -64 is outside [1, 1048576]" },
        { "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 96, "
          "\"num_hidden_layers\": 0,"
          "\"num_attention_heads\": 4, \"vocab_size\": 300}",
          "num_hidden_layers: 0 is outside" },
        { "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 96, "
          "\"num_hidden_layers\": 2,"
          "\"num_attention_heads\": 4, \"num_key_value_heads\": 3, \"vocab_size\": 300}",
          "num_key_value_heads: 3 does not divide num_attention_heads (4)" },
        { "{\"model_type\": \"qwen2\", \"hidden_size\": 66, \"intermediate_size\": 96, "
          "\"num_hidden_layers\": 2,"
          "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"vocab_size\": 300}",
          "hidden_size: 66 is not a multiple of num_attention_heads (4)" },
        { "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 96, "
          "\"num_hidden_layers\": 2,"
          "\"num_attention_heads\": 4, \"vocab_size\": 9223372036854775807}",
          "vocab_size: 9223372036854775807 is outside" },
        { "{\"model_type\": \"llama\", \"hidden_size\": 1048576, \"intermediate_size\": 1048576, "
          "\"num_hidden_layers\": 4096,"
          "\"num_attention_heads\": 1024, \"vocab_size\": 16777216}",
          "parameters is too large" },
        { "{\"model_type\": \"llama\",", "config.json" },
        { "{\"model_type\": \"llama\", \"model_type\": \"llama\"}", "config.json" },
    };
    struct arch a;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_error(load(&a, rows[i].text), rows[i].message);
    assert_int_equal(arch_load(&a, "/nonexistent-model"), ERR_INPUT);
    assert_non_null(strstr(err_msg(), "/nonexistent-model"));
}

static void test_arch__parameters(void **state)
{
    struct arch a;
    (void)state;
    /* LLaMA 3.2 1B and Qwen2.5 0.5B, as published: 1,235,814,400 and 494,032,768 */
    assert_int_equal(load(&a, "{\"model_type\": \"llama\", \"hidden_size\": 2048, "
                              "\"intermediate_size\": 8192, \"num_hidden_layers\": 16,"
                              "\"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
                              "\"head_dim\": 64, \"vocab_size\": 128256,"
                              "\"tie_word_embeddings\": true}"),
                     0);
    assert_int_equal(arch_parameters(&a), 1235814400);
    assert_int_equal(
        load(&a, "{\"model_type\": \"qwen2\", \"hidden_size\": 896, \"intermediate_size\": 4864, "
                 "\"num_hidden_layers\": 24,"
                 "\"num_attention_heads\": 14, \"num_key_value_heads\": 2, \"vocab_size\": 151936,"
                 "\"tie_word_embeddings\": true}"),
        0);
    assert_int_equal(arch_parameters(&a), 494032768);
}

static void test_arch__rope_table(void **state)
{
    struct arch a = { .D = 64, .rope_theta = 500000 };
    float *t = calloc(64 * 200, sizeof *t);
    (void)state;
    assert_non_null(t);
    arch_rope_table(&a, t, 200);
    for (int p = 0; p < 200; p += 7)
        for (int i = 0; i < 32; i++) {
            const double angle = p * pow(500000, -2.0 * i / 64);
            assert_true(fabs((double)t[p * 64 + i] - cos(angle)) < 2e-5);
            assert_true(fabs((double)t[p * 64 + 32 + i] - sin(angle)) < 2e-5);
        }
    a.rope_llama3 = true;
    a.rope_factor = 32;
    a.rope_low = 1;
    a.rope_high = 4;
    a.rope_original = 8192;
    arch_rope_table(&a, t, 200);
    int kept = 0, divided = 0, between = 0;
    for (int i = 0; i < 32; i++) {
        const double f = pow(500000, -2.0 * i / 64), wave = 2 * acos(-1.0) / f;
        const double s = (8192 / wave - 1) / 3;
        const double want = wave < 2048 ? f : wave > 8192 ? f / 32 : (1 - s) * f / 32 + s * f;
        kept += wave < 2048;
        divided += wave > 8192;
        between += wave >= 2048 && wave <= 8192;
        assert_true(fabs((double)t[199 * 64 + i] - cos(199 * want)) < 4e-5);
        assert_true(fabs((double)t[199 * 64 + 32 + i] - sin(199 * want)) < 4e-5);
    }
    assert_true(kept > 0 && divided > 0 && between > 0);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arch__defaults),
        cmocka_unit_test(test_arch__optional_keys),
        cmocka_unit_test(test_arch__rope_spellings),
        cmocka_unit_test(test_arch__transformers_5_extras),
        cmocka_unit_test(test_arch__refusals),
        cmocka_unit_test(test_arch__places_and_all_in_one_pass),
        cmocka_unit_test(test_arch__shapes),
        cmocka_unit_test(test_arch__parameters),
        cmocka_unit_test(test_arch__rope_table),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
