"""A process that makes things durable and says so, for tests of crashes:

    fsyncer.py DIR ACK

appends, overwrites in place, makes files by way of a temporary name, shrinks
and lets grow, each followed by fsync(2), and then by a line in ACK, which lies
outside. What has such a line must be there after any crash (check).
"""
import os
import pathlib
import sys

BLOCK = 4096
BLOCKS = 400  # of the file that is overwritten


def prepare(root):
    root = pathlib.Path(root)
    (root / "log").write_bytes(b"")
    (root / "old").write_bytes(bytes(BLOCK * BLOCKS))
    (root / "cut").write_bytes(b"-" * 100_000)
    (root / "made").mkdir()


def block(n):
    return (b"%010d " % n * BLOCK)[:BLOCK]


def made(n):
    return b"%d\n" % n * (500 + n % 3000)


def cut(n):
    """Its size, and what is at its end."""
    return 1000 + n * 7919 % 90_000, b"%010d" % n


def run(root, ack):
    root = os.fsencode(root)
    ack = os.open(ack, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    log = os.open(root + b"/log", os.O_WRONLY | os.O_APPEND)
    old = os.open(root + b"/old", os.O_RDWR)
    short = os.open(root + b"/cut", os.O_RDWR)
    names = os.open(root + b"/made", os.O_RDONLY)
    n = 0
    while True:
        os.write(log, b"%010d\n" % n)
        os.fsync(log)
        os.write(ack, b"log %d\n" % n)
        os.pwrite(old, block(n), n * 37 % BLOCKS * BLOCK)
        os.fsync(old)
        os.write(ack, b"old %d\n" % n)
        if n % 3 == 0:
            fd = os.open(b"tmp%d" % n, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=names)
            os.write(fd, made(n))
            os.fsync(fd)
            os.close(fd)
            os.rename(b"tmp%d" % n, b"file%d" % n, src_dir_fd=names, dst_dir_fd=names)
            os.fsync(names)
            os.write(ack, b"made %d\n" % n)
        if n % 5 == 0:
            size, end = cut(n)
            os.ftruncate(short, size)
            os.pwrite(short, end, size)
            os.fsync(short)
            os.write(ack, b"cut %d\n" % n)
        n += 1


def acknowledged(ack):
    last = {"log": -1, "old": -1, "made": -1, "cut": -1}
    for line in pathlib.Path(ack).read_bytes().split(b"\n")[:-1]:
        kind, n = line.split()
        last[kind.decode()] = int(n)
    return last


def check(root, ack):
    """What was acknowledged and is not there, as a list of texts."""
    root, last, wrong = pathlib.Path(root), acknowledged(ack), []
    log = (root / "log").read_bytes().split(b"\n")
    want = [b"%010d" % n for n in range(last["log"] + 1)]
    if log[:len(want)] != want:
        bad = next(i for i, line in enumerate(want) if i >= len(log) or log[i] != line)
        wrong.append(f"log: line {bad} of {len(want)} is "
                     f"{log[bad] if bad < len(log) else 'missing'!r}")
    data = (root / "old").read_bytes()
    if len(data) != BLOCK * BLOCKS:
        wrong.append(f"old: {len(data)} bytes")
    newest = {}
    for n in range(last["old"] + 1):
        newest[n * 37 % BLOCKS] = n
    for at in range(BLOCKS):
        have = data[at * BLOCK:(at + 1) * BLOCK]
        allowed = [block(newest[at]) if at in newest else bytes(BLOCK)]
        if at == (last["old"] + 1) * 37 % BLOCKS:  # was being written
            new = block(last["old"] + 1)
            if have[:1] and all(have[i:i + 512] in (allowed[0][i:i + 512], new[i:i + 512])
                                for i in range(0, BLOCK, 512)):
                continue
        if have not in allowed:
            wrong.append(f"old: block {at} is {have[:12]!r}, not {allowed[0][:12]!r}")
    for n in range(0, last["made"] + 1, 3):
        path = root / "made" / f"file{n}"
        if not path.exists():
            wrong.append(f"made: {path.name} is missing")
        elif path.read_bytes() != made(n):
            wrong.append(f"made: {path.name} has {path.stat().st_size} bytes, other content")
    if last["cut"] >= 0:
        data = (root / "cut").read_bytes()
        size, end = cut(last["cut"])
        was = len(data) == size + len(end) and data.endswith(end)
        size, end = cut(last["cut"] + 5)  # was being made
        begun = last["log"] >= last["cut"] + 5 or last["old"] >= last["cut"] + 4
        if not was and not begun:
            wrong.append(f"cut: {len(data)} bytes, ending in {data[-10:]!r}, after {last['cut']}")
    return wrong


if __name__ == "__main__":
    run(*sys.argv[1:])
