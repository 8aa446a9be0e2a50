/* The bounded buffer of frames on their way to the host. */
#ifndef KAVACH_OUT_H
#define KAVACH_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes not yet written. */
size_t out_pending(void);

/* Whether anything but STARTED waits: the host has nothing to do about that one, unless it is said
   that it has. */
bool out_is_urgent(void);
void out_hurry(void);

/* Whether a few more control frames fit. Every control frame is emitted after asking. */
bool out_has_control_room(void);

/* Whether the host is fast enough for more output to be read. */
bool out_takes_data(void);

/* Where up to *room bytes of output may be read to, or NULL while the host is slow. */
unsigned char *out_data_begin(size_t *room);

/* Turns the bytes just read there into one DATA frame. */
void out_data_commit(uint32_t channel, uint8_t stream, uint32_t length);

/* Appends a frame without a payload, or with one of at most ERROR_MAX bytes. */
void out_empty(uint8_t type, uint8_t stream, uint32_t channel);
void out_frame(uint8_t type, uint8_t stream, uint32_t channel, const void *payload, uint32_t length);

/* Appends a frame whose payload is u32 values. */
void out_u32(uint8_t type, uint32_t channel, uint32_t value);
void out_u32_pair(uint8_t type, uint32_t channel, uint32_t first, uint32_t second);

/* Writes what the pipe takes; false when the host is gone. */
bool out_flush(void);

/* Says why the box ends, waiting a moment for a slow host but never for a stuck one. */
void out_last_words(const char *text);

#endif
