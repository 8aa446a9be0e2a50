#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

enum { NAME_SIZE = 12, OWNER_ONLY = 0600 };

/* The libc's headers may be older than the call. */
#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

/* The directory itself: a command with user 0 may replace /dev/ptmx, but nothing in here. */
static int directory = -1;
/* Seen by the call that it lacks. It does not send SIGWINCH either. */
static bool is_gvisor;

void terminal_prepare(void) {
    directory = open("/dev/pts", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static int open_by_number(int own) {
    unsigned number;
    char name[NAME_SIZE] = {0};
    char *p = name + sizeof name - 1;
    if (ioctl(own, TIOCGPTN, &number) != 0)
        return -1;
    do
        *--p = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return openat(directory, p, O_RDWR | O_NOCTTY | O_NOFOLLOW | O_CLOEXEC);
}

/* gVisor has no TIOCGPTPEER. By its number the terminal can only be opened in the directory that
   it was made in, as elsewhere the number is another's. */
static int open_theirs(int own, bool in_directory) {
    int theirs = ioctl(own, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    is_gvisor = theirs < 0 && (errno == ENOTTY || errno == EINVAL);
    return is_gvisor && in_directory ? open_by_number(own) : theirs;
}

static int set_up(int own, bool in_directory, const struct winsize *size, int *theirs) {
    int unlocked = 0;
    *theirs = -1;
    if (ioctl(own, TIOCSPTLCK, &unlocked) != 0)
        return errno;
    *theirs = open_theirs(own, in_directory);
    /* devpts lets a group write to it, as mount options say: another command's group, maybe. */
    if (*theirs < 0 || fchmod(*theirs, OWNER_ONLY) != 0 || ioctl(own, TIOCSWINSZ, size) != 0)
        return errno;
    return 0;
}

int terminal_make(uint16_t rows, uint16_t columns, int *own, int *theirs) {
    const int flags = O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    *own = directory < 0 ? -1 : openat(directory, "ptmx", flags);
    bool in_directory = *own >= 0;
    /* Hosts often let nobody open that one. */
    if (*own < 0)
        *own = open("/dev/ptmx", flags);
    if (*own < 0)
        return errno;
    int error = set_up(*own, in_directory, &size, theirs);
    if (error == 0)
        return 0;
    if (*theirs >= 0)
        close(*theirs);
    close(*own);
    *own = *theirs = -1;
    return error;
}

int terminal_take(int theirs) {
    return ioctl(theirs, TIOCSCTTY, 0) == 0 ? 0 : errno;
}

bool terminal_resize(int own, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    ioctl(own, TIOCSWINSZ, &size);
    return !is_gvisor;
}

/* In a line that has been begun the first one only hands over what is there. */
size_t terminal_end_of_input(int own, unsigned char last, unsigned char typed[TERMINAL_END_MAX]) {
    struct termios settings;
    if (tcgetattr(own, &settings) != 0 || settings.c_cc[VEOF] == _POSIX_VDISABLE)
        return 0;
    typed[0] = typed[1] = settings.c_cc[VEOF];
    return (settings.c_lflag & ICANON) && last != 0 && last != '\n' && last != '\r' ? 2 : 1;
}
