#include "request.h"

#include <errno.h>
#include <string.h>

#include "bytes.h"

enum { FIELD_HEADER = 5, DEFAULT_UMASK = 0022 };

/* The most strings a START can hold, and the two NULLs. Only the pages in use cost memory. */
static char *strings[START_MAX / FIELD_HEADER + 2];

struct counts {
    size_t args;
    size_t envs;
    unsigned seen; /* a bit for each tag */
};

/* Numbers that mean something else: -1 is "leave it" to the kernel, and a marker would forge a slot. */
static bool group_allowed(gid_t gid) {
    return gid != (gid_t)-1 && (gid < MARKER_FIRST || gid >= MARKER_FIRST + SLOTS);
}

static bool is_repeatable(uint8_t tag) {
    return tag == TAG_ARG || tag == TAG_ENV || tag == TAG_GROUP;
}

static bool is_string(uint8_t tag) {
    return tag == TAG_ARG || tag == TAG_ENV || tag == TAG_CWD;
}

static bool text_ok(uint8_t tag, const unsigned char *value, uint32_t length) {
    if (memchr(value, 0, length) != NULL)
        return false;
    if (tag == TAG_CWD)
        return length > 0 && value[0] == '/';
    if (tag == TAG_ENV)
        return length > 0 && value[0] != '=' && memchr(value, '=', length) != NULL;
    return true;
}

static bool take_group(struct request *r, gid_t gid) {
    if (r->group_count == GROUPS_MAX || !group_allowed(gid))
        return false;
    r->groups[r->group_count++] = gid;
    return true;
}

static bool take_flag(bool *flag, uint8_t value) {
    *flag = value == 1;
    return value <= 1;
}

static bool take_size(struct request *r, const unsigned char *value) {
    r->rows = get_u16(value);
    r->columns = get_u16(value + 2);
    return r->rows > 0 && r->columns > 0;
}

static bool take_number(struct request *r, uint8_t tag, uint32_t number) {
    switch (tag) {
    case TAG_UID:
        r->uid = number;
        return number != (uid_t)-1 && number != AGENT_USER;
    case TAG_GID:
        r->gid = number;
        return group_allowed(number);
    case TAG_GROUP:
        return take_group(r, number);
    default:
        r->umask = number;
        return number <= 0777;
    }
}

static bool take_value(struct request *r, uint8_t tag, const unsigned char *value,
                       uint32_t length) {
    static const uint8_t sizes[] = {[TAG_UID] = 4,  [TAG_GID] = 4,   [TAG_GROUP] = 4,
                                    [TAG_STDIN] = 1, [TAG_UMASK] = 4, [TAG_TTY] = 4,
                                    [TAG_TOOL] = 1,  [TAG_LABEL] = 8};
    if (length != sizes[tag])
        return false;
    switch (tag) {
    case TAG_STDIN:
        return take_flag(&r->stdin_pipe, value[0]);
    case TAG_TOOL:
        return take_flag(&r->tool, value[0]);
    case TAG_TTY:
        return take_size(r, value);
    case TAG_LABEL:
        r->label = get_u64(value);
        return true;
    default:
        return take_number(r, tag, get_u32(value));
    }
}

static bool take_field(struct request *r, struct counts *counts, uint8_t tag,
                       const unsigned char *value, uint32_t length) {
    if (tag < TAG_ARG || tag > TAG_LABEL)
        return false;
    if ((counts->seen & 1U << tag) && !is_repeatable(tag))
        return false;
    counts->seen |= 1U << tag;
    if (!is_string(tag))
        return take_value(r, tag, value, length);
    counts->args += tag == TAG_ARG;
    counts->envs += tag == TAG_ENV;
    return text_ok(tag, value, length);
}

static bool check_fields(unsigned char *p, const unsigned char *end, struct request *r,
                         struct counts *counts) {
    const unsigned required = 1U << TAG_ARG | 1U << TAG_UID | 1U << TAG_GID;
    while (p < end) {
        if (end - p < FIELD_HEADER)
            return false;
        uint32_t length = get_u32(p + 1);
        if (length > (size_t)(end - p) - FIELD_HEADER)
            return false;
        if (!take_field(r, counts, p[0], p + FIELD_HEADER, length))
            return false;
        p += FIELD_HEADER + length;
    }
    return (counts->seen & required) == required;
}

/* The byte before a string, the last of its length, has been read: moving the string there
   makes room for the NUL without a copy of the request. */
static char *terminate(unsigned char *value, uint32_t length) {
    unsigned char *text = value - 1;
    memmove(text, value, length);
    text[length] = 0;
    return (char *)text;
}

static void collect_strings(unsigned char *p, const unsigned char *end, struct request *r) {
    size_t arg = 0, env = 0;
    while (p < end) {
        uint8_t tag = p[0];
        uint32_t length = get_u32(p + 1);
        unsigned char *value = p + FIELD_HEADER;
        if (tag == TAG_ARG)
            r->argv[arg++] = terminate(value, length);
        else if (tag == TAG_ENV)
            r->envp[env++] = terminate(value, length);
        else if (tag == TAG_CWD)
            r->cwd = terminate(value, length);
        p = value + length;
    }
    r->argv[arg] = NULL;
    r->envp[env] = NULL;
}

int request_parse(unsigned char *payload, uint32_t length, struct request *r) {
    struct counts counts = {0};
    *r = (struct request){.cwd = "/", .umask = DEFAULT_UMASK};
    if (!check_fields(payload, payload + length, r, &counts))
        return EINVAL;
    r->argv = strings;
    r->envp = strings + counts.args + 1;
    collect_strings(payload, payload + length, r);
    return 0;
}
