/* SPDX-License-Identifier: MIT
 * block.h - between the emulated runtime and the emulated blocks. */
#ifndef EMU_BLOCK_H
#define EMU_BLOCK_H
#include "emu.h"
#include "include/cuda_runtime.h"
#include "include/emu_ptx.h"

/* Run all blocks of a launch, body(...) in each thread. */
void emu_run(const emu_launch_info *l, void (*run)(const void *body), const void *body);
/* Queue a function of the host that reads and writes device memory: what a library's kernels do. arguments are copied. */
extern "C" void emu_host_work(void (*run)(void *arguments), const void *arguments, size_t bytes, cudaStream_t s);
#endif
