/* SPDX-License-Identifier: MIT
 * emu.h - what the tests ask of the emulated device, and its two halves of each other. */
#ifndef EMU_H
#define EMU_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* The order in which threads run: 0 forward, 1 backward, else random from this seed, with warps that fall behind. */
void emu_seed(uint64_t seed);
/* Orders that a test of a kernel goes through, seeds 0 to this less 1: forward, backward, random. Under a sanitizer, which looks for other
 * things and is slow, the first two. */
int emu_orders(void);
enum { EMU_ORDERS = 3 };
/* Devices that cudaGetDeviceCount finds (1 at first); < 0: it fails as a machine without a driver does. */
void emu_devices(int n);
/* Bytes of a device's memory (64 GiB at first). */
void emu_memory(size_t bytes);
/* Bytes in use, the most so far, and how many allocations are alive. */
void emu_memory_use(size_t *now, size_t *most, int64_t *alive);
/* Names of the kernels launched so far, each once, without template arguments: how many, and the i-th. */
int emu_kernels(void);
const char *emu_kernel(int i);
/* What was queued so far, and how often the host waited for work that had not run (as late as it can: without BDPO_EMU_EAGER). */
struct emu_counts {
    int64_t kernels, library, copies, fills, waits; /* library: its products, messages, attention */
};
void emu_counts_now(struct emu_counts *now);
/* Times the slot i of struct ops was called through cuda_open's table. */
int64_t emu_op_calls(int i);
const char *emu_op_name(int i); /* NULL past the last */
struct ops;
const struct ops *emu_count_ops(const struct ops *real);

/* Run one of the kernels of faults.cpp by its name on 64 threads; out: what it wrote. 0, or -1. */
int emu_faulty(const char *name, int out[64]);
/* The runtime's answer to a launch that a device refuses: an empty grid, too many threads, too much shared memory. */
int emu_bad_launch(int which);

#ifdef __cplusplus
}
#endif
#endif
