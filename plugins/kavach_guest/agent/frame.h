/* Frames of the host: the header and the rules that need no knowledge of the channel. */
#ifndef KAVACH_FRAME_H
#define KAVACH_FRAME_H

#include <stdint.h>

struct frame {
    uint32_t length;
    uint8_t type;
    uint8_t stream;
    uint32_t channel;
    unsigned char *payload; /* in the input buffer; START parsing rewrites it */
};

/* Decodes a header. NULL if it keeps the rules, else what is wrong with it. */
const char *frame_decode(unsigned char *header, struct frame *frame);

#endif
