/* SPDX-License-Identifier: MIT
 * options.h - the one table of options behind struct config: reading, --set, checks, dump, help and docs all walk it. */
#ifndef BDPO_OPTIONS_H
#define BDPO_OPTIONS_H
#include "config.h"
#include "../io/json.h"

enum option_type {
    OPTION_BOOL,   /* bool */
    OPTION_TRI,    /* int32_t: true 1, false 0, "auto" -1 */
    OPTION_INT,    /* int64_t (seed: uint64_t) */
    OPTION_REAL,   /* double */
    OPTION_CHOICE, /* int32_t: one of choices */
    OPTION_TEXT,   /* char *: any text, or one of choices where there are some */
    OPTION_PATHS,  /* struct strlist: a path or a list of paths */
    OPTION_SET,    /* int32_t: a list of some of choices, whose values are bits */
    OPTION_LOSS    /* char *: a name in loss_table */
};
enum option_flag {
    OPTION_NULL = 1,    /* null is a value: 0, NULL or an empty list in struct config */
    OPTION_AUTO = 2,    /* "auto" is a value: CONFIG_AUTO */
    OPTION_ABOVE = 4,   /* min itself is excluded */
    OPTION_BELOW = 8,   /* max itself is excluded */
    OPTION_EMPTY = 16,  /* the text may be "" */
    OPTION_NEEDED = 32, /* must be given */
    OPTION_FREE = 64,   /* may change when a run is resumed */
    OPTION_SWITCH = 128, /* false and true are values too: 0 and max */
    OPTION_TREE = 256    /* of a text: an object is a value too, kept as its JSON text, which begins with "{" */
};
enum option_use { /* when an option has an effect; elsewhere it is left out of the resolved config */
    USE_ALWAYS,
    USE_LORA,         /* the section is there */
    USE_SFT,          /* the section is there */
    USE_PREFERENCE,   /* the section is there */
    USE_LOSS,         /* the loss has the option `loss_bit` */
    USE_REFERENCE,    /* the loss reads a reference */
    USE_SHARED_TRAIN, /* some stage has no `train` of its own */
    USE_OWN_TRAIN,    /* the stage has one */
    USE_EVAL,         /* data.eval is given */
    USE_SKIP          /* data.on_bad_row is "skip" */
};

struct choice { /* the last one has name NULL */
    const char *name;
    int32_t value;
    const char *refused; /* why this version cannot do it and what to set; NULL: it can */
};
struct option {
    const char *path; /* "preference.lambda" */
    enum option_type type;
    unsigned flags; /* enum option_flag */
    enum option_use use;
    size_t offset;    /* of the field in struct config */
    double min, max;  /* of numbers; lambda's max is the loss's lambda_max */
    const char *dflt; /* as JSON text; NULL: none, or the loss's */
    const struct choice *choices;
    unsigned loss_bit; /* enum loss_option */
    const char *help;
};
struct section {
    const char *path;
    bool nullable; /* null: the section is not there */
    const char *help;
};
extern const struct option option_table[];
extern const size_t option_count;
extern const struct section section_table[];
extern const size_t section_count;
enum { OPTIONS_MAX = 128 }; /* option_count stays below it */

const struct option *option_find(const char *path);
const struct section *section_find(const char *path);
/* Does the option have an effect in this (loaded) config? */
bool option_used(const struct config *c, const struct option *o);

/* config_value.c: one value ---------------------------------------------------------------------------------------- */
/* Store a JSON value in its field, or say what is wrong with it (ERR_INPUT, the message without place and name).
 * Paths elements: *element is the index of the faulty one, else -1. loss: for lambda's range (NULL: not known).
 * from_set: the value came from the command line (for the hint). */
int option_read(struct config *c, const struct option *o, const json_t *value, const struct loss_def *loss, bool from_set,
                int64_t *element);
/* The field's value as JSON; NULL when out of memory. The caller owns it. */
json_t *option_value(const struct config *c, const struct option *o);
/* What may stand there: "a number in (0, 1]", "\"auto\" or \"builtin\"" ...; adds to b. */
int option_expects(struct buf *b, const struct option *o, const struct loss_def *loss);
/* Free what the field owns and zero it. */
void option_clear(struct config *c, const struct option *o);
/* Shortest text of x that reads back equal. */
const char *number_text(char out[40], double x);

enum { LABEL_SIZE = 400 }; /* bytes of a dotted path or a pointer in a message */

/* config_check.c: what several values or this version have to say ---------------------------------------------------- */
struct loader {
    struct json_doc doc;
    struct config *c;
    const struct loss_def *loss; /* NULL: preference.loss names none */
    bool loss_given;
    char **set_pointer; /* [n_sets] JSON Pointers of the --set keys; NULL where the setting was malformed */
    char **set_name;    /* [n_sets] "--set preference.lambda" */
    int32_t n_sets;
    enum { STATE_ABSENT, STATE_GIVEN, STATE_BAD } state[OPTIONS_MAX];
    struct diag diag;
    struct buf warnings;
};
/* Add a problem: `pointer` is where the value stands (in the file, or given by the last --set that made it). */
void config_report(struct loader *ld, const char *pointer, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* The same for an option: "key: text" at its place, or at its section's where it is absent. */
void config_report_option(struct loader *ld, const struct option *o, const char *fmt, ...) PRINTF_LIKE(3, 4);
int config_warn_option(struct loader *ld, const struct option *o, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* "run.json:5:9", or "--set data.end": where it stands; the caller frees. */
int config_place(const struct loader *ld, const char *pointer, char **out);
/* Checks of the whole after every value was read; resolves max_prompt_length. Problems go to ld->diag. */
int config_check(struct loader *ld);
#endif
