#include "frame.h"

#include <stddef.h>

#include "bytes.h"
#include "proto.h"

struct rule {
    uint32_t shortest;
    uint32_t longest;
    uint8_t first_stream;
    uint8_t last_stream;
    uint8_t has_channel;
};

static const struct rule rules[] = {
    [HOST_HELLO] = {HELLO_SIZE, HELLO_SIZE, 0, 0, 0},
    [HOST_START] = {0, START_MAX, 0, 0, 1},
    [HOST_DATA] = {1, DATA_MAX, 0, 0, 1},
    [HOST_EOF] = {0, 0, 0, 0, 1},
    [HOST_CREDIT] = {4, 4, 1, 2, 1},
    [HOST_SIGNAL] = {2, 2, 0, 0, 1},
    [HOST_KILL] = {0, 0, 0, 0, 1},
    [HOST_CLOSE] = {0, 0, 0, 0, 1},
    [HOST_PING] = {0, PING_MAX, 0, 0, 0},
    [HOST_RESIZE] = {4, 4, 0, 0, 1},
    [HOST_PROCESSES] = {0, 0, 0, 0, 0},
    [HOST_CPU] = {0, 0, 0, 0, 1},
    [HOST_KILL_REST] = {0, 0, 0, 0, 1},
};

const char *frame_decode(unsigned char *header, struct frame *frame) {
    frame->length = get_u32(header);
    frame->type = header[4];
    frame->stream = header[5];
    frame->channel = get_u32(header + 8);
    frame->payload = header + HEADER_SIZE;
    if (frame->type < HOST_HELLO || frame->type > HOST_KILL_REST)
        return "unknown frame type";
    const struct rule *rule = &rules[frame->type];
    if (frame->length < rule->shortest || frame->length > rule->longest)
        return "bad frame length";
    if (frame->stream < rule->first_stream || frame->stream > rule->last_stream)
        return "bad stream";
    if (get_u16(header + 6) != 0)
        return "reserved field is not 0";
    if ((frame->channel != 0) != rule->has_channel)
        return "bad channel";
    return NULL;
}
