/* SPDX-License-Identifier: MIT
 * The table of ops once more, with a count before each call. */
#include "emu.h"
#include "../../src/ops/ops.h"

enum {
#define NAME(name, ...) OP_##name,
    OPS(NAME) OP_COUNT
};
static int64_t calls[OP_COUNT];
static const struct ops *real;

#define COUNTED(name, ...) [](struct ctx *cx, auto... rest) { calls[OP_##name]++; return real->name(cx, rest...); },
static const struct ops counted = { OPS(COUNTED) };

const struct ops *emu_count_ops(const struct ops *table)
{
    real = table;
    return &counted;
}

int64_t emu_op_calls(int i)
{
    return calls[i];
}

const char *emu_op_name(int i)
{
    static const char *const names[] = {
#define TEXT(name, ...) #name,
        OPS(TEXT)
    };
    return i < OP_COUNT ? names[i] : nullptr;
}
