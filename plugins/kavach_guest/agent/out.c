#include "out.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "proto.h"

enum {
    /* Output is read only while less than this waits, so a slow host stops the commands. */
    DATA_THRESHOLD = 65536,
    /* Whatever DATA leaves free is for control frames, which therefore always find room. */
    CONTROL_RESERVE = 65536,
    CAPACITY = DATA_THRESHOLD + HEADER_SIZE + DATA_MAX + CONTROL_RESERVE,
    /* More than any frames that are emitted after one question for room. */
    CONTROL_ROOM = 1024,
    LAST_WORDS_MS = 200,
};

/* A frame that fills a default pipe (65,536 bytes) exactly goes out in one write. */
enum { DATA_CHUNK = DATA_MAX - HEADER_SIZE };

static unsigned char buffer[CAPACITY];
static size_t head, tail;
static bool urgent;

size_t out_pending(void) {
    return tail - head;
}

bool out_is_urgent(void) {
    return urgent;
}

void out_hurry(void) {
    urgent = true;
}

bool out_has_control_room(void) {
    return CAPACITY - out_pending() >= CONTROL_ROOM;
}

static unsigned char *reserve(size_t bytes) {
    if (CAPACITY - tail < bytes) {
        memmove(buffer, buffer + head, out_pending());
        tail -= head;
        head = 0;
    }
    return buffer + tail;
}

static void put_header(unsigned char *p, uint8_t type, uint8_t stream, uint32_t channel,
                       uint32_t length) {
    put_u32(p, length);
    p[4] = type;
    p[5] = stream;
    put_u16(p + 6, 0);
    put_u32(p + 8, channel);
    urgent = urgent || type != GUEST_STARTED;
}

bool out_takes_data(void) {
    return out_pending() < DATA_THRESHOLD;
}

unsigned char *out_data_begin(size_t *room) {
    /* A host that is gone is noticed by the next flush of the main loop. */
    if (!out_takes_data() && !(out_flush() && out_takes_data()))
        return NULL;
    *room = DATA_CHUNK;
    return reserve(HEADER_SIZE + DATA_CHUNK) + HEADER_SIZE;
}

void out_data_commit(uint32_t channel, uint8_t stream, uint32_t length) {
    put_header(buffer + tail, GUEST_DATA, stream, channel, length);
    tail += HEADER_SIZE + length;
}

void out_frame(uint8_t type, uint8_t stream, uint32_t channel, const void *payload,
               uint32_t length) {
    unsigned char *p = reserve(HEADER_SIZE + length);
    put_header(p, type, stream, channel, length);
    if (length > 0)
        memcpy(p + HEADER_SIZE, payload, length);
    tail += HEADER_SIZE + length;
}

void out_empty(uint8_t type, uint8_t stream, uint32_t channel) {
    out_frame(type, stream, channel, NULL, 0);
}

void out_u32(uint8_t type, uint32_t channel, uint32_t value) {
    unsigned char payload[4];
    put_u32(payload, value);
    out_frame(type, 0, channel, payload, sizeof payload);
}

void out_u32_pair(uint8_t type, uint32_t channel, uint32_t first, uint32_t second) {
    unsigned char payload[8];
    put_u32(payload, first);
    put_u32(payload + 4, second);
    out_frame(type, 0, channel, payload, sizeof payload);
}

bool out_flush(void) {
    while (head < tail) {
        ssize_t n = write(STDOUT_FILENO, buffer + head, tail - head);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        head += (size_t)n;
        /* A short write means a full pipe: asking again would only cost another call. */
        if (head < tail)
            return true;
    }
    head = tail = 0;
    urgent = false;
    return true;
}

void out_last_words(const char *text) {
    size_t length = strlen(text);
    if (out_has_control_room())
        out_frame(GUEST_ERROR, 0, 0, text, (uint32_t)(length < ERROR_MAX ? length : ERROR_MAX));
    struct pollfd host = {.fd = STDOUT_FILENO, .events = POLLOUT};
    while (out_flush() && out_pending() > 0)
        if (poll(&host, 1, LAST_WORDS_MS) <= 0)
            return;
}
