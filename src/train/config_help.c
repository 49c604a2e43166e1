/* SPDX-License-Identifier: MIT */
#include "options.h"
#include <string.h>

static const char *use_text(enum option_use use)
{
    switch (use) {
    case USE_REFERENCE:
        return "not with a loss without a reference";
    case USE_LORA:
        return "with model.lora";
    case USE_EVAL:
        return "with data.eval";
    case USE_SKIP:
        return "with \"on_bad_row\": \"skip\"";
    default:
        return "";
    }
}

static bool is_in(const struct option *o, const char *section)
{
    const char *dot = strrchr(o->path, '.');
    const size_t n = dot ? (size_t)(dot - o->path) : 0;
    return strlen(section) == n && strncmp(o->path, section, n) == 0;
}

/* "0.5 (bdpo), 5 (dpop)", or one number where all losses agree. */
static int add_loss_default(struct buf *b, const struct option *o)
{
    double first = 0;
    bool same = true;
    int n = 0;
    for (size_t i = 0; i < loss_count; i++) {
        if (!(loss_table[i].options & o->loss_bit)) continue;
        const double x = loss_option(o->loss_bit, &loss_table[i].defaults);
        if (n++ == 0) first = x;
        same = same && x == first;
    }
    for (size_t i = 0, shown = 0; i < loss_count; i++) {
        char text[40];
        if (!(loss_table[i].options & o->loss_bit)) continue;
        const double x = loss_option(o->loss_bit, &loss_table[i].defaults);
        if (same) return buf_adds(b, number_text(text, x));
        TRY(buf_addf(b, "%s%s (%s)", shown++ ? ", " : "", number_text(text, x),
                     loss_table[i].name));
    }
    return 0;
}

static int add_default(struct buf *b, const struct option *o)
{
    if (o->use == USE_LOSS) return add_loss_default(b, o);
    if (o->flags & OPTION_NEEDED) return buf_adds(b, "must be given");
    return buf_adds(b, o->dflt);
}

/* lambda's range is each loss's own */
static int add_expects(struct buf *b, const struct option *o)
{
    int shown = 0;
    if (o->loss_bit != LOSS_LAMBDA) return option_expects(b, o, NULL);
    for (size_t i = 0; i < loss_count; i++) {
        if (!(loss_table[i].options & LOSS_LAMBDA)) continue;
        if (shown++) TRY(buf_adds(b, "; "));
        TRY(option_expects(b, o, &loss_table[i]));
        TRY(buf_addf(b, " (%s)", loss_table[i].name));
    }
    return 0;
}

static int add_notes(struct buf *b, const struct option *o)
{
    const char *use = use_text(o->use);
    if (*use) TRY(buf_addf(b, "; %s", use));
    if (o->use == USE_LOSS) {
        int shown = 0;
        for (size_t i = 0; i < loss_count; i++)
            if (loss_table[i].options & o->loss_bit)
                TRY(buf_addf(b, "%s%s", shown++ ? ", " : "; of ", loss_table[i].name));
    }
    for (const struct choice *k = o->choices; k && k->name; k++)
        if (k->refused) TRY(buf_addf(b, "; \"%s\" is not in this version", k->name));
    return 0;
}

/* Adds `cell` with what Markdown would read as markup escaped. */
static int add_cell(struct buf *b, const struct buf *cell)
{
    TRY(buf_adds(b, " "));
    for (size_t i = 0; i < cell->len; i++) {
        if (strchr("|*<>_", cell->data[i])) TRY(buf_adds(b, "\\"));
        TRY(buf_add(b, &cell->data[i], 1));
    }
    return buf_adds(b, " |");
}

static int add_row(struct buf *b, const struct option *o)
{
    struct buf cell[3] = { 0 };
    const char *dot = strrchr(o->path, '.');
    int rc = add_expects(&cell[0], o);
    if (rc == 0) rc = add_default(&cell[1], o);
    if (rc == 0) rc = buf_adds(&cell[2], o->help);
    if (rc == 0) rc = add_notes(&cell[2], o);
    if (rc == 0) rc = buf_addf(b, "| `%s` |", dot ? dot + 1 : o->path);
    for (int i = 0; i < 3; i++) {
        if (rc == 0) rc = add_cell(b, &cell[i]);
        buf_release(&cell[i]);
    }
    return rc < 0 ? rc : buf_adds(b, "\n");
}

static int add_table(struct buf *b, const char *section)
{
    TRY(buf_adds(b, "| key | value | default | what it does |\n|---|---|---|---|\n"));
    for (size_t i = 0; i < option_count; i++)
        if (is_in(&option_table[i], section)) TRY(add_row(b, &option_table[i]));
    return 0;
}

static int add_free_keys(struct buf *b)
{
    int shown = 0;
    TRY(buf_adds(b, "\nA run may be resumed with other values of "));
    for (size_t i = 0; i < option_count; i++)
        if (option_table[i].flags & OPTION_FREE)
            TRY(buf_addf(b, "%s`%s`", shown++ ? ", " : "", option_table[i].path));
    return buf_adds(b, "; a change of any other key needs `--allow-change`.\n");
}

int config_reference(struct buf *b)
{
    TRY(buf_adds(b, "# The config\n\n"
                    "<!-- written by the program from its option table (src/train/options.c): do "
                    "not edit by hand -->\n\n"
                    "`bdpo-train --config run.json` reads one JSON object with the keys below. "
                    "`--set key=value` sets a key by its\n"
                    "path (`--set preference.lambda=0.7`); the value is parsed as JSON, else taken "
                    "as a string, and the last one wins.\n"
                    "Unknown keys are errors, and so are options that the chosen loss does not "
                    "use; a key `note` may stand in any\n"
                    "section and holds free text. Relative paths start at the working directory. "
                    "`--dry-run` prints the resolved\n"
                    "config, in which options that have no effect are left out. In a range, a "
                    "round bracket excludes the bound.\n"
                    "`model.path`, `output` and training data must be given.\n"));
    for (size_t i = 0; i < section_count; i++) {
        const struct section *s = &section_table[i];
        TRY(buf_addf(b, "\n## %s\n\n%s\n\n", s->path, s->help));
        TRY(add_table(b, s->path));
    }
    TRY(buf_adds(b, "\n## At the top\n\n"));
    TRY(add_table(b, ""));
    return add_free_keys(b);
}

int config_help(struct buf *b)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        TRY(buf_addf(b, "  %-32s %s\n%-35s", o->path, o->help, ""));
        TRY(add_expects(b, o));
        TRY(buf_adds(b, o->flags & OPTION_NEEDED ? "; " : "; default "));
        TRY(add_default(b, o));
        TRY(add_notes(b, o));
        TRY(buf_adds(b, "\n"));
    }
    return 0;
}
