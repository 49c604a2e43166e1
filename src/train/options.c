/* SPDX-License-Identifier: MIT */
#include "options.h"
#include "../dist/link.h"
#include "../model/arch.h"
#include <string.h>

static const struct choice init_choices[] = {
    { "pretrained", MODEL_PRETRAINED, NULL },
    { "random", MODEL_RANDOM, NULL },
    { NULL, 0, NULL },
};
static const struct choice dtype_choices[] = {
    { "bfloat16", DTYPE_BFLOAT16, NULL },
    { "float32", DTYPE_FLOAT32, NULL },
    { NULL, 0, NULL },
};
static const struct choice save_choices[] = {
    { "auto", SAVE_AUTO, NULL },
    { "float32", SAVE_FLOAT32, NULL },
    { "bfloat16", SAVE_BFLOAT16, NULL },
    { "float16", SAVE_FLOAT16, NULL },
    { NULL, 0, NULL },
};
static const struct choice attention_choices[] = {
    { "auto", ATTENTION_AUTO, NULL },
    { "builtin", ATTENTION_BUILTIN, NULL },
    { "cudnn", ATTENTION_CUDNN, NULL },
    { NULL, 0, NULL },
};
static const struct choice moment_choices[] = {
    { "float32", DTYPE_FLOAT32, NULL },
    { "bfloat16", DTYPE_BFLOAT16, NULL },
    { NULL, 0, NULL },
};
static const struct choice master_choices[] = {
    { "float32", MASTER_FLOAT32, NULL },
    { "none", MASTER_NONE, NULL },
    { NULL, 0, NULL },
};
static const struct choice quantization_choices[] = {
    { "none", QUANTIZATION_NONE, NULL },
    { "nf4", QUANTIZATION_NF4, NULL },
    { "nf4_double", QUANTIZATION_NF4_DOUBLE, NULL },
    { NULL, 0, NULL },
};
static const struct choice target_choices[] = {
    { "q_proj", LORA_Q, NULL },       { "k_proj", LORA_K, NULL },
    { "v_proj", LORA_V, NULL },       { "o_proj", LORA_O, NULL },
    { "gate_proj", LORA_GATE, NULL }, { "up_proj", LORA_UP, NULL },
    { "down_proj", LORA_DOWN, NULL }, { NULL, 0, NULL },
};
static const struct choice prompt_choices[] = {
    { "raw", PROMPTS_RAW, NULL },
    { "user", PROMPTS_USER, NULL },
    { NULL, 0, NULL },
};
static const struct choice template_choices[] = {
    { "auto", 0, NULL },   { "chatml", 0, NULL }, { "llama3", 0, NULL }, { "llama2", 0, NULL },
    { "zephyr", 0, NULL }, { "alpaca", 0, NULL }, { "raw", 0, NULL },    { NULL, 0, NULL },
};
static const struct choice special_choices[] = {
    { "text", SPECIAL_TEXT, NULL },
    { "error", SPECIAL_ERROR, NULL },
    { "allow", SPECIAL_ALLOW, NULL },
    { NULL, 0, NULL },
};
static const struct choice bad_row_choices[] = {
    { "error", BAD_ROW_ERROR, NULL },
    { "skip", BAD_ROW_SKIP, NULL },
    { NULL, 0, NULL },
};
static const struct choice schedule_choices[] = {
    { "linear", SCHEDULE_LINEAR, NULL },
    { "cosine", SCHEDULE_COSINE, NULL },
    { "constant", SCHEDULE_CONSTANT, NULL },
    { NULL, 0, NULL },
};
static const struct choice gradient_choices[] = {
    { "auto", GRADIENTS_AUTO, NULL },
    { "local", GRADIENTS_LOCAL, NULL },
    { "sharded", GRADIENTS_SHARDED, NULL },
    { NULL, 0, NULL },
};
static const struct choice transport_choices[] = {
    { "auto", LINK_AUTO, NULL },
    { "nccl", LINK_NCCL, NULL },
    { "host", LINK_HOST, NULL },
    { NULL, 0, NULL },
};
static const struct choice export_choices[] = {
    { "stage", EXPORT_STAGE, NULL },
    { "epoch", EXPORT_EPOCH, NULL },
    { NULL, 0, NULL },
};
static const struct choice backend_choices[] = {
    { "auto", BACKEND_AUTO, NULL },
    { "cpu", BACKEND_CPU, NULL },
    { "cuda", BACKEND_CUDA, NULL },
    { NULL, 0, NULL },
};

const struct section section_table[] = {
    { "model", false, "The model that is trained." },
    { "model.lora", true,
      "Low-rank adapters (LoRA): these alone are trained, saved and kept in checkpoints. Absent or "
      "null: the whole model is trained." },
    { "optimizer", false, "Number formats of the optimizer's state." },
    { "reference", false, "The model that the preference losses compare with (all but `orpo`)." },
    { "data", false, "Files and how rows become tokens." },
    { "sft", true,
      "The first stage: supervised fine-tuning on the chosen responses. Absent or null: skipped." },
    { "preference", true, "The second stage: the preference loss. Absent or null: skipped." },
    { "memory", false, "How a step is cut to fit." },
    { "dist", false, "Several ranks." },
    { "checkpoint", false, "What is kept to resume from, and which models are written." },
    { "faults", false, "What a run puts up with." },
    { "logging", false, "Metrics and progress." },
    { "eval", false, "Metrics on data.eval." },
};
const size_t section_count = COUNT_OF(section_table);

enum { STEPS_MAX = 1000000000, TOKENS_MAX = 1 << 20, BATCH_MAX = 1 << 20 };

#define FIELD(path_, field) .path = (path_), .offset = offsetof(struct config, field)
#define AT(field)           FIELD(#field, field)
#define RANGE(lo, hi)       .min = (lo), .max = (hi)

/* the keys that sft and preference share */
#define STAGE_ROWS(s, when, epochs_, rate_)                                                             \
    { AT(s.train),          .type = OPTION_PATHS,                                                       \
      .flags = OPTION_NULL, .use = USE_OWN_TRAIN,                                                       \
      .dflt = "null",       .help = "training data of this stage alone, in place of data.train" },      \
        { AT(s.epochs),                                                                                 \
          .type = OPTION_REAL,                                                                          \
          .flags = OPTION_ABOVE,                                                                        \
          .use = when,                                                                                  \
          RANGE(0, 1e6),                                                                                \
          .dflt = epochs_,                                                                              \
          .help = "passes over the data; a fraction stops within a pass" },                             \
        { AT(s.max_steps),                                                                              \
          .type = OPTION_INT,                                                                           \
          .flags = OPTION_NULL,                                                                         \
          .use = when,                                                                                  \
          RANGE(1, STEPS_MAX),                                                                          \
          .dflt = "null",                                                                               \
          .help = "cap on optimizer steps" },                                                           \
        { AT(s.learning_rate), .type = OPTION_REAL, .flags = OPTION_ABOVE,       .use = when,           \
          RANGE(0, 1),         .dflt = rate_,       .help = "peak learning rate" },                     \
        { AT(s.batch_size),    .type = OPTION_INT, .use = when,                                         \
          RANGE(1, BATCH_MAX), .dflt = "64",       .help = "pairs per optimizer step over all ranks" }, \
        { AT(s.schedule),                                                                               \
          .type = OPTION_CHOICE,                                                                        \
          .use = when,                                                                                  \
          .choices = schedule_choices,                                                                  \
          .dflt = "\"linear\"",                                                                         \
          .help =                                                                                       \
              "learning rate after the warmup: to 0 in a line or a half cosine, or constant" },         \
        { AT(s.warmup_ratio), .type = OPTION_REAL,                                                      \
          .use = when,        RANGE(0, 1),                                                              \
          .dflt = "0.0",      .help = "share of the steps in which the learning rate rises from 0" },   \
        { AT(s.weight_decay), .type = OPTION_REAL,                                                      \
          .use = when,        RANGE(0, 100),                                                            \
          .dflt = "0.0",      .help = "decoupled weight decay, on matrices only" },                     \
        { AT(s.max_grad_norm),                                                                          \
          .type = OPTION_REAL,                                                                          \
          .flags = OPTION_ABOVE,                                                                        \
          .use = when,                                                                                  \
          RANGE(0, 1e12),                                                                               \
          .dflt = "1.0",                                                                                \
          .help = "the gradient is scaled down to this global norm" },                                  \
        { AT(s.shuffle), .type = OPTION_BOOL, .use = when, .dflt = "true",                              \
          .help =                                                                                       \
              "a new order each epoch, a pure function of seed and epoch; false: the file's" },         \
        { AT(s.adam_beta1),                                                                             \
          .type = OPTION_REAL,                                                                          \
          .flags = OPTION_BELOW,                                                                        \
          .use = when,                                                                                  \
          RANGE(0, 1),                                                                                  \
          .dflt = "0.9",                                                                                \
          .help = "AdamW: decay of the first moment" },                                                 \
        { AT(s.adam_beta2),                                                                             \
          .type = OPTION_REAL,                                                                          \
          .flags = OPTION_BELOW,                                                                        \
          .use = when,                                                                                  \
          RANGE(0, 1),                                                                                  \
          .dflt = "0.999",                                                                              \
          .help = "AdamW: decay of the second moment" },                                                \
    {                                                                                                   \
        AT(s.adam_epsilon), .type = OPTION_REAL, .flags = OPTION_ABOVE, .use = when, RANGE(0, 1),       \
                            .dflt = "1e-8",                                                             \
                            .help = "AdamW: added to the root of the second moment"                     \
    }

/* a loss's own options: defaults and lambda's range are those of its row in loss_table */
#define LOSS_ROW(name, bit, ...)                                                          \
    {                                                                                     \
        FIELD("preference." #name, loss_opts.name), .type = OPTION_REAL, .use = USE_LOSS, \
                                                    .loss_bit = bit, __VA_ARGS__          \
    }

/* clang-format off */
const struct option option_table[] = {
    { AT(model.path), .type = OPTION_TEXT, .flags = OPTION_NEEDED,
      .help = "Hugging Face directory: config.json, tokenizer.json, *.safetensors" },
    { AT(model.init), .type = OPTION_CHOICE, .choices = init_choices, .dflt = "\"pretrained\"",
      .help = "the directory's weights, or weights drawn at random from config.json's initializer_range" },
    { AT(model.dtype), .type = OPTION_CHOICE, .choices = dtype_choices, .dflt = "\"bfloat16\"",
      .help = "number format of the computation" },
    { AT(model.save_dtype), .type = OPTION_CHOICE, .choices = save_choices, .dflt = "\"auto\"",
      .help = "number format of the written model; auto: that of the input's files, of adapters float32" },
    { AT(model.attention), .type = OPTION_CHOICE, .choices = attention_choices, .dflt = "\"auto\"",
      .help = "attention on CUDA: the backend's own kernels or cuDNN's; auto: its own" },

    { AT(model.quantization), .type = OPTION_CHOICE, .choices = quantization_choices, .dflt = "\"none\"",
      .help = "of the linear layers' weights under adapters: nf4 holds them in 4 bits (blocks of 64), nf4_double their scales in 8 bits besides; embedding, head and norms stay as they are" },
    { AT(model.lora.rank), .type = OPTION_INT, .use = USE_LORA, RANGE(1, 4096), .dflt = "16",
      .help = "r, the rows of A and columns of B in y = x W^T + s (x A^T) B^T" },
    { AT(model.lora.alpha), .type = OPTION_REAL, .flags = OPTION_ABOVE, .use = USE_LORA, RANGE(0, 1e6), .dflt = "32.0",
      .help = "s = alpha / r" },
    { AT(model.lora.dropout), .type = OPTION_REAL, .flags = OPTION_BELOW, .use = USE_LORA, RANGE(0, 1), .dflt = "0.0",
      .help = "share of what goes into A that is dropped in training; 0: none" },
    { AT(model.lora.path), .type = OPTION_TEXT, .flags = OPTION_NULL, .use = USE_LORA, .dflt = "null",
      .help = "directory of an adapter in PEFT's format to start from, with the same rank, alpha and targets; null: A drawn, B zero" },
    { AT(model.lora.targets), .type = OPTION_SET, .use = USE_LORA, .choices = target_choices,
      .dflt = "[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]",
      .help = "linear layers that get adapters, in every layer" },
    { AT(model.lora.rslora), .type = OPTION_BOOL, .use = USE_LORA, .dflt = "false",
      .help = "s = alpha / sqrt(r) instead" },

    { AT(optimizer.master), .type = OPTION_CHOICE, .choices = master_choices, .dflt = "\"float32\"",
      .help = "master weights beside those of model.dtype \"bfloat16\"; none: the update is rounded stochastically to bfloat16" },
    { AT(optimizer.moments), .type = OPTION_CHOICE, .choices = moment_choices, .dflt = "\"float32\"",
      .help = "AdamW's two moments; bfloat16: rounded stochastically" },

    { AT(reference.path), .type = OPTION_TEXT, .flags = OPTION_NULL, .use = USE_REFERENCE, .dflt = "null",
      .help = "model directory; null: the policy as it stands when the preference stage starts" },
    { AT(reference.cache), .type = OPTION_BOOL, .use = USE_REFERENCE, .dflt = "true",
      .help = "keep the reference's log-probabilities in cache_dir, keyed by weights, token ids, dtype and kernels: runs share them, "
              "whatever the loss" },

    { AT(data.train), .type = OPTION_PATHS, .flags = OPTION_NULL, .use = USE_SHARED_TRAIN, .dflt = "null",
      .help = ".jsonl, .jsonl.gz or .json; needed unless each stage has its own; weight: how often an epoch uses the file's rows" },
    { AT(data.eval), .type = OPTION_PATHS, .flags = OPTION_NULL, .dflt = "null",
      .help = "held-out pairs" },
    { AT(data.chat_template), .type = OPTION_TEXT, .flags = OPTION_TREE, .choices = template_choices, .dflt = "\"auto\"",
      .help = "form of conversations; auto: recognised by the markers in the model's own template; an object: the pieces themselves "
              "(docs/data.md)" },
    { AT(data.template_date), .type = OPTION_TEXT, .flags = OPTION_NULL, .dflt = "null",
      .help = "date in Llama 3.1's system block, such as \"26 Jul 2024\"; null: the constant of the template, so that runs repeat" },
    { AT(data.string_prompts), .type = OPTION_CHOICE, .choices = prompt_choices, .dflt = "\"raw\"",
      .help = "a string prompt is text as it is, or one user turn through the template" },
    { AT(data.system_prompt), .type = OPTION_TEXT, .flags = OPTION_NULL | OPTION_EMPTY, .dflt = "null",
      .help = "put first where a conversation has no system message" },
    { AT(data.max_length), .type = OPTION_INT, RANGE(2, TOKENS_MAX), .dflt = "1024",
      .help = "tokens of prompt and response together" },
    { AT(data.max_prompt_length), .type = OPTION_INT, .flags = OPTION_NULL, RANGE(1, TOKENS_MAX - 1), .dflt = "null",
      .help = "tokens that a prompt keeps (its last) where not all fits; below max_length; null: half of it, rounded down" },
    { AT(data.special_tokens), .type = OPTION_CHOICE, .choices = special_choices, .dflt = "\"text\"",
      .help = "control tokens spelled out in the data: ordinary text, an error, or control tokens" },
    { AT(data.on_bad_row), .type = OPTION_CHOICE, .choices = bad_row_choices, .dflt = "\"error\"",
      .help = "malformed rows end the run, or are left out" },
    { AT(data.max_bad_rows), .type = OPTION_INT, .use = USE_SKIP, RANGE(0, 1e12), .dflt = "0",
      .help = "malformed rows that may be left out" },
    { AT(data.max_line_bytes), .type = OPTION_INT, RANGE(1, 64 << 20), .dflt = "67108864",
      .help = "a longer line ends the run: nobody meant it as one row" },
    { AT(data.max_dropped), .type = OPTION_REAL, RANGE(0, 1), .dflt = "0.05",
      .help = "share of degenerate pairs (empty, equal, nothing left) that may be dropped" },
    { AT(data.subsample), .type = OPTION_REAL, .flags = OPTION_ABOVE, RANGE(0, 1), .dflt = "1.0",
      .help = "share of the pairs that is used, chosen by seed" },
    { AT(data.cache), .type = OPTION_BOOL, .flags = OPTION_FREE, .dflt = "true",
      .help = "keep the data's tokens in cache_dir, keyed by the files' bytes, tokenizer, template and lengths: later runs read these" },

    STAGE_ROWS(sft, USE_SFT, "1.0", "2e-5"),

    { FIELD("preference.loss", loss), .type = OPTION_LOSS, .use = USE_PREFERENCE, .dflt = "\"bdpo\"",
      .help = "see docs/losses.md" },
    LOSS_ROW(beta, LOSS_BETA, RANGE(1e-6, 1000), .help = "scale of the implicit reward"),
    LOSS_ROW(lambda, LOSS_LAMBDA, RANGE(0, 1e6),
             .help = "bdpo: the policy's share of the mixture; dpop: weight of the penalty on a falling chosen response"),
    LOSS_ROW(alpha, LOSS_ALPHA, RANGE(0, 1e6), .help = "weight of the chosen response's NLL"),
    LOSS_ROW(label_smoothing, LOSS_SMOOTHING, RANGE(0, 0.5), .help = "share of pairs whose labels are taken as swapped"),
    STAGE_ROWS(preference, USE_PREFERENCE, "3.0", "5e-7"),

    { AT(memory.micro_batch_tokens), .type = OPTION_INT, .flags = OPTION_AUTO | OPTION_FREE, RANGE(1, 1 << 28), .dflt = "\"auto\"",
      .help = "tokens of a packed micro-batch; auto: chosen with gradient_checkpointing so that the run fits and is fastest" },
    { AT(memory.gradient_checkpointing), .type = OPTION_INT, .flags = OPTION_AUTO | OPTION_SWITCH | OPTION_FREE,
      RANGE(0, CHECKPOINTING_ALL), .dflt = "\"auto\"",
      .help = "layers of which only the inputs are kept and the rest is computed again in the backward pass: none, all, or this many; "
              "auto: as few as the limit allows" },
    { AT(memory.keep_logits), .type = OPTION_TRI, .flags = OPTION_FREE, .dflt = "\"auto\"",
      .help = "keep the logits of responses from the forward to the backward pass, in place of a second product with the whole vocabulary; "
              "auto: where it fits and pays" },
    { AT(memory.limit), .type = OPTION_REAL, .flags = OPTION_AUTO | OPTION_ABOVE | OPTION_FREE, RANGE(0, 1e6), .dflt = "\"auto\"",
      .help = "memory that the run may take, in GiB; auto: the machine's, or its control group's limit, never what is free at the moment" },

    { AT(dist.gradients), .type = OPTION_CHOICE, .choices = gradient_choices, .dflt = "\"auto\"",
      .help = "of several ranks: \"local\": added up on each rank and reduced to their owners once a step; \"sharded\": reduced after each micro-batch, "
              "a rank never holds more than two layers' besides those of embedding and head; \"auto\": local where memory allows" },
    { AT(dist.deterministic), .type = OPTION_BOOL, .dflt = "false",
      .help = "the same bits on any number of ranks, where micro_batch_tokens and threads are set: micro-batches are cut the same, and their "
              "gradients added in one order" },
    { AT(dist.transport), .type = OPTION_CHOICE, .flags = OPTION_FREE, .choices = transport_choices, .dflt = "\"auto\"",
      .help = "of several ranks on GPUs: \"nccl\": from device to device, with a device for each rank; \"host\": through the host and MPI, also for ranks "
              "that share a device; \"auto\": nccl where it can be. The bits are the same" },

    { AT(checkpoint.every), .type = OPTION_INT, .flags = OPTION_FREE, RANGE(0, STEPS_MAX), .dflt = "50",
      .help = "steps between checkpoints; 0: none" },
    { AT(checkpoint.every_minutes), .type = OPTION_REAL, .flags = OPTION_NULL | OPTION_ABOVE | OPTION_FREE,
      RANGE(0, 1e6), .dflt = "null", .help = "minutes between checkpoints, besides `every`" },
    { AT(checkpoint.keep), .type = OPTION_INT, .flags = OPTION_FREE, RANGE(1, 1e6), .dflt = "2",
      .help = "newest checkpoints that are kept" },
    { AT(checkpoint.resume), .type = OPTION_TEXT, .flags = OPTION_FREE, .dflt = "\"auto\"",
      .help = "\"auto\": go on from the newest usable checkpoint of the output; \"never\": start anew; or a checkpoint's path" },
    { FIELD("checkpoint.export", checkpoint.export_at), .type = OPTION_CHOICE, .flags = OPTION_FREE,
      .choices = export_choices, .dflt = "\"stage\"",
      .help = "write a model after each stage, or after each epoch too (models/epoch-N)" },

    { AT(faults.max_skipped_steps), .type = OPTION_INT, .flags = OPTION_FREE, RANGE(0, STEPS_MAX), .dflt = "3",
      .help = "non-finite steps in a row that are skipped before the run stops (exit 80)" },
    { AT(faults.replica_check_every), .type = OPTION_INT, .flags = OPTION_FREE, RANGE(0, STEPS_MAX), .dflt = "100",
      .help = "steps between comparisons of the ranks' weights; 0: none" },
    { AT(faults.hang_timeout), .type = OPTION_REAL, .flags = OPTION_ABOVE | OPTION_FREE, RANGE(0, 1e6),
      .dflt = "600.0", .help = "seconds without a step after which the run counts as hung (exit 76)" },

    { AT(logging.every), .type = OPTION_INT, .flags = OPTION_FREE, RANGE(1, STEPS_MAX), .dflt = "1",
      .help = "steps between rows of metrics.jsonl" },
    { AT(logging.progress), .type = OPTION_TRI, .flags = OPTION_FREE, .dflt = "\"auto\"",
      .help = "progress bar; auto: on a terminal" },

    { AT(eval.every), .type = OPTION_INT, .use = USE_EVAL, RANGE(0, STEPS_MAX), .dflt = "0",
      .help = "steps between evaluations; 0: none" },
    { AT(eval.at_end), .type = OPTION_BOOL, .use = USE_EVAL, .dflt = "true", .help = "evaluate once training is done" },
    { AT(eval.kl_samples), .type = OPTION_INT, .use = USE_EVAL, RANGE(0, 1e6), .dflt = "0",
      .help = "sampled responses for eval/kl; 0: none" },

    { AT(output), .type = OPTION_TEXT, .flags = OPTION_NEEDED | OPTION_FREE, .help = "directory of the run" },
    { AT(cache_dir), .type = OPTION_TEXT, .flags = OPTION_NULL | OPTION_FREE, .dflt = "null",
      .help = "directory of the caches of tokens and of the reference; null: $XDG_CACHE_HOME/bdpo-train, else ~/.cache/bdpo-train; what is in it may be "
              "deleted at any time" },
    { AT(max_hours), .type = OPTION_REAL, .flags = OPTION_NULL | OPTION_ABOVE | OPTION_FREE, RANGE(0, 1e5),
      .dflt = "null", .help = "save and stop (exit 75) after so long" },
    { AT(backend), .type = OPTION_CHOICE, .choices = backend_choices, .dflt = "\"auto\"",
      .help = "auto: CUDA where there is a device, else the CPU" },
    { AT(threads), .type = OPTION_INT, .flags = OPTION_FREE, RANGE(0, 4096), .dflt = "0",
      .help = "CPU threads per rank; 0: the cores that this rank may use" },
    { AT(seed), .type = OPTION_INT, RANGE(0, 9007199254740992.0), .dflt = "42",
      .help = "of every random choice" },
};
/* clang-format on */
const size_t option_count = COUNT_OF(option_table);
_Static_assert(COUNT_OF(option_table) < OPTIONS_MAX, "OPTIONS_MAX is too small");

const struct option *option_find(const char *path)
{
    for (size_t i = 0; i < option_count; i++)
        if (strcmp(option_table[i].path, path) == 0) return &option_table[i];
    return NULL;
}

const struct section *section_find(const char *path)
{
    for (size_t i = 0; i < section_count; i++)
        if (strcmp(section_table[i].path, path) == 0) return &section_table[i];
    return NULL;
}

bool option_used(const struct config *c, const struct option *o)
{
    const struct loss_def *loss = loss_find(c->loss);
    switch (o->use) {
    case USE_LORA:
        return c->model.lora.present;
    case USE_SFT:
        return c->sft.present;
    case USE_PREFERENCE:
        return c->preference.present;
    case USE_LOSS:
        return c->preference.present && loss && (loss->options & o->loss_bit);
    case USE_REFERENCE:
        return c->preference.present && loss && (loss->flags & LOSS_REF);
    case USE_SHARED_TRAIN:
        return (c->sft.present && c->sft.train.n == 0) ||
               (c->preference.present && c->preference.train.n == 0);
    case USE_OWN_TRAIN: {
        const struct stage_config *s = strncmp(o->path, "sft.", 4) == 0 ? &c->sft : &c->preference;
        return s->present && s->train.n > 0;
    }
    case USE_EVAL:
        return c->data.eval.n > 0;
    case USE_SKIP:
        return c->data.on_bad_row == BAD_ROW_SKIP;
    case USE_ALWAYS:
        break;
    }
    return true;
}
