/* SPDX-License-Identifier: MIT
 * signals.h - what others ask of this process: to stop. SIGUSR1, SIGTERM and SIGINT set a flag that is looked at between two pieces of work; the same
 * SIGTERM or SIGINT once more ends the process at once. SIGXFSZ and SIGPIPE are ignored, so that writes fail instead. */
#ifndef BDPO_SIGNALS_H
#define BDPO_SIGNALS_H
#include "base.h"

/* Handlers, on a thread of their own: call it before there are other threads. */
void signals_install(void);
/* Number of the signal that came, 0: none. May be read from any thread. */
int signals_pending(void);
/* "SIGTERM"; static. */
const char *signals_name(int number);
/* If a second signal ends the process, `text` is written to `tmp` and that renamed to `path`, the three digits at text[exit_at] being the exit code,
 * 128 + its number. All are copied, and replace what was said before; too long ones (4095 bytes) leave nothing to say. */
void signals_last_words(const char *path, const char *tmp, const char *text, size_t exit_at);
#endif
