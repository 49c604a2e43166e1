/* SPDX-License-Identifier: MIT */
#include "options.h"
#include <stdlib.h>
#include <string.h>

/* The resolved config --------------------------------------------------------------------------------------------- */

/* Put the option's value into its section of `root`. */
static int put(json_t *root, const struct config *c, const struct option *o)
{
    const char *key = o->path, *dot;
    json_t *at = root;
    while ((dot = strchr(key, '.'))) {
        char section[32] = "";
        BUG_IF((size_t)(dot - key) >= sizeof section);
        memcpy(section, key, (size_t)(dot - key));
        if (!json_object_get(at, section)) json_object_set_new(at, section, json_object());
        at = json_object_get(at, section);
        key = dot + 1;
    }
    if (json_object_set_new(at, key, option_value(c, o)) < 0)
        return err_set(ERR_OOM, "out of memory while writing the config");
    return 0;
}

static int dump(const struct config *c, struct buf *b, unsigned without)
{
    json_t *root = json_object();
    int rc = root ? 0 : err_set(ERR_OOM, "out of memory while writing the config");
    for (size_t i = 0; rc == 0 && i < option_count; i++)
        if (option_used(c, &option_table[i]) && !(option_table[i].flags & without))
            rc = put(root, c, &option_table[i]);
    if (rc == 0) rc = json_dump(b, root, 2);
    if (rc == 0 && (b->len == 0 || b->data[b->len - 1] != '\n')) rc = buf_adds(b, "\n");
    json_decref(root);
    return rc;
}

int config_dump(const struct config *c, struct buf *b)
{
    return dump(c, b, 0);
}

int config_dump_training(const struct config *c, struct buf *b)
{
    return dump(c, b, OPTION_FREE);
}

/* Differences ------------------------------------------------------------------------------------------------------ */

enum { DIFF_SHOWN = 8 };

struct diff {
    struct buf *b;
    int count;
};

static int add_value(struct buf *b, const json_t *v)
{
    struct buf text = { 0 };
    char q[300];
    int rc = v ? json_dump(&text, v, 0) : buf_adds(&text, "not there");
    if (rc == 0) rc = buf_adds(b, err_quote(q, sizeof q, text.data, text.len));
    buf_release(&text);
    return rc;
}

static int diff_objects(struct diff *d, const char *path, json_t *was, json_t *now);

static int diff_key(struct diff *d, const char *parent, const char *key, json_t *was, json_t *now)
{
    char *path;
    int rc = 0;
    if (was && now && json_equal(was, now)) return 0;
    TRY(mem_asprintf(&path, "%s%s%s", parent, *parent ? "." : "", key));
    if (json_is_object(was) && json_is_object(now)) {
        rc = diff_objects(d, path, was, now);
    } else if (d->count++ < DIFF_SHOWN) {
        rc = buf_addf(d->b, "%s%s: ", d->count > 1 ? "; " : "", path);
        if (rc == 0) rc = add_value(d->b, now);
        if (rc == 0) rc = buf_adds(d->b, " was ");
        if (rc == 0) rc = add_value(d->b, was);
    }
    free(path);
    return rc;
}

static int diff_objects(struct diff *d, const char *path, json_t *was, json_t *now)
{
    const char *key;
    json_t *value;
    json_object_foreach(now, key, value)
        TRY(diff_key(d, path, key, json_object_get(was, key), value));
    json_object_foreach(was, key, value) if (!json_object_get(now, key))
        TRY(diff_key(d, path, key, value, NULL));
    return 0;
}

int config_diff(const char *was, const char *now, struct buf *b)
{
    struct json_doc a = { 0 }, z = { 0 };
    struct diff d = { .b = b };
    int rc = json_doc_parse(&a, "earlier config", 1, was, strlen(was));
    if (rc == 0) rc = json_doc_parse(&z, "config", 1, now, strlen(now));
    if (rc == 0 && !(json_is_object(a.root) && json_is_object(z.root)))
        rc = err_set(ERR_INPUT, "a config to compare is not an object");
    if (rc == 0) rc = diff_objects(&d, "", a.root, z.root);
    if (rc == 0 && d.count > DIFF_SHOWN) rc = buf_addf(b, "; and %d more", d.count - DIFF_SHOWN);
    json_doc_release(&a);
    json_doc_release(&z);
    return rc < 0 ? rc : d.count;
}
