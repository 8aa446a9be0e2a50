/* The numbers of the guest protocol; docs/reference/guest-protocol.md is the contract. */
#ifndef KAVACH_PROTO_H
#define KAVACH_PROTO_H

enum {
    HEADER_SIZE = 12,
    DATA_MAX = 65536,
    START_MAX = 1048576,
    PING_MAX = 64,
    ERROR_MAX = 256,
    HELLO_SIZE = 8,
    CREDIT_INITIAL = 262144,
    CREDIT_MAX = 16777216,
    GROUPS_MAX = 64,
    SLOTS = 1008,
    MARKER_FIRST = 64512, /* the group of slot 0 */
    AGENT_USER = MARKER_FIRST + SLOTS, /* nobody's but the agent's */
    KILL_PATIENCE_MS = 400,
};

enum { PROTO_MAJOR = 1, PROTO_MINOR = 2 };

enum frame_type {
    HOST_HELLO = 0x01,
    HOST_START = 0x02,
    HOST_DATA = 0x03,
    HOST_EOF = 0x04,
    HOST_CREDIT = 0x05,
    HOST_SIGNAL = 0x06,
    HOST_KILL = 0x07,
    HOST_CLOSE = 0x08,
    HOST_PING = 0x09,
    HOST_RESIZE = 0x0A,
    HOST_PROCESSES = 0x0B,
    HOST_CPU = 0x0C,
    HOST_KILL_REST = 0x0D,
    GUEST_HELLO = 0x81,
    GUEST_STARTED = 0x82,
    GUEST_DATA = 0x83,
    GUEST_EOF = 0x84,
    GUEST_CREDIT = 0x85,
    GUEST_EXITED = 0x86,
    GUEST_FAILED = 0x87,
    GUEST_KILLED = 0x88,
    GUEST_PONG = 0x89,
    GUEST_END = 0x8A,
    GUEST_PROCESS = 0x8B,
    GUEST_LISTED = 0x8C,
    GUEST_CPU = 0x8D,
    GUEST_DRAINED = 0x8E,
    GUEST_ERROR = 0x8F,
};

enum start_tag {
    TAG_ARG = 1,
    TAG_ENV = 2,
    TAG_CWD = 3,
    TAG_UID = 4,
    TAG_GID = 5,
    TAG_GROUP = 6,
    TAG_STDIN = 7,
    TAG_UMASK = 8,
    TAG_TTY = 9,
    TAG_TOOL = 10,
    TAG_LABEL = 11,
};

enum failure_stage {
    STAGE_NONE = 0,
    STAGE_REQUEST = 1,
    STAGE_RESOURCES = 2,
    STAGE_IDENTITY = 3,
    STAGE_DIRECTORY = 4,
    STAGE_PROGRAM = 5,
};

#endif
