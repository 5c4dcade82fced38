"""The sandboxes' filter of system calls: allows what programs there need, and nothing that bypasses the namespaces.

A classic BPF program for seccomp(2), for x86-64 and ARM64. The numbers are from the kernel's arch/x86/entry/syscalls/
syscall_64.tbl and include/uapi/asm-generic/unistd.h. A call that is on no list here gets ENOSYS, as from an older
kernel, so that libraries use another call. tests/terminal/test_programs.py runs shells, compilers and package managers
in it.
"""

import errno
import platform
import struct

from edge.errors import SandboxError

# Refused with EPERM; the numbers on x86-64 and on ARM64 (None: no such call).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # The kernel's key rings: the sandbox inherits the user's session ring and could read it.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # New namespaces and mounts.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Memory and files of other processes, such as pid 1 and the process that answers edge.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Parts of the kernel with many past vulnerabilities, which programs do not need.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    # The machine itself. These need capabilities too.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}
# Allowed with all arguments: a name, and its numbers on x86-64 and on ARM64 (-: no such call). Not here, on purpose:
# memory that no limit of a process or file system covers (memfd_create, memfd_secret, System V IPC, POSIX queues); what
# counts against the user or the machine outside (inotify, io_setup, sync); the placement of memory (mbind); clone3,
# whose flags the filter cannot read.
_ALLOWED = (
    # Files and folders.
    """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, open 2 -, openat 257 56, openat2 437 437, creat 85 -, close 3 57,
close_range 436 436, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, lseek 8 62, access 21 -,
faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61,
getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34,
rmdir 84 -, mknod 133 -, mknodat 259 33, link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35, symlink 88 -,
symlinkat 266 36, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -,
fchownat 260 54, umask 95 166, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, truncate 76 45,
ftruncate 77 46, fallocate 285 47, fadvise64 221 223, readahead 187 213, statfs 137 43, fstatfs 138 44, fsync 74 82,
fdatasync 75 83, sync_file_range 277 84, flock 73 32, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -,
pipe2 293 59, sendfile 40 71, splice 275 76, tee 276 77, copy_file_range 326 285, setxattr 188 5, lsetxattr 189 6,
fsetxattr 190 7, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12,
flistxattr 196 13, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, setxattrat 463 463,
getxattrat 464 464, listxattrat 465 465, removexattrat 466 466, cachestat 451 451
""",
    # Waiting.
    """
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, signalfd 282 -,
signalfd4 289 74, timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87
""",
    # Memory.
    """
brk 12 214, munmap 11 215, mremap 25 216, mprotect 10 226, msync 26 227, mincore 27 232, madvise 28 233,
mlock 149 228, mlock2 325 284, munlock 150 229, mlockall 151 230, munlockall 152 231, membarrier 324 283,
get_mempolicy 239 236, pkey_alloc 330 289, pkey_free 331 290, pkey_mprotect 329 288, map_shadow_stack 453 453,
mseal 462 462
""",
    # Processes and threads.
    """
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95,
getpid 39 172, getppid 110 173, gettid 186 178, getpgid 121 155, setpgid 109 154, getpgrp 111 -, getsid 124 156,
setsid 112 157, kill 62 129, tkill 200 130, tgkill 234 131, pidfd_open 434 434, pidfd_send_signal 424 424,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, sigaltstack 131 132, pause 34 -,
restart_syscall 219 128, futex 202 98, futex_waitv 449 449, futex_wake 454 454, futex_wait 455 455,
futex_requeue 456 456, set_robust_list 273 99, get_robust_list 274 100, set_tid_address 218 96, rseq 334 293,
arch_prctl 158 -, prctl 157 167, seccomp 317 277, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getresuid 118 148, getresgid 120 150, getgroups 115 158, setuid 105 146, setgid 106 144, setreuid 113 145,
setregid 114 143, setresuid 117 147, setresgid 119 149, setfsuid 122 151, setfsgid 123 152, setgroups 116 159,
capget 125 90, capset 126 91, sched_yield 24 124, sched_getaffinity 204 123, sched_setaffinity 203 122,
sched_getparam 143 121, sched_setparam 142 118, sched_getscheduler 145 120, sched_setscheduler 144 119,
sched_get_priority_max 146 125, sched_get_priority_min 147 126, sched_rr_get_interval 148 127, sched_getattr 315 275,
sched_setattr 314 274, getpriority 140 141, setpriority 141 140, ioprio_get 252 31, ioprio_set 251 30,
getrlimit 97 163, getrusage 98 165, getcpu 309 168
""",
    # Time and the machine.
    """
time 201 -, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115,
nanosleep 35 101, times 100 153, alarm 37 -, getitimer 36 102, setitimer 38 103, timer_create 222 107,
timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, uname 63 160,
sysinfo 99 179, getrandom 318 278
""",
    # Sockets of the families below.
    """
bind 49 200, connect 42 203, listen 50 201, accept 43 202, accept4 288 242, getsockname 51 204, getpeername 52 205,
sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, sendmmsg 307 269, recvmmsg 299 243, getsockopt 55 209,
shutdown 48 210
""",
)
# Allowed with some arguments.
_CLONE, _IOCTL, _SOCKET, _SOCKETPAIR = (56, 220), (16, 29), (41, 198), (53, 199)
_SETSOCKOPT, _PERSONALITY = (54, 208), (135, 92)
_MMAP, _SETRLIMIT, _PRLIMIT = (9, 222), (160, 164), (302, 261)
_MAP_HUGETLB = 0x40000  # pages of a pool that no limit counts
_RLIMIT_CORE = 4
_FCNTL, _SETLEASE, _NOTIFY = (72, 25), 1024, 1026  # watch and hold files of the system
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
# TIOCSTI, TIOCLINUX: insert input as if it was typed. TIOCSETD loads a line discipline of the kernel. TIOCEXCL keeps
# edge out of the terminal. TIOCCONS takes the messages of the system's console.
_TERMINAL = (0x5412, 0x541C, 0x5423, 0x540C, 0x541D)
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM, _TYPE_MASK = 1, 2, 0xF
_TCP, _UDP, _TCP_ULP = 6, 17, 31
_QUERY = 0xFFFFFFFF  # personality(2): return it as it is

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


_Line = tuple[int, int, int, int]
"""One `struct sock_filter`: code, jump if true, jump if false, operand."""


def seccomp_filter() -> bytes:
    """The filter for this machine, as an array of `struct sock_filter`. Raises SandboxError on other processors."""
    if not supported():
        raise SandboxError(
            f"the sandbox supports x86-64 and ARM64 only, and this is {platform.machine()}: use --review"
        )
    column, architecture = _ARCHITECTURES[platform.machine()]
    refuse, missing = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    program: list[_Line] = [
        (_LOAD, 0, 0, 4),  # the architecture: a 32-bit program numbers its calls differently
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, missing),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32
        (_RETURN, 0, 0, missing),
    ]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    for number, lines in _by_argument(column, refuse):
        program += [(_EQUAL, 0, len(lines), number), *lines]
    for first, last in _ranges(_allowed_numbers(column)):
        program += [(_AT_LEAST, 3, 0, last + 1), (_AT_LEAST, 0, 1, first), (_RETURN, 0, 0, _ALLOW)]
        program.append((_RETURN, 0, 0, missing))  # between two ranges
    program.append((_RETURN, 0, 0, missing))
    return b"".join(struct.pack("=HBBI", *line) for line in program)


def _allowed_numbers(column: int) -> list[int]:
    """The numbers of the calls that are allowed with all arguments, in order."""
    words = [entry.split() for text in _ALLOWED for entry in text.split(",")]
    return sorted(int(word[1 + column]) for word in words if word[1 + column] != "-")


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """The first and last number of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _by_argument(column: int, refuse: int) -> list[tuple[int, list[_Line]]]:
    """The calls that the filter allows with some arguments only: each call's number, and the lines that decide."""
    allow, no = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, refuse)
    nothing = (_RETURN, 0, 0, _ERROR)  # the call succeeds and does nothing
    # A jump counts the lines that it skips.
    terminal = [(_EQUAL, len(_TERMINAL) - i, 0, one) for i, one in enumerate(_TERMINAL)]
    return [
        (_CLONE[column], [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), no, allow]),
        (
            _IOCTL[column],
            [_argument(1), *terminal, allow, no],
        ),  # the kernel reads only the request's lower 32 bits
        (
            _SOCKET[column],
            [_argument(0), *_families(), allow, no, (_RETURN, 0, 0, _ERROR | errno.EPROTONOSUPPORT)],
        ),
        (_MMAP[column], [_argument(3), (_ANY_BIT, 0, 1, _MAP_HUGETLB), no, allow]),
        (
            _FCNTL[column],
            [_argument(1), (_EQUAL, 1, 0, _SETLEASE), (_EQUAL, 0, 1, _NOTIFY), no, allow],
        ),
        # Programs set the limit of core dumps to 0, which would let the crash handler run again (confined.no_core).
        (_SETRLIMIT[column], [_argument(0), (_EQUAL, 0, 1, _RLIMIT_CORE), nothing, allow]),
        (
            _PRLIMIT[column],
            [
                *(_argument(1), (_EQUAL, 0, 4, _RLIMIT_CORE)),
                *(_argument(2), (_EQUAL, 0, 3, 0), _argument(2, upper=True), (_EQUAL, 0, 1, 0)),
                *(allow, nothing),
            ],
        ),
        (_SOCKETPAIR[column], [_argument(0), (_EQUAL, 0, 1, _UNIX), allow, no]),
        # An upper layer protocol on TCP, such as TLS in the kernel.
        (
            _SETSOCKOPT[column],
            [_argument(1), (_EQUAL, 0, 2, _TCP), _argument(2), (_EQUAL, 1, 0, _TCP_ULP), allow, no],
        ),
        (_PERSONALITY[column], [_argument(0), (_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, _QUERY), allow, no]),
    ]


def _families() -> list[_Line]:
    """The lines for a socket's family, which is loaded, before the answers allow, refuse, and no such protocol.

    Only families that the network namespace contains: AF_VSOCK reaches a virtual machine's host from any of them. Of IP
    only TCP and UDP: SCTP, MPTCP and DCCP are large parts of the kernel, some loaded by the first socket.
    """
    return [
        (_EQUAL, 13, 0, _UNIX),
        (_EQUAL, 4, 0, _INET),
        (_EQUAL, 3, 0, _INET6),
        (_EQUAL, 0, 11, _NETLINK),
        _argument(2),
        (_EQUAL, 8, 9, 0),  # NETLINK_ROUTE, which getifaddrs uses
        _argument(1),
        (_AND, 0, 0, _TYPE_MASK),
        (_EQUAL, 1, 0, _STREAM),
        (_EQUAL, 0, 6, _DATAGRAM),
        _argument(2),
        (_EQUAL, 2, 0, 0),
        (_EQUAL, 1, 0, _TCP),
        (_EQUAL, 0, 2, _UDP),
    ]


def _argument(index: int, *, upper: bool = False) -> _Line:
    """Load the lower or upper half of a call's argument; both architectures are little-endian."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * upper)
