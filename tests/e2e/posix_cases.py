"""Every system call on every kind of object as several users: the cases, and
what runs them. A case is a directory of its own with one object in it; a call is
made there by one user; what it answered and what the directory looks like
afterwards is the outcome. There is no table of right answers: the same cases on
a local filesystem give those (tests/e2e/test_posix.py).
"""
import ctypes
import errno
import hashlib
import os
import pickle
import signal
import socket
import stat
import struct
import time

# (uid, gid, supplementary groups): root, the owner, one of the file's group, a
# stranger.
USERS = {"root": (0, 0, []), "owner": (1000, 1000, []), "member": (1001, 1001, [1000]),
         "other": (1002, 1002, [])}
OLD = 1_000_000_000  # s; times that no call gives by accident
NOW, OMIT = 0x3FFFFFFF, 0x3FFFFFFE

libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


# --- objects: made by root in an empty directory; owned by 1000:1000

def put(path, text=b"0123456789"):
    with open(path, "wb") as f:
        f.write(text)


def regular(mode, text=b"0123456789"):
    def make(path):
        put(path, text)
        os.chown(path, 1000, 1000)
        os.chmod(path, mode)
    return make


def directory(mode, inside=()):
    def make(path):
        os.mkdir(path)
        for name in inside:
            put(os.path.join(path, name))
            os.chown(os.path.join(path, name), 1001, 1001)
        os.chown(path, 1000, 1000)
        os.chmod(path, mode)
    return make


def symlink(text, aim=None):
    def make(path):
        if aim:
            aim("aim")
        os.symlink(text, path)
        os.lchown(path, 1000, 1000)
    return make


def node(kind, dev=0, mode=0o644):
    def make(path):
        os.mknod(path, kind | mode, dev)
        os.chown(path, 1000, 1000)
        os.chmod(path, mode)
    return make


def with_acl(path):
    regular(0o640)(path)
    # user::rw-, user:1002:rw-, group::r--, mask::rw-, other::---
    entries = [(1, 6, -1), (2, 6, 1002), (4, 4, -1), (16, 6, -1), (32, 0, -1)]
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(
        struct.pack("<HHi", *entry) for entry in entries))


def with_default_acl(path):
    directory(0o775)(path)
    entries = [(1, 7, -1), (2, 5, 1002), (4, 5, -1), (16, 7, -1), (32, 0, -1)]
    os.setxattr(path, "system.posix_acl_default", struct.pack("<I", 2) + b"".join(
        struct.pack("<HHi", *entry) for entry in entries))


def with_capability(path):
    regular(0o755)(path)
    os.setxattr(path, "security.capability",
                struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))


def with_xattr(path):
    regular(0o644)(path)
    os.setxattr(path, "user.colour", b"red")


def hard_linked(path):
    regular(0o644)(path)
    os.link(path, "second")


OBJECTS = {
    "file": regular(0o644), "empty": regular(0o600, b""), "closed": regular(0),
    "read-only": regular(0o444), "write-only": regular(0o222),
    "setuid": regular(0o6755), "setuid-all": regular(0o6777), "setgid": regular(0o2765), "group": regular(0o660),
    "long": regular(0o644, bytes(range(256)) * 100), "linked": hard_linked,
    "xattr": with_xattr, "acl": with_acl, "capability": with_capability,
    "dir": directory(0o755), "full": directory(0o777, ("in",)),
    "sticky": directory(0o1777, ("in",)), "setgid-dir": directory(0o2775),
    "closed-dir": directory(0, ("in",)), "no-search": directory(0o600, ("in",)),
    "default-acl": with_default_acl,
    "link": symlink("aim", regular(0o644)), "dir-link": symlink("aim", directory(0o755)),
    "dangling": symlink("nowhere"), "loop": symlink("o"),
    "fifo": node(stat.S_IFIFO), "socket": node(stat.S_IFSOCK),
    "char": node(stat.S_IFCHR, os.makedev(1, 3), 0o666),
    "block": node(stat.S_IFBLK, os.makedev(7, 250), 0o660),
    "none": lambda path: None,
}
DIRECTORIES = ("dir", "full", "sticky", "setgid-dir", "closed-dir", "no-search",
               "default-acl", "dir-link")
FEW = ("file", "full", "link", "fifo", "none")

# --- calls: made in the case's directory, where the object is "o"


def opened(path, flags, mode=0o666, act=None):
    fd = os.open(path, flags | os.O_NONBLOCK, mode)
    try:
        return act(fd) if act else None
    finally:
        os.close(fd)


def renamed(new, flags):
    checked(libc.renameat2(-100, b"o", -100, new.encode(), flags))


def linked(flags):
    checked(libc.linkat(-100, b"o", -100, b"new", flags))


def timed(atime, mtime, flags=0):
    times = struct.pack("<4q", *atime, *mtime)
    checked(libc.utimensat(-100, b"o", times, flags))


def allocated(mode, off, size):
    return lambda fd: checked(libc.fallocate(fd, mode, ctypes.c_long(off), ctypes.c_long(size)))


def bound(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)


def connected(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)


def executed(path):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as e:
            os._exit(e.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "exec")


def removed_while_open(fd):
    os.unlink("o")
    os.write(fd, b"more")
    os.fchmod(fd, 0o600)
    os.ftruncate(fd, 3)
    st = os.fstat(fd)
    return st.st_nlink, st.st_size, oct(st.st_mode), os.pread(fd, 100, 0)


def renamed_over_while_open(fd):
    os.rename("beside", "o")
    os.pwrite(fd, b"more", 2)
    return os.fstat(fd).st_nlink, os.pread(fd, 100, 0)


def as_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def given_a_name(fd):
    os.write(fd, b"nameless")
    linkat = libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, b"new", 0x400)
    checked(linkat)
    return os.fstat(fd).st_nlink


R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
C, X, T, A = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
LONG = "n" * 256
DEEP = "d/" * 2500

# name: (objects or None for all, call)
CALLS = {
    "stat": (None, lambda: (lambda s: (oct(s.st_mode), s.st_nlink))(os.stat("o"))),
    "lstat": (None, lambda: (lambda s: (oct(s.st_mode), s.st_uid, s.st_rdev))(os.lstat("o"))),
    "stat o/": (None, lambda: oct(os.stat("o/").st_mode)),
    "stat o/in": (None, lambda: oct(os.stat("o/in").st_mode)),
    "access": (None, lambda: [os.access("o", m) for m in (0, 1, 2, 4, 6, 7)]),
    "open r": (None, lambda: opened("o", R, act=lambda fd: None)),
    "read": (("file", "acl", "long", "group", "link", "closed", "write-only", "capability"),
             lambda: opened("o", R, act=lambda fd: hashlib.md5(os.read(fd, 1 << 16)).hexdigest())),
    "open w": (None, lambda: opened("o", W)),
    "open rw": (FEW + DIRECTORIES, lambda: opened("o", RW)),
    "open c": (None, lambda: opened("o", W | C)),
    "open cx": (None, lambda: opened("o", W | C | X, 0o6777)),
    "open ct": (None, lambda: opened("o", W | C | T, 0o640)),
    "open t": (None, lambda: opened("o", W | T)),
    "open rt": (FEW, lambda: opened("o", RW | T)),
    "open nofollow": (None, lambda: opened("o", R | os.O_NOFOLLOW)),
    "open directory": (None, lambda: opened("o", R | os.O_DIRECTORY)),
    "open path": (None, lambda: opened("o", os.O_PATH)),
    "open noatime": (("file", "dir", "read-only"), lambda: opened("o", R | os.O_NOATIME)),
    "open new mode 0": (("none",), lambda: opened("o", RW | C | X, 0,
                                                   lambda fd: os.write(fd, b"w"))),
    "write": (("file", "setuid", "setuid-all", "setgid", "capability", "group", "acl", "linked"),
              lambda: opened("o", W, act=lambda fd: os.write(fd, b"new"))),
    "append": (("file", "empty", "setuid", "setuid-all", "link"),
               lambda: opened("o", W | A, act=lambda fd: os.write(fd, b"new"))),
    "write nothing": (("setuid", "file"), lambda: opened("o", W, act=lambda fd: os.write(fd, b""))),
    "pwrite far": (("file", "long"), lambda: opened(
        "o", W, act=lambda fd: os.pwrite(fd, b"far", 100_000))),
    "create beside": (("dir", "setgid-dir", "default-acl", "sticky", "full", "closed-dir"),
                      lambda: opened("o/new", W | C | X, 0o666, lambda fd: os.write(fd, b"n"))),
    "mkdir inside": (DIRECTORIES, lambda: os.mkdir("o/new", 0o777)),
    "mknod inside": (DIRECTORIES, lambda: os.mknod("o/new", stat.S_IFIFO | 0o666)),
    "symlink inside": (DIRECTORIES, lambda: os.symlink("text", "o/new")),
    "link inside": (DIRECTORIES, lambda: os.link("beside", "o/new")),
    "unlink inside": (DIRECTORIES, lambda: os.unlink("o/in")),
    "rename inside": (DIRECTORIES, lambda: os.rename("o/in", "o/new")),
    "rename out": (DIRECTORIES, lambda: os.rename("o/in", "new")),
    "rename in": (DIRECTORIES, lambda: os.rename("beside", "o/new")),
    "tmpfile": (DIRECTORIES, lambda: opened("o", W | os.O_TMPFILE, 0o640, given_a_name)),
    "tmpfile lost": (("dir",), lambda: opened("o", RW | os.O_TMPFILE, 0o600,
                                              lambda fd: os.write(fd, b"gone"))),
    "listdir": (DIRECTORIES, lambda: as_directory("o")),
    "chdir": (DIRECTORIES + ("file", "none"), lambda: os.chdir("o")),
    "mkdir": (None, lambda: os.mkdir("o", 0o1777)),
    "mkdir o/": (FEW, lambda: os.mkdir("o/", 0o755)),
    "rmdir": (None, lambda: os.rmdir("o")),
    "unlink": (None, lambda: os.unlink("o")),
    "unlink o/": (FEW, lambda: os.unlink("o/")),
    "rmdir .": (("dir",), lambda: os.rmdir("o/.")),
    "rmdir ..": (("full",), lambda: os.rmdir("o/..")),
    "unlink open": (("file", "long", "linked", "setuid"),
                    lambda: opened("o", RW, act=removed_while_open)),
    "rename over open": (("file", "long", "linked"),
                         lambda: opened("o", RW, act=renamed_over_while_open)),
    "mknod fifo": (None, lambda: os.mknod("o", stat.S_IFIFO | 0o666)),
    "mknod file": (FEW, lambda: os.mknod("o", stat.S_IFREG | 0o666)),
    "mknod socket": (FEW, lambda: os.mknod("o", stat.S_IFSOCK | 0o666)),
    "mknod char": (FEW, lambda: os.mknod("o", stat.S_IFCHR | 0o666, os.makedev(1, 5))),
    "bind": (None, lambda: bound("o")),
    "connect": (("socket", "file", "none", "dir"), lambda: connected("o")),
    "exec": (("file", "setuid", "dir", "none", "fifo", "link"), lambda: executed("./o")),
    "symlink": (None, lambda: os.symlink("text", "o")),
    "symlink long": (("none",), lambda: os.symlink("t" * 4000, "o")),
    "symlink too long": (("none",), lambda: os.symlink("t" * 4096, "o")),
    "symlink empty": (("none",), lambda: os.symlink("", "o")),
    "readlink": (None, lambda: os.readlink("o")),
    "link": (None, lambda: os.link("o", "new", follow_symlinks=False)),
    "link follow": (("link", "dangling", "dir-link", "file"), lambda: linked(0x400)),
    "link over": (None, lambda: os.link("beside", "o")),
    "rename": (None, lambda: os.rename("o", "new")),
    "rename over file": (None, lambda: os.rename("o", "beside")),
    "rename over dir": (None, lambda: os.rename("o", "beside-dir")),
    "rename file over": (None, lambda: os.rename("beside", "o")),
    "rename dir over": (None, lambda: os.rename("beside-dir", "o")),
    "rename same": (FEW, lambda: os.rename("o", "o")),
    "rename linked": (("linked",), lambda: os.rename("o", "second")),
    "rename o/": (FEW, lambda: os.rename("o/", "new")),
    "rename into self": (("dir", "full"), lambda: os.rename("o", "o/deep")),
    "rename noreplace": (FEW, lambda: renamed("beside", 1)),
    "rename noreplace new": (FEW, lambda: renamed("new", 1)),
    "rename exchange": (None, lambda: renamed("beside", 2)),
    "rename exchange dir": (FEW, lambda: renamed("beside-dir", 2)),
    "rename exchange none": (FEW, lambda: renamed("new", 2)),
    "rename both": (FEW, lambda: renamed("beside", 3)),
    "chmod": (None, lambda: os.chmod("o", 0o750)),
    "chmod set": (None, lambda: os.chmod("o", 0o7777)),
    "fchmod": (("file", "read-only", "dir", "fifo"),
               lambda: opened("o", R, act=lambda fd: os.fchmod(fd, 0o4711))),
    "chown same": (None, lambda: os.chown("o", -1, -1)),
    "chown uid": (None, lambda: os.chown("o", 1002, -1)),
    "chown gid": (None, lambda: os.chown("o", -1, 1001)),
    "chown own gid": (("file", "setuid", "setgid", "dir", "setgid-dir", "link"),
                      lambda: os.chown("o", -1, 1000)),
    "chown both": (("file", "setuid", "capability", "dir", "fifo"),
                   lambda: os.chown("o", 1000, 1000)),
    "lchown": (("link", "dangling", "file", "dir-link"), lambda: os.lchown("o", 1002, 1002)),
    "truncate 0": (None, lambda: os.truncate("o", 0)),
    "truncate 3": (("file", "setuid", "setuid-all", "setgid", "capability", "empty", "link", "closed"),
                   lambda: os.truncate("o", 3)),
    "truncate up": (("file", "empty", "long", "linked"), lambda: os.truncate("o", 70_000)),
    "truncate same": (("file", "setuid"), lambda: os.truncate("o", 10)),
    "truncate -1": (("file", "none"), lambda: os.truncate("o", -1)),
    "truncate huge": (("file",), lambda: os.truncate("o", (1 << 63) - 1)),
    "ftruncate read": (("file", "group"), lambda: opened("o", R, act=lambda f: os.ftruncate(f, 0))),
    "ftruncate": (("file", "setuid", "setuid-all"), lambda: opened("o", W, act=lambda f: os.ftruncate(f, 5))),
    "utime now": (None, lambda: timed((0, NOW), (0, NOW))),
    "utime set": (None, lambda: timed((OLD + 5, 6), (OLD + 7, 8))),
    "utime link": (("link", "dangling", "dir-link", "loop"),
                   lambda: timed((OLD + 5, 6), (OLD + 7, 8), 0x100)),
    "utime omit": (FEW, lambda: timed((0, OMIT), (OLD + 7, 8))),
    "utime mtime": (FEW, lambda: timed((0, OMIT), (0, NOW))),
    "utime none": (FEW, lambda: timed((0, OMIT), (0, OMIT))),
    "utime before 1970": (("file", "dir"), lambda: timed((-5, 0), (-6, 0))),
    "setxattr": (None, lambda: os.setxattr("o", "user.size", b"large")),
    "setxattr create": (("file", "xattr"), lambda: os.setxattr(
        "o", "user.colour", b"blue", os.XATTR_CREATE)),
    "setxattr replace": (("file", "xattr"), lambda: os.setxattr(
        "o", "user.colour", b"blue", os.XATTR_REPLACE)),
    "setxattr empty": (("file",), lambda: os.setxattr("o", "user.e", b"")),
    "setxattr long name": (("file",), lambda: os.setxattr("o", "user." + "n" * 251, b"1")),
    "setxattr too long": (("file",), lambda: os.setxattr("o", "user.x", b"v" * 65537)),
    "setxattr trusted": (("file", "dir"), lambda: os.setxattr("o", "trusted.t", b"1")),
    "setxattr unknown": (("file",), lambda: os.setxattr("o", "what.ever", b"1")),
    "setxattr link": (("link", "dangling"), lambda: os.setxattr(
        "o", "user.size", b"1", follow_symlinks=False)),
    "getxattr": (("file", "xattr", "closed", "dir"), lambda: os.getxattr("o", "user.colour")),
    "listxattr": (("file", "xattr", "acl", "capability"), lambda: sorted(os.listxattr("o"))),
    "removexattr": (("file", "xattr"), lambda: os.removexattr("o", "user.colour")),
    "remove acl": (("acl", "file"), lambda: os.removexattr("o", "system.posix_acl_access")),
    "get acl": (("acl", "file", "default-acl"),
                lambda: os.getxattr("o", "system.posix_acl_access")),
    "set acl": (("file", "setgid", "dir", "link"), lambda: os.setxattr(
        "o", "system.posix_acl_access", struct.pack("<I", 2) + b"".join(
            struct.pack("<HHi", *e) for e in ((1, 7, -1), (4, 5, -1), (32, 4, -1))))),
    "set bad acl": (("file",), lambda: os.setxattr("o", "system.posix_acl_access", b"bad")),
    "punch": (("long", "file"), lambda: opened("o", W, act=allocated(3, 4096, 8192))),
    "zero range": (("long",), lambda: opened("o", W, act=allocated(16, 100, 9000))),
    "allocate": (("long", "empty", "setuid", "setuid-all"), lambda: opened("o", W, act=allocated(0, 0, 50_000))),
    "allocate keep": (("long", "empty"), lambda: opened("o", W, act=allocated(1, 0, 50_000))),
    "allocate read": (("file",), lambda: opened("o", R, act=allocated(0, 0, 100))),
    "allocate bad": (("file",), lambda: opened("o", W, act=allocated(0, 0, 0))),
    "allocate huge": (("file",), lambda: opened("o", W, act=allocated(0, 1 << 62, 1 << 62))),
    "seek data": (("long",), lambda: opened("o", R, act=lambda f: os.lseek(f, 0, os.SEEK_DATA))),
    "seek past": (("long",), lambda: opened("o", R, act=lambda f: os.lseek(f, 1 << 40, 3))),
    "fsync": (("file", "dir", "fifo"), lambda: opened("o", R, act=os.fsync)),
    "fdatasync dir": (("dir",), lambda: opened("o", R, act=os.fdatasync)),
    "pathconf": (("file", "dir"), lambda: (os.pathconf("o", "PC_NAME_MAX"),
                                          os.pathconf("o", "PC_LINK_MAX") > 0)),
    "statvfs": (("file",), lambda: os.statvfs("o").f_namemax),
}
# Names that cannot be, whatever the object is.
for _name, _act in {
        "stat": os.stat, "open": lambda p: opened(p, W | C), "mkdir": os.mkdir,
        "unlink": os.unlink, "rmdir": os.rmdir, "rename from": lambda p: os.rename(p, "new"),
        "rename to": lambda p: os.rename("o", p), "link from": lambda p: os.link(p, "new"),
        "link to": lambda p: os.link("o", p), "symlink": lambda p: os.symlink("t", p),
        "mknod": lambda p: os.mknod(p, stat.S_IFIFO | 0o600), "chmod": lambda p: os.chmod(p, 0o600),
        "chown": lambda p: os.chown(p, 0, 0), "truncate": lambda p: os.truncate(p, 0),
        "readlink": os.readlink, "listdir": os.listdir, "bind": bound}.items():
    for _kind, _path in (("name too long", LONG), ("path too long", DEEP + "x"),
                         ("below a file", "beside/x"), ("below nothing", "nothing/x"),
                         ("below a loop", "ring/x"), ("longest name", "m" * 255)):
        CALLS[f"{_name}: {_kind}"] = (("file",), lambda a=_act, p=_path: a(p))


def cases():
    """All of them: (object, call, user)."""
    for call, (objects, _) in CALLS.items():
        for name in objects or OBJECTS:
            for user in USERS:
                yield name, call, user


# --- running

def prepare(where, number, name):
    """The directory of one case, with its object in it, by root."""
    at = os.path.join(where, f"{number:05d}-{name}")
    os.mkdir(at)
    os.chdir(at)
    # Everybody may do everything here, so that the object decides.
    put("beside", b"beside")
    os.chown("beside", 1000, 1000)
    os.chmod("beside", 0o666)
    os.mkdir("beside-dir", 0o777)
    os.chmod("beside-dir", 0o777)
    os.symlink("ring", "ring")
    OBJECTS[name]("o")
    os.chmod(".", 0o777)
    for folder, dirs, files in os.walk(".", topdown=False):
        for entry in dirs + files:
            os.utime(os.path.join(folder, entry), (OLD, OLD), follow_symlinks=False)
    os.utime(".", (OLD, OLD))
    os.chdir("/")
    return at


class Actor:
    """A process that makes calls as one user."""

    def __init__(self, user):
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            self.serve(theirs, *USERS[user])
        theirs.close()
        self.pipe = ours.makefile("rwb")
        ours.close()

    @staticmethod
    def serve(pipe, uid, gid, groups):
        try:
            signal.alarm(1000)
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            os.umask(0o022)
            stream = pipe.makefile("rwb")
            while True:
                at, call = pickle.load(stream)
                if at is None:
                    break
                try:
                    os.chdir(at)
                    answer = CALLS[call][1]()
                except OSError as e:
                    answer = errno.errorcode.get(e.errno, e.errno)
                except ValueError as e:
                    answer = str(e)
                os.chdir("/")
                pickle.dump(answer, stream)
                stream.flush()
        finally:
            os._exit(0)

    def call(self, at, call):
        pickle.dump((at, call), self.pipe)
        self.pipe.flush()
        return pickle.load(self.pipe)

    def close(self):
        pickle.dump((None, None), self.pipe)
        self.pipe.close()
        os.waitpid(self.pid, 0)


def look(path, began):
    """What is seen of one object: a time is new if it is after the beginning."""
    st = os.lstat(path)

    def when(ns):
        return "now" if ns >= began else ns
    seen = [oct(st.st_mode), st.st_uid, st.st_gid, st.st_rdev, st.st_nlink,
            when(st.st_mtime_ns), when(st.st_ctime_ns) == "now"]
    try:
        seen.append([(n, os.getxattr(path, n, follow_symlinks=False))
                     for n in sorted(os.listxattr(path, follow_symlinks=False))])
    except OSError as e:
        seen.append(errno.errorcode[e.errno])
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as f:
            seen.append((st.st_size, hashlib.md5(f.read(1 << 20)).hexdigest()))
    elif stat.S_ISLNK(st.st_mode):
        seen.append(os.readlink(path))
    return seen


def picture(at, began):
    """Everything below a case's directory, by name."""
    seen = {".": look(at, began)}
    for folder, dirs, files in os.walk(at):
        for name in dirs + files:
            path = os.path.join(folder, name)
            seen[os.path.relpath(path, at)] = look(path, began)
    return seen


def run(prepared):
    """prepared: (directory, case). The outcomes, in order."""
    actors = {user: Actor(user) for user in USERS}
    # ctime cannot be set back: let the clock's tick pass.
    time.sleep(0.05)
    outcomes = []
    try:
        for at, (name, call, user) in prepared:
            began = time.time_ns() - 20_000_000
            answer = actors[user].call(at, call)
            outcomes.append((answer, picture(at, began)))
    finally:
        for actor in actors.values():
            actor.close()
    return outcomes
