/* SPDX-License-Identifier: MIT */
#include "usage.h"
#include "config.h"
#include <stdio.h>
#include <string.h>

const char USAGE[] =
    "usage:\n"
    "  bdpo-train --config run.json [--set key=value ...] [--dry-run] [--allow-change]   SFT, then "
    "the preference loss\n"
    "  bdpo-train generate --model DIR --prompt TEXT | --prompts FILE [--out FILE]       sample "
    "from a model\n"
    "             [--max-tokens 256] [--temperature 0] [--top-k 0] [--top-p 1] [--seed 42] "
    "[--batch 16] [--threads 0]\n"
    "             [--string-prompts raw|user] [--system TEXT] [--chat-template auto] [--dtype "
    "float32|bfloat16]\n"
    "             [--backend auto|cpu|cuda] [--stop TEXT ...] [--cut-prompts]\n"
    "  bdpo-train evaluate --config run.json [--set ...] [--model DIR] [--compare DIR]   metrics "
    "on data.eval, no training\n"
    "             [--per-pair FILE]\n"
    "  bdpo-train lint --config run.json [--set key=value ...] [--out FILE.json]         what is "
    "odd "
    "about the data, no training\n"
    "  bdpo-train plan --config run.json [--set ...] [--device NAME] [--ranks 1] [--json] memory, "
    "arithmetic, hours, disk; loads no weights\n"
    "  bdpo-train tokenize --model DIR [--chat-template auto] FILE.jsonl                 one JSON "
    "array of ids a line\n"
    "  bdpo-train losses                                                                 the table "
    "of losses\n"
    "  bdpo-train contour --loss NAME [--out STEM]                                       a loss "
    "over pi(w) and pi(l):\n"
    "             [--beta 0.1] [--lambda X] [--alpha X] [--label-smoothing 0]            STEM.csv "
    "and STEM.svg\n"
    "             [--ref-w 0.4] [--ref-l 0.1] [--max-w 1] [--max-l 1] [--points 100]\n"
    "  bdpo-train toy [--out STEM] [--rates 0.01,0.001,0.1] [--steps 1000]               the "
    "paper's toy case, all losses\n"
    "             [--seeds 100] [--seed 1]\n"
    "  bdpo-train merge RUN_DIR --out DIR [--quantization none|nf4|nf4_double]           the "
    "adapters of a run into a full model\n"
    "             [--threads 0]\n"
    "  bdpo-train report RUN_DIR [RUN_DIR ...] [--out FILE]                              one HTML "
    "page of these runs\n"
    "  bdpo-train sweep GRID.json [--csv FILE]           what scripts/sweep.sh runs: configs of a "
    "grid's runs, or their table\n"
    "  bdpo-train --help | COMMAND --help | --version\n"
    "exit codes: 0 done, 1 failed while running, 2 wrong usage, config, model or data, 75 stopped "
    "after saving (start again),\n"
    "  76 a rank or the disk hung, 80 diverged, 81 ranks hold other weights, 82 checkpoint "
    "unusable or of another run\n";

static const char LEAD[] = "  bdpo-train ";

/* The end of the entry of USAGE that starts here: its line, and those below that are indented further. */
static const char *entry_end(const char *at)
{
    do
        at = strchr(at, '\n') + 1;
    while (strncmp(at, "     ", 5) == 0);
    return at;
}

static bool print_entry(const char *command)
{
    const size_t n = strlen(command), lead = sizeof LEAD - 1;
    for (const char *at = strstr(USAGE, LEAD); at && strncmp(at, LEAD, lead) == 0;
         at = entry_end(at))
        if (strncmp(at + lead, command, n) == 0 && at[lead + n] == ' ') {
            printf("usage:\n%.*s", (int)(entry_end(at) - at), at);
            return true;
        }
    return false;
}

int usage_print(const char *command)
{
    struct buf b = { 0 };
    if (command && print_entry(command)) return 0;
    const int rc = config_help(&b);
    if (rc == 0) printf("%s\nconfig keys:\n%s", USAGE, b.data);
    buf_release(&b);
    return rc;
}
