/* SPDX-License-Identifier: MIT */
#include "cpu.h"

#define SLOT(name, ...) .name = cpu_##name,
const struct ops cpu_ops = { OPS(SLOT) };
