/* PROCESSES: tells the processes of the box, a few at a time. */
#ifndef KAVACH_LISTING_H
#define KAVACH_LISTING_H

/* PROCESSES of the host. NULL, or the rule that is broken. */
const char *listing_ask(void);

/* Tells some more. In how many milliseconds there is more to do, or -1. */
int listing_advance(void);

#endif
