"""The table: each case, the victim that is it, and what must become of it.

At attach and at cutover and abort and when they are put back. `moved`, `stays`,
or the codes of the reasons for which livemv refuses it, joined by "+" (see
tests/victims/run). A case that becomes movable fails until this table says so.
"""
import dataclasses

MOMENTS = ("attach", "cutover", "abort", "rollback")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    program: str
    args: tuple = ()         # {} is the case's own directory
    attach: str = "moved"
    cutover: str = "moved"
    abort: str = "moved"
    inside: bool = False     # begins with its directory as working directory
    files: tuple = ()        # made empty before it begins
    lines: tuple = ()        # (file, tag): has "TAG 0" to "TAG n-1" in the end
    stopped: bool = False    # in state T until it is told to end
    born: bool = True        # at cutover and abort also with files born on the overlay

    @property
    def sample(self):
        return self.name in SAMPLE

    def at(self, moment):
        if moment == "rollback":  # of what is refused nothing is ever put back
            moved = (self.attach, self.cutover, self.abort) == ("moved",) * 3
            return "moved" if moved else "-"
        return getattr(self, moment)


def victim(program, *names, **kw):
    """Cases of one program that takes its directory and what it is to be."""
    return [Case(f"{program}/{name}", program, ("{}", name), **kw) for name in names]


def refused(codes, program, *names, **kw):
    return victim(program, *names, **{**dict(attach=codes, cutover=codes, abort=codes), **kw})


LOGS = ("log.0", "log.1", "log.2", "log.3")

# In tests/run too: one of each row and of each way it can end.
SAMPLE = ("idle", "zombie_leader", "sleepers", "places/cwd", "places/root", "places/closed",
          "descriptors/offset", "descriptors/dropped", "descriptors/254", "descriptors/passed",
          "descriptors/deleted", "states/vfork", "states/stopped_child", "blocked/recv_timeout",
          "locks/ofd", "locks/posix", "mappings/private_dirty")

CASES = [
    # What holds a working directory and descriptors, and what threads do.
    Case("idle", "idle", inside=True, files=LOGS),
    Case("appender", "appender", ("A", "2000"), inside=True, files=LOGS),
    Case("shared_offset", "shared_offset", ("{}/log.0",), files=LOGS),
    Case("thread_storm", "thread_storm", ("{}/log.0",), files=LOGS, lines=(("log.0", "T"),)),
    Case("exec_storm", "exec_storm", ("{}/log.0",), files=LOGS, lines=(("log.0", "E"),)),
    Case("own_tables", "own_tables", inside=True, files=("log.20",), lines=(("log.20", "O"),)),
    Case("zombie_leader", "own_tables", ("x",), inside=True, files=("log.20",),
         lines=(("log.20", "O"),)),
    Case("registers", "registers", inside=True, born=False),
    Case("rseq_counter", "rseq_counter", inside=True, born=False),
    Case("seccomp_filter", "strict", ("{}/log.0",), files=LOGS, lines=(("log.0", "S"),)),
    Case("stopped_job", "stopped_job", ("{}/log.0",), files=LOGS, lines=(("log.0", "J"),),
         stopped=True),
    # Calls that sleep end when they should, by what they were waiting for.
    # Their slack is a machine full of other victims.
    Case("sleepers", "sleepers", ("20000",), inside=True, born=False),
    Case("signals", "signals", inside=True, born=False),

    *victim("places", "cwd", "renamed", "odd_name", "shared"),
    *refused("deleted", "places", "deleted"),
    *refused("root", "places", "root"),
    *refused("long-path", "places", "long"),
    *refused("undone: fchdir in thread", "places", "closed"),

    *victim("descriptors", "offset", "append", "sync", "dsync", "direct", "nonblock",
            "noatime", "async", "append_later", "owner", "close_on_exec", "path_only",
            "path_only_directory", "dup", "passed", "shared_table", "dropped",
            "dropped_mode_0", "mode_forbids", "1", "253", "254",
            "create_flags", "directory", "durable"),
    *victim("descriptors", "5000", born=False),  # 20,000 more are beyond many a hard limit
    # On the bare source /proc calls it deleted; on the overlay it is looked up.
    *victim("descriptors", "one_name_gone", attach="deleted"),
    *refused("undone: is full and its limit cannot be raised", "descriptors", "full_table"),
    *refused("kind", "descriptors", "symbolic_link", "device"),
    *refused("half-read-directory", "descriptors", "half_read", "read_to_its_end"),
    *refused("deleted", "descriptors", "deleted", "replaced", "tmpfile"),
    # In a socket's queue, and nowhere else.
    *victim("descriptors", "in_flight", attach="unseen", cutover="unseen", abort="-"),

    *victim("states", "spinners", "fork_storm", "spawn_storm", "kill_storm", "vfork",
            "stopped_child", "stop_storm", "seccomp_strict", "user_dispatch",
            "sigtrap_ignored", "sigtrap_blocked", "sigtrap_handled", "pending_signal", "tracer",
            "mounts_private", "mounts_slave", "mounts_shared", "pids", "users", "container",
            "locked", "not_dumpable", "no_executable_memory", "no_stack",
            "small_stack", "timers", born=False),
    *victim("blocked", "fifo", "pipe", "write", "setlkw", "flock", "recv", "recv_timeout",
            "accept", "poll", "ppoll", "select", "epoll_wait", "epoll_pwait", "epoll_hour",
            "futex", "sigsuspend", "pause", "sigwait", "sigwaitinfo", "waitpid", "nanosleep",
            "inotify", "eventfd", "msgrcv", "semop", "semtimedop", born=False),
    *refused("undone: mmap in thread", "states", "no_memory"),
    *refused("traced", "states", "traced"),
    *refused("32-bit", "states", "32_bits"),

    # Not with files born on the overlay: who opens one anew in the first moments
    # of an abort may get its lock (README, Limits).
    *victim("locks", "flock", "flock_read_only", "flock_forked", "ofd", "ofd_forked", "posix",
            born=False),
    *refused("lease", "locks", "lease"),

    *refused("mapping", "mappings", "shared", "private_written"),
    *refused("mapping", "mappings", "private", "private_dirty", "shared_read_only", "text",
             "locked", cutover="stays", abort="stays"),
    *refused("exe+mapping", "mappings", "exe", cutover="stays", abort="stays"),

    *refused("socket", "objects", "listener", "datagrams"),
    *victim("objects", "sockets_elsewhere"),
    *refused("fifo", "objects", "fifo"),
    *refused("epoll+fifo", "objects", "epoll"),
    *refused("watch", "objects", "inotify", "fanotify"),
    *victim("objects", "fanotify_mount"),
    *victim("objects", "fanotify_mount"),
    *refused("io_uring", "objects", "io_uring"),
    *refused("aio", "objects", "aio"),
]


def by_name(name):
    return next(c for c in CASES if c.name == name)
