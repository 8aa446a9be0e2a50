"""What a backend may be able to do and to enforce: one name, one sentence each."""

from __future__ import annotations

from typing import Final

EXEC: Final = "exec"
EXEC_STDIN: Final = "exec.stdin"
EXEC_USER: Final = "exec.user"
EXEC_KILL_TREE: Final = "exec.kill_tree"
EXEC_PTY: Final = "exec.pty"
FILES: Final = "files"
PAUSE: Final = "pause"
NET_NONE: Final = "net.none"
FS_HOST_TOOLCHAIN: Final = "fs.host_toolchain"
FS_ROOTFS: Final = "fs.rootfs"
FS_READONLY_ROOT: Final = "fs.readonly_root"
FS_TMP_SIZE: Final = "fs.tmp_size"
LIMITS_MEMORY: Final = "limits.memory"
LIMITS_CPU: Final = "limits.cpu"
LIMITS_PIDS: Final = "limits.pids"
LIMITS_OPEN_FILES: Final = "limits.open_files"
USERNS: Final = "userns"
NO_NEW_PRIVS: Final = "no_new_privs"
NO_CAPABILITIES: Final = "no_capabilities"

DESCRIPTIONS: Final[dict[str, str]] = {
    EXEC: "start a command and report its output and exit status",
    EXEC_STDIN: "feed a command's standard input",
    EXEC_USER: "start a command as any user of the box",
    EXEC_KILL_TREE: "kill a command with everything it has started, wherever that has moved",
    EXEC_PTY: "start a command in a pseudo terminal",
    FILES: "read and write files without a program in the box",
    PAUSE: "stop the whole box and let it go on",
    NET_NONE: "give the box no network but its own loopback",
    FS_HOST_TOOLCHAIN: "show the host's own programs, read-only, as the root file system",
    FS_ROOTFS: "use a directory as the root file system",
    FS_READONLY_ROOT: "refuse every write to the root file system",
    FS_TMP_SIZE: "bound the size of the writable directories",
    LIMITS_MEMORY: "bound memory and swap together",
    LIMITS_CPU: "bound CPU time per second",
    LIMITS_PIDS: "bound the number of processes",
    LIMITS_OPEN_FILES: "bound the number of open files of a process",
    USERNS: "map the ids of the box to a range of the host that nobody else uses",
    NO_NEW_PRIVS: "make sure that no program of the box gains privileges by being executed",
    NO_CAPABILITIES: "start commands with no capability in any set",
}

ALL: Final[frozenset[str]] = frozenset(DESCRIPTIONS)
