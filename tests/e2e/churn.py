"""Changes a tree as applications do, and keeps a model of it elsewhere.

    churn.py TREE MODEL SEED SECONDS WORKERS [STOP]

Every worker has a subtree of its own under TREE and the same one under MODEL,
does each operation on both, and compares results, sizes and contents on the
way. Ends after SECONDS, or once the file STOP exists, with exit 0 if nothing
differed. TREE may be anything that should
behave like a local filesystem; MODEL lies on one.
"""
import errno
import os
import random
import sys
import time


def unlike(pair):
    """How a file in the tree differs from the model's, now and a little later."""
    said = []
    for wait in (0, 1):
        time.sleep(wait)
        sizes = [os.fstat(fd).st_size for fd in pair]
        a, b = (os.pread(fd, 1 << 24, 0) for fd in pair)
        other = [i for i in range(min(len(a), len(b))) if a[i] != b[i]]
        runs = [i for n, i in enumerate(other) if n == 0 or other[n - 1] != i - 1][:4]
        said.append(f"sizes {sizes}, read {len(a)} and {len(b)}, {len(other)} bytes differ"
                    + (f", {sum(a[i] == 0 for i in other)} of them zero, runs from {runs} "
                       f"to {other[-1]}" if other else ""))
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in pair]
    try:
        where = os.stat(os.path.dirname(links[0])).st_dev
    except OSError as e:  # its mount was taken off
        where = e.strerror
    return (f"{links[0]} (device {os.fstat(pair[0]).st_dev}, its directory is on {where}): "
            + "; a second later: ".join(said))


class Worker:
    def __init__(self, tree, model, seed):
        self.rng = random.Random(seed)
        self.roots = (tree, model)
        self.dirs = [""]
        self.files = []
        self.count = 0
        self.times = {}  # inode of the model -> mtime set by utime and not changed since
        self.fds = []  # (fd in tree, fd in model)
        self.crossed = False  # a rename or link met the switch of the mounts

    def paths(self, rel):
        return tuple(os.path.join(r, rel) for r in self.roots)

    def both(self, what, *rels, **kw):
        """Calls what(path...) in tree and model; both must agree."""
        results = []
        for i in range(2):
            args = [os.path.join(self.roots[i], r) for r in rels]
            try:
                results.append(("ok", what(*args, **kw)))
            except OSError as e:
                # The kernel walks two paths one after the other. Who holds
                # nothing in the tree is not frozen, and may find the second
                # one on the other side of the switch: once a switch.
                if (e.errno == errno.EXDEV and i == 0 and not self.crossed
                        and what in (os.rename, os.link)):
                    self.crossed = True
                    results.append(("ok", what(*args, **kw)))
                    continue
                results.append(("error", e.errno))
        (a, x), (b, y) = results
        if a != b or (a == "error" and x != y):
            raise AssertionError(
                f"{what.__name__}{rels}: {a} {errno.errorcode.get(x, x) if a == 'error' else ''}"
                f" in the tree, {b} {errno.errorcode.get(y, y) if b == 'error' else ''} in the model")
        return a == "ok"

    def new(self, prefix):
        self.count += 1
        return os.path.join(self.rng.choice(self.dirs), f"{prefix}{self.count}")

    def touched(self, rel):
        try:
            self.times.pop(os.lstat(self.paths(rel)[1]).st_ino, None)
        except OSError:
            pass

    def data(self):
        n = self.rng.choice((1, 10, 500, 4096, 9000, 70000, 300000))
        return self.rng.randbytes(n)

    def let_go(self, rel):
        """Closes what is held of rel, which is about to lose this name.

        A descriptor of a deleted or replaced file is a kind of holder that
        `start` and `cutover` refuse for now; one of a living file is not."""
        try:
            st = os.lstat(self.paths(rel)[1])
        except OSError:
            return
        for pair in list(self.fds):
            held = os.fstat(pair[1])
            if (held.st_dev, held.st_ino) == (st.st_dev, st.st_ino):
                self.fds.remove(pair)
                for fd in pair:
                    os.close(fd)

    def unlink_open(self, rel):
        """Uses a file for a moment after it was deleted."""
        pair = [os.open(p, os.O_RDWR) for p in self.paths(rel)]
        try:
            if not self.both(os.unlink, rel):
                return
            self.files.remove(rel)
            data, at = self.data(), self.rng.randrange(10000)
            self.times.pop(os.fstat(pair[1]).st_ino, None)
            for fd in pair:
                os.pwrite(fd, data, at)
            seen = [(os.fstat(fd).st_nlink, os.fstat(fd).st_size,
                     os.pread(fd, 1 << 20, 0)) for fd in pair]
            if seen[0] != seen[1]:
                raise AssertionError(f"{rel}, deleted while open: {seen[0][:2]} with other "
                                     f"bytes than the model's {seen[1][:2]}")
        finally:
            for fd in pair:
                os.close(fd)

    def write(self, rel, flags, at, data):
        def act(path):
            fd = os.open(path, flags, 0o640)
            try:
                n = os.write(fd, data) if at is None else os.pwrite(fd, data, at)
                if self.rng_sync:
                    os.fsync(fd)
                return n
            finally:
                os.close(fd)
        self.rng_sync = self.rng.random() < 0.02
        act.__name__ = f"write(flags={flags:#x}, at={at}, n={len(data)})"
        ok = self.both(act, rel)
        self.touched(rel)
        return ok

    def compare(self, rel):
        t, m = self.paths(rel)
        a, b = os.lstat(t), os.lstat(m)
        for key in ("st_mode", "st_uid", "st_gid", "st_size", "st_nlink"):
            if key in ("st_size", "st_nlink") and not os.path.isfile(m):
                continue
            if getattr(a, key) != getattr(b, key):
                raise AssertionError(f"{rel}: {key} {getattr(a, key)} in the tree, "
                                     f"{getattr(b, key)} in the model")
        if os.path.isfile(m) and not os.path.islink(m):
            with open(t, "rb") as x, open(m, "rb") as y:
                p, q = x.read(), y.read()
            if p != q:
                at = next((i for i, (c, d) in enumerate(zip(p, q)) if c != d), min(len(p), len(q)))
                raise AssertionError(f"{rel}: content differs at byte {at} of {len(q)}")

    def step(self):
        rng = self.rng
        op = rng.randrange(100)
        pick = rng.choice(self.files) if self.files else None
        if op < 12 or not pick:
            rel = self.new("f")
            if self.write(rel, os.O_CREAT | os.O_EXCL | os.O_WRONLY, None, self.data()):
                self.files.append(rel)
        elif op < 27:
            size = os.path.getsize(self.paths(pick)[1])
            self.write(pick, os.O_WRONLY, rng.randrange(size + 5000), self.data())
        elif op < 35:
            self.write(pick, os.O_WRONLY | os.O_APPEND, None, self.data())
        elif op < 39:
            self.write(pick, os.O_WRONLY | os.O_TRUNC, None, self.data())
        elif op < 45:
            size = os.path.getsize(self.paths(pick)[1])
            to = rng.choice((0, size // 2, max(0, size - 1), size + 100, size + 70000))
            self.both(os.truncate, pick, length=to)
            self.touched(pick)
        elif op < 53:
            to = self.new("r") if rng.random() < 0.6 else rng.choice(self.files)
            self.let_go(to)
            if self.both(os.rename, pick, to) and to != pick:
                same = os.path.lexists(self.paths(pick)[1])  # two links of one file: no effect
                if not same:
                    self.files.remove(pick)
                if to not in self.files:
                    self.files.append(to)
        elif op < 57:
            to = self.new("l")
            if self.both(os.link, pick, to):
                self.files.append(to)
        elif op < 63:
            self.let_go(pick)
            if rng.random() < 0.3:
                self.unlink_open(pick)
            elif self.both(os.unlink, pick):
                self.files.remove(pick)
        elif op < 68:
            self.both(os.chmod, pick, mode=rng.choice((0o600, 0o644, 0o755, 0o4711, 0o000)))
        elif op < 70:
            self.both(os.chown, pick, uid=rng.randrange(1000, 1005), gid=rng.randrange(1000, 1005))
        elif op < 75:
            t = rng.randrange(10 ** 9, 16 * 10 ** 8) * 10 ** 9 + rng.randrange(10 ** 9)
            if self.both(os.utime, pick, ns=(t, t)):
                self.times[os.lstat(self.paths(pick)[1]).st_ino] = t
        elif op < 78:
            self.both(os.setxattr, pick, attribute="user.k%d" % rng.randrange(3),
                      value=rng.randbytes(rng.randrange(60)))
        elif op < 82:
            rel = self.new("d")
            if self.both(os.mkdir, rel):
                self.dirs.append(rel)
        elif op < 84:
            rel = self.new("s")
            self.both(lambda p: os.symlink("to/" + rel, p), rel)
        elif op < 88 and len(self.dirs) > 3:
            old = rng.choice(self.dirs[1:])
            to = self.new("m")
            if self.both(os.rename, old, to):
                def moved(p):
                    return to + p[len(old):] if p == old or p.startswith(old + "/") else p
                self.dirs = [moved(p) for p in self.dirs]
                self.files = [moved(p) for p in self.files]
        elif op < 89 and len(self.dirs) > 3:
            rel = rng.choice(self.dirs[1:])
            if self.both(os.rmdir, rel):
                self.dirs.remove(rel)
        elif op < 92:
            if len(self.fds) < 8:
                pair = tuple(os.open(p, os.O_RDWR) for p in self.paths(pick))
                self.fds.append(pair)
            else:
                for fd in self.fds.pop(rng.randrange(len(self.fds))):
                    os.close(fd)
        elif op < 96 and self.fds:
            pair = rng.choice(self.fds)
            data, at = self.data(), rng.randrange(100000)
            got = [os.pwrite(fd, data, at) for fd in pair]
            if got[0] != got[1]:
                raise AssertionError(f"pwrite to a held descriptor: {got}")
            self.times.pop(os.fstat(pair[1]).st_ino, None)
            back = [os.pread(fd, 200000, max(0, at - 1000)) for fd in pair]
            if back[0] != back[1]:
                raise AssertionError(f"a held descriptor reads something else than the model "
                                     f"after a write of {len(data)} bytes at {at}: "
                                     + unlike(pair))
        else:
            self.compare(pick)

    def final(self):
        """Checks everything, explicit times too."""
        for pair in self.fds:
            for fd in pair:
                os.close(fd)
        for rel in self.files:
            self.compare(rel)
            t, m = self.paths(rel)
            want = self.times.get(os.lstat(m).st_ino)
            if want is not None and os.lstat(t).st_mtime_ns != want:
                raise AssertionError(f"{rel}: mtime {os.lstat(t).st_mtime_ns}, set to {want}")
        def fail(error):
            raise error

        names = []
        for root in self.roots:
            found = set()
            for top, dirs, files in os.walk(root, onerror=fail):
                for n in dirs + files:
                    found.add(os.path.relpath(os.path.join(top, n), root))
            names.append(found)
        if names[0] != names[1]:
            raise AssertionError(f"only in the tree: {sorted(names[0] - names[1])[:5]}, "
                                 f"only in the model: {sorted(names[1] - names[0])[:5]}")


def main():
    tree, model, seed, seconds, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), \
        float(sys.argv[4]), int(sys.argv[5])
    stop = sys.argv[6] if len(sys.argv) > 6 else None
    pids = []
    for i in range(workers):
        sub = [os.path.join(r, f"worker{i}") for r in (tree, model)]
        for s in sub:
            os.makedirs(s, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            code = 1
            w = Worker(sub[0], sub[1], seed * 1000 + i)
            done = 0
            try:
                end = time.monotonic() + seconds
                while time.monotonic() < end and not (stop and os.path.exists(stop)):
                    w.step()
                    done += 1
                w.final()
                print(f"worker {i}: {done} operations", flush=True)
                code = 0
            except BaseException as e:  # the exit code must tell, whatever it was
                print(f"worker {i}, operation {done}: {type(e).__name__}: {e}", flush=True)
            os._exit(code)
        pids.append(pid)
    failed = 0
    for pid in pids:
        failed |= os.waitpid(pid, 0)[1]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
