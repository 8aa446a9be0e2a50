/* The output of commands: read within the credit, or thrown away after CLOSE. */
#ifndef KAVACH_STREAM_H
#define KAVACH_STREAM_H

#include "channel.h"

enum { STREAM_IDLE = -1 };

/* The events to poll a stream for (0: only its end), or STREAM_IDLE to leave it out. */
int stream_events(const struct channel *channel, const struct stream *stream);

/* Acts on what poll has seen. */
void stream_serve(struct channel *channel, struct stream *stream, short events);

/* Reads what is left right after the exit, so that it goes out together with EXITED. */
void stream_finish(struct channel *channel);

/* Ends the wait of stream_serve for the exit of a process that has closed its output. */
void stream_stop_lingering(struct channel *channel);

/* CREDIT of the host. NULL, or the rule that is broken. */
const char *stream_credit(struct stream *stream, uint32_t bytes);

#endif
