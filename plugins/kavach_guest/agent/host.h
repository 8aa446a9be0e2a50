/* The host's side of the stream: reads frames and obeys them. */
#ifndef KAVACH_HOST_H
#define KAVACH_HOST_H

#include <stdbool.h>

/* Reads once from the host's pipe. False when it has ended. */
bool host_read(void);

/* Obeys the complete frames, as long as there is room for answers. NULL, or the broken rule. */
const char *host_obey(void);

/* Whether the last host_obey stopped for want of room, so that nothing may be read. */
bool host_is_held(void);

/* Whether the host's version has DRAINED. */
bool host_knows_drained(void);

#endif
