/* Pseudo terminals, in a way that commands cannot meddle with. */
#ifndef KAVACH_TERMINAL_H
#define KAVACH_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TERMINAL_END_MAX = 2 };

/* Remembers where terminals are made. A box may have no such place. */
void terminal_prepare(void);

/* Makes a terminal that belongs to whom the agent acts as, and nobody else may open. The agent's
   end does not block. 0 or an errno; then no descriptor is open. */
int terminal_make(uint16_t rows, uint16_t columns, int *own, int *theirs);

/* In the child, which leads a new session: makes the terminal its controlling one. 0 or an errno. */
int terminal_take(int theirs);

/* Sets the size. False where the kernel does not tell the processes in the foreground. */
bool terminal_resize(int own, uint16_t rows, uint16_t columns);

/* What has to be typed for a reader to see the end of its input, after `last` (0: after nothing). */
size_t terminal_end_of_input(int own, unsigned char last, unsigned char typed[TERMINAL_END_MAX]);

#endif
