/* Records to and from the host; docs/reference/file-tool.md is the contract. */
#ifndef KAVACH_FILES_WIRE_H
#define KAVACH_FILES_WIRE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

enum {
    RECORD_HEADER = 8,
    DATA_RECORD_MAX = 262144,
    ENTRY_FIXED = 36,
    ENTRY_MAX = ENTRY_FIXED + NAME_MAX + PATH_MAX - 1,
    FAILED_FIXED = 4,
};

enum record_type {
    RECORD_ENTRY = 1,
    RECORD_DATA = 2,
    RECORD_CLOSE = 3,
    RECORD_UP = 4,
    RECORD_DONE = 5,
    RECORD_FAILED = 6,
};

/* Beside the kernel's error numbers. */
enum failure_reason {
    REASON_TOO_LARGE = 65536,
    REASON_NOT_REGULAR = 65537,
    REASON_TOO_MANY = 65538,
    REASON_TOO_DEEP = 65539,
};

enum file_kind {
    KIND_OTHER = 0,
    KIND_FILE = 1,
    KIND_DIRECTORY = 2,
    KIND_SYMLINK = 3,
    KIND_FIFO = 4,
    KIND_SOCKET = 5,
    KIND_CHARACTER_DEVICE = 6,
    KIND_BLOCK_DEVICE = 7,
};

enum file_kind kind_of(mode_t mode);

/* ---- to the host ---- */

/* `target` is a symbolic link's, or empty. */
void wire_entry(const char *name, const struct stat *about, const char *target);

/* Where the bytes of a DATA record go, and how many fit; commit says how many there are. */
unsigned char *wire_data_begin(size_t *room);
void wire_data_commit(size_t length);

void wire_mark(enum record_type type); /* CLOSE or UP */

/* The last record. */
void wire_done(void);

/* Cleans up, sends FAILED as the last record and ends. `reason` is an error number or one of ours. */
_Noreturn void wire_fail(uint32_t reason, const char *path);

/* ---- from the host ---- */

struct record {
    enum record_type type;
    uint32_t length;
};

struct entry {
    enum file_kind kind;
    mode_t mode;
    char name[NAME_MAX + 1];
    char target[PATH_MAX];
};

/* Waits until something has come. Nothing may be made before: a host that gives up right after the start
   kills, and nobody would clean up. */
void wire_wait(void);

/* Reads a header. Where the input ends before DONE, all these clean up and end. */
void wire_next(struct record *record);

/* Reads the payload of an ENTRY. A root has no name; any other has one that is safe to use. */
void wire_read_entry(const struct record *record, struct entry *entry, bool is_root);

/* Returns a part of a DATA record, at most `left` bytes. */
size_t wire_read_data(uint32_t left, const unsigned char **data);

/* ---- what a failure leaves ---- */

/* Is called once before a failure is told, and when the host gives up. NULL: there is nothing to do. */
void wire_on_failure(void (*clean_up)(void));

#endif
