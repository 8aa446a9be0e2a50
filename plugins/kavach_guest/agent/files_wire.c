#include "files_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"

enum {
    EXIT_FAILED = 1,
    EXIT_ABANDONED = 3,
    SMALL_RECORDS = 65536, /* so much is gathered before it is written */
    OUT_CAPACITY = SMALL_RECORDS + ENTRY_MAX + 4 * RECORD_HEADER + DATA_RECORD_MAX,
    IN_CAPACITY = DATA_RECORD_MAX + RECORD_HEADER,
    LARGE_PIPE = 1048576,
};

static unsigned char out[OUT_CAPACITY];
static size_t out_tail;
static unsigned char in[IN_CAPACITY];
static size_t in_head, in_tail;
static void (*failure_hook)(void);

void wire_on_failure(void (*clean_up)(void)) {
    failure_hook = clean_up;
}

static void clean_up_once(void) {
    void (*hook)(void) = failure_hook;
    failure_hook = NULL;
    if (hook != NULL)
        hook();
}

/* A larger pipe saves a change of process for each 64 KiB. Where it is refused it stays as it is. */
static void enlarge(int pipe, bool *done) {
    if (!*done)
        (void)fcntl(pipe, F_SETPIPE_SZ, LARGE_PIPE);
    *done = true;
}

/* ---- to the host ---- */

static void flush(void) {
    static bool enlarged;
    if (out_tail >= DATA_RECORD_MAX)
        enlarge(STDOUT_FILENO, &enlarged);
    for (size_t head = 0; head < out_tail;) {
        ssize_t n = write(STDOUT_FILENO, out + head, out_tail - head);
        if (n < 0 && errno != EINTR)
            _exit(EXIT_FAILED);
        if (n > 0)
            head += (size_t)n;
    }
    out_tail = 0;
}

static void put_header(unsigned char *p, enum record_type type, size_t length) {
    put_u32(p, (uint32_t)length);
    put_u32(p + 4, type);
}

/* Returns where the payload goes. There is room for the largest ENTRY at any time. */
static unsigned char *begin(enum record_type type, size_t length) {
    if (out_tail >= SMALL_RECORDS)
        flush();
    unsigned char *p = out + out_tail;
    put_header(p, type, length);
    out_tail += RECORD_HEADER + length;
    return p + RECORD_HEADER;
}

enum file_kind kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFREG:
        return KIND_FILE;
    case S_IFDIR:
        return KIND_DIRECTORY;
    case S_IFLNK:
        return KIND_SYMLINK;
    case S_IFIFO:
        return KIND_FIFO;
    case S_IFSOCK:
        return KIND_SOCKET;
    case S_IFCHR:
        return KIND_CHARACTER_DEVICE;
    case S_IFBLK:
        return KIND_BLOCK_DEVICE;
    default:
        return KIND_OTHER;
    }
}

static uint64_t nanoseconds(const struct timespec *time) {
    return (uint64_t)((int64_t)time->tv_sec * 1000000000 + time->tv_nsec);
}

void wire_entry(const char *name, const struct stat *about, const char *target) {
    size_t name_length = strlen(name), target_length = strlen(target);
    unsigned char *p = begin(RECORD_ENTRY, ENTRY_FIXED + name_length + target_length);
    put_u16(p, (uint16_t)kind_of(about->st_mode));
    put_u16(p + 2, (uint16_t)name_length);
    put_u16(p + 4, (uint16_t)target_length);
    put_u16(p + 6, 0);
    put_u32(p + 8, about->st_mode & 07777);
    put_u32(p + 12, about->st_uid);
    put_u32(p + 16, about->st_gid);
    put_u64(p + 20, (uint64_t)about->st_size);
    put_u64(p + 28, nanoseconds(&about->st_mtim));
    memcpy(p + ENTRY_FIXED, name, name_length);
    memcpy(p + ENTRY_FIXED + name_length, target, target_length);
}

unsigned char *wire_data_begin(size_t *room) {
    if (out_tail >= SMALL_RECORDS)
        flush();
    *room = DATA_RECORD_MAX;
    return out + out_tail + RECORD_HEADER;
}

void wire_data_commit(size_t length) {
    put_header(out + out_tail, RECORD_DATA, length);
    out_tail += RECORD_HEADER + length;
}

void wire_mark(enum record_type type) {
    begin(type, 0);
}

void wire_done(void) {
    begin(RECORD_DONE, 0);
    flush();
}

_Noreturn void wire_fail(uint32_t reason, const char *path) {
    static struct failure {
        uint32_t reason;
        const char *path;
    } first; /* what cleaning up may meet on top of it is not told */
    if (first.path == NULL)
        first = (struct failure){.reason = reason, .path = path};
    clean_up_once();
    size_t length = strnlen(first.path, PATH_MAX - 1);
    unsigned char *p = begin(RECORD_FAILED, FAILED_FIXED + length);
    put_u32(p, first.reason);
    memcpy(p + FAILED_FIXED, first.path, length);
    flush();
    _exit(EXIT_FAILED);
}

/* ---- from the host ---- */

static _Noreturn void abandon(void) {
    clean_up_once();
    _exit(EXIT_ABANDONED);
}

static _Noreturn void misunderstand(void) {
    wire_fail(EPROTO, "");
}

static void fill(void) {
    ssize_t n;
    do
        n = read(STDIN_FILENO, in + in_tail, IN_CAPACITY - in_tail);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        abandon();
    in_tail += (size_t)n;
}

/* Returns the next `length` bytes in one piece, which is valid until more is read. */
static const unsigned char *take(size_t length) {
    if (in_head == in_tail)
        in_head = in_tail = 0;
    if (in_head + length > IN_CAPACITY) {
        memmove(in, in + in_head, in_tail - in_head);
        in_tail -= in_head;
        in_head = 0;
    }
    while (in_tail - in_head < length)
        fill();
    in_head += length;
    return in + in_head - length;
}

static bool length_ok(uint32_t type, uint32_t length) {
    switch (type) {
    case RECORD_ENTRY:
        return length >= ENTRY_FIXED && length <= ENTRY_MAX;
    case RECORD_DATA:
        return length >= 1 && length <= DATA_RECORD_MAX;
    case RECORD_CLOSE:
    case RECORD_UP:
    case RECORD_DONE:
        return length == 0;
    default:
        return false;
    }
}

void wire_wait(void) {
    if (in_head == in_tail)
        fill();
}

void wire_next(struct record *record) {
    const unsigned char *p = take(RECORD_HEADER);
    uint32_t length = get_u32(p), type = get_u32(p + 4);
    if (!length_ok(type, length))
        misunderstand();
    *record = (struct record){.type = (enum record_type)type, .length = length};
}

static bool name_ok(const struct entry *entry, size_t length, bool is_root) {
    const char *name = entry->name;
    if (is_root)
        return length == 0;
    return length > 0 && strlen(name) == length && strchr(name, '/') == NULL &&
           strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

void wire_read_entry(const struct record *record, struct entry *entry, bool is_root) {
    const unsigned char *p = take(record->length);
    size_t name_length = get_u16(p + 2), target_length = get_u16(p + 4);
    if (name_length > NAME_MAX || target_length >= PATH_MAX ||
        record->length != ENTRY_FIXED + name_length + target_length)
        misunderstand();
    entry->kind = (enum file_kind)get_u16(p);
    entry->mode = get_u32(p + 8) & 0777;
    memcpy(entry->name, p + ENTRY_FIXED, name_length);
    entry->name[name_length] = 0;
    memcpy(entry->target, p + ENTRY_FIXED + name_length, target_length);
    entry->target[target_length] = 0;
    if (!name_ok(entry, name_length, is_root) || strlen(entry->target) != target_length)
        misunderstand();
}

size_t wire_read_data(uint32_t left, const unsigned char **data) {
    static bool enlarged;
    if (left == DATA_RECORD_MAX)
        enlarge(STDIN_FILENO, &enlarged);
    if (in_head == in_tail) {
        in_head = in_tail = 0;
        fill();
    }
    size_t size = in_tail - in_head < left ? in_tail - in_head : left;
    *data = in + in_head;
    in_head += size;
    return size;
}
