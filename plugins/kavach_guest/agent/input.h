/* Bytes for a command's stdin: written at once, or held within the credit. */
#ifndef KAVACH_INPUT_H
#define KAVACH_INPUT_H

#include "channel.h"

/* DATA and EOF of the host. NULL, or the rule that is broken. */
const char *input_take(struct input *in, const unsigned char *data, uint32_t length);
const char *input_end(struct input *in);

/* Writes what is held, when the pipe has room. */
void input_continue(struct input *in);

/* Grants credit again for what the command has taken, in large pieces. */
void input_grant(struct input *in, uint32_t channel);

bool input_waits(const struct input *in);
void input_close(struct input *in);

#endif
