/* SPDX-License-Identifier: MIT */
#include "cuda.h"

#define SLOT(name, ...) .name = cuda_##name,
const struct ops cuda_ops = { OPS(SLOT) };
