"""Files that are wholly remote are read and written by the kernel itself: what
applications see of them is what they would see without it."""
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

import bed


def offered():
    """Whether this kernel passes through (Linux 6.9)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 9)


# Writes numbered lines, at the end or over and over into 50 kB, looks at the
# size after each, and says at its end how many there were.
WRITER = r"""
import os, sys, time
path, how, stop = sys.argv[1], sys.argv[2], sys.argv[3]
flags = {"append": os.O_WRONLY | os.O_APPEND, "plain": os.O_WRONLY, "both": os.O_RDWR}[how]
fd = os.open(path, flags | os.O_CREAT, 0o640)
os.close(fd)
fd = os.open(path, flags)
print("open", flush=True)
n = 0
while not os.path.exists(stop):
    line = b"%09d\n" % n
    if how == "append":
        os.write(fd, line)
    else:
        os.pwrite(fd, line, n % 5000 * 10)
    n += 1
    sizes = [os.fstat(fd).st_size, os.stat(path).st_size]
    if sizes != [min(n, 5000 if how != "append" else n) * 10] * 2:
        sys.exit(f"after {n} lines the size is {sizes[0]}, by the name {sizes[1]}")
    time.sleep(0.0005)
print(n, flush=True)
"""


class Passthrough(bed.Bed):
    def setUp(self):
        super().setUp()
        bed.fill(self.disk, mb=2, files=20)

    def new_file(self, name, content=b""):
        path = self.disk / name
        path.write_bytes(content)
        return path

    def times(self, path):
        st = os.stat(path)
        return st.st_size, st.st_mtime_ns

    def test_new_files_are_read_and_written_without_the_worker(self):
        if not offered():  # all else here is asked of the older kernel, too
            said = self.livemv("plan", self.disk, *self.target(self.nas), code=None).text
            self.assertIn("no FUSE passthrough", " ".join(said.split()))
            return
        self.start("--cutover=wait", "--wait")
        writing = os.open(self.disk / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self.addCleanup(os.close, writing)
        os.write(writing, b"first ")
        reading = os.open(self.disk / "new", os.O_RDONLY)
        self.addCleanup(os.close, reading)
        with self.stopped_worker():
            os.write(writing, b"second")
            self.assertEqual(os.pread(reading, 100, 0), b"first second")
        self.assertEqual(os.fstat(writing).st_size, 12)
        self.assertEqual((self.disk / "new").read_bytes(), b"first second")

    def test_size_and_times_are_those_of_the_writes(self):
        self.start("--cutover=wait", "--wait")
        path = self.disk / "new"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        before = os.fstat(fd)
        time.sleep(0.02)
        os.write(fd, b"x" * 1000)
        self.assertEqual(os.stat(path).st_size, 1000)
        self.assertGreater(os.stat(path).st_mtime_ns, before.st_mtime_ns)
        self.assertGreater(os.stat(path).st_ctime_ns, before.st_ctime_ns)
        # An older time that somebody sets holds until the next write, and a
        # later one does not outlive it.
        for at in (1_000_000_000_000_000_123, 4_000_000_000_000_000_000):
            os.utime(path, ns=(at, at))
            self.assertEqual(os.stat(path).st_mtime_ns, at)
            os.write(fd, b"y")
            self.assertLess(abs(os.stat(path).st_mtime - time.time()), 60)
        os.utime(path, ns=(77_000_000_000, 88_000_000_000))
        os.close(fd)
        bed.poll("its times on the target", lambda: any(
            os.lstat(p).st_mtime_ns == 88_000_000_000 for p in self.nas.glob("new")))
        self.assertEqual(self.times(path), (1002, 88_000_000_000))
        with open(path, "ab") as again:
            self.assertEqual(self.times(path), (1002, 88_000_000_000))
            again.write(b"z")
        last = self.times(path)
        self.assertEqual(last[0], 1003)
        self.assertGreater(last[1], 88_000_000_000)
        self.wait_state("synced")
        self.livemv("cutover", self.disk, "--wait")
        self.assertEqual(self.times(path), last)

    def test_a_time_that_is_set_right_behind_the_last_close_holds(self):
        self.start("--cutover=wait", "--wait")
        for i in range(bed.sized(300, 40)):
            path = self.new_file(f"new{i % 7}", b"x" * i)
            os.utime(path, ns=(5, 1_000_000_000 + i))
            if i % 3 == 0:
                time.sleep(0.001)
            self.assertEqual(self.times(path), (i, 1_000_000_000 + i), i)
        time.sleep(0.05)
        self.assertEqual(self.times(path), (i, 1_000_000_000 + i))
        # Nor does reading it move its ctime.
        changed = os.stat(path).st_ctime_ns
        path.read_bytes()
        time.sleep(0.05)
        self.assertEqual(os.stat(path).st_ctime_ns, changed)

    def test_truncate_allocate_and_mappings(self):
        self.start("--cutover=wait", "--wait")
        path = self.new_file("new", b"a" * 10_000)
        fd = os.open(path, os.O_RDWR)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, 100)
        os.pwrite(fd, b"b" * 50, 200)
        self.assertEqual(path.read_bytes(), b"a" * 100 + bytes(100) + b"b" * 50)
        os.truncate(path, 5_000_000)
        self.assertEqual(os.fstat(fd).st_size, 5_000_000)
        os.posix_fallocate(fd, 0, 6_000_000)
        self.assertEqual(os.stat(path).st_size, 6_000_000)
        mapped = mmap.mmap(fd, 6_000_000)
        again = os.open(path, os.O_RDWR)
        os.close(again)
        mapped[5_000_000:5_000_004] = b"mmap"
        self.assertEqual(os.pread(fd, 4, 5_000_000), b"mmap")
        # Who opens it later sees what a mapping writes whose file is closed.
        other = self.new_file("other", bytes(4096))
        file = os.open(other, os.O_RDWR)
        beside = mmap.mmap(file, 4096)
        os.close(file)
        for turn in range(3):
            beside[turn * 10:turn * 10 + 4] = b"late"
            self.assertEqual(other.read_bytes()[turn * 10:turn * 10 + 4], b"late")
            with open(other, "r+b") as writer:
                writer.seek(1000 + turn)
                writer.write(b"w")
            self.assertEqual(beside[1000 + turn:1001 + turn], b"w")
        # Emptied by who opens it, while others have it open.
        with open(path, "wb") as emptied:
            emptied.write(b"end")
        self.assertEqual(os.pread(fd, 100, 0), b"end")
        mapped.close()
        beside.close()

    def test_set_id_bits_go_with_a_write(self):
        self.start("--cutover=wait", "--wait")
        path = self.new_file("program", b"#!/bin/sh\n")
        os.chown(path, 1000, 1000)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.addCleanup(os.close, fd)
        script = ("import os, sys; fd = int(sys.argv[1]); os.setgid(1001); os.setuid(1001);"
                  "os.write(fd, b'x')")
        for mode in (0o4777, 0o2777, 0o6755):
            os.chmod(path, mode)
            bed.run(sys.executable, "-c", script, fd, pass_fds=(fd,))
            self.assertEqual(oct(os.stat(path).st_mode & 0o7777), oct(mode & 0o777))
        os.chmod(path, 0o4755)
        os.write(fd, b"root may")
        self.assertEqual(oct(os.stat(path).st_mode & 0o7777), oct(0o4755))

    def start_under_writers(self):
        self.start("--cutover=wait", "--wait")
        stop = self.work / "stop"
        writers = {how: self.spawn(sys.executable, "-c", WRITER, self.disk / how, how, stop,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                   for how in ("append", "plain", "both")}
        for p in writers.values():
            self.assertEqual(p.stdout.readline(), b"open\n")
        return stop, writers

    def test_the_worker_is_killed_again_and_again(self):
        stop, writers = self.start_under_writers()
        for _ in range(4):
            worker = self.status()["worker_pid"]
            if not offered():  # before 6.9 what the worker had read is not sent again
                self.signal(writers, signal.SIGSTOP, "T")
            os.kill(worker, signal.SIGKILL)
            bed.poll("another worker", lambda: self.status().get("worker_pid") not in
                     (None, 0, worker), 30)
            self.signal(writers, signal.SIGCONT)
            for how in writers:
                with open(self.disk / how, "rb") as f:
                    self.assertEqual(f.read(10)[-1:], b"\n")
        self.finish(writers, stop)

    @staticmethod
    def signal(writers, number, state=None):
        for p in writers.values():
            os.kill(p.pid, number)
            stat = pathlib.Path(f"/proc/{p.pid}/stat")
            bed.poll(f"state {state}", lambda: state is None or
                     stat.read_text().rsplit(")", 1)[1].split()[0] == state)

    def finish(self, writers, stop):
        stop.touch()
        for how, p in writers.items():
            out, _ = p.communicate(timeout=60)
            self.assertEqual(p.returncode, 0, f"{how}: {out.decode()}\n{self.logs()}")
            n = int(out.split()[-1])
            self.check(self.disk / how, how, n)

    def check(self, path, how, n):
        want = bytearray()
        if how == "append":
            want = b"".join(b"%09d\n" % i for i in range(n))
        else:
            for i in range(max(0, n - 5000), n):
                at = i % 5000 * 10
                want[at:at + 10] = b"%09d\n" % i
        got = path.read_bytes()
        self.assertEqual(len(got), len(want), how)
        self.assertTrue(got == bytes(want), f"{how}: other bytes than were written\n{self.logs()}")

    def under_writers(self, verb):
        stop, writers = self.start_under_writers()
        self.wait_state("synced")
        self.livemv(verb, self.disk, "--wait")
        time.sleep(0.2)
        self.finish(writers, stop)

    def test_cutover_under_writers(self):
        self.under_writers("cutover")

    def test_abort_under_writers(self):
        self.under_writers("abort")

    def test_an_abort_waits_for_a_mapping_and_has_what_it_wrote(self):
        """The kernel writes it behind everybody's back, its descriptor is closed."""
        self.start("--cutover=wait", "--wait")
        path = self.new_file("mapped", bytes(8192))
        holder = self.spawn(sys.executable, "-c", r"""
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 8192)
os.close(fd)
m[:5] = b"first"
print("mapped", flush=True)
sys.stdin.readline()
m[4096:4100] = b"last"
m.close()
print("gone", flush=True)
sys.stdin.readline()
""", path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/")
        self.assertEqual(holder.stdout.readline(), b"mapped\n")
        self.livemv("abort", self.disk)
        bed.poll(lambda: f"status names it: {self.status()}\n{self.logs()}",
                 lambda: str(holder.pid) in self.status()["reason"], 20)
        self.assertEqual(self.status()["state"], "aborting")
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        self.assertEqual(holder.stdout.readline(), b"gone\n")
        bed.poll(lambda: f"the source at its place, {self.status()}\n{self.logs()}",
                 lambda: not any(str(self.disk) == line.split()[4] and " fuse" in line for line in
                                 pathlib.Path("/proc/self/mountinfo").read_text().splitlines()), 60)
        self.assertEqual(path.read_bytes(), b"first" + bytes(4091) + b"last" + bytes(4092))
        holder.stdin.close()
        holder.wait(timeout=20)

    def test_an_abort_brings_a_deleted_one_back_to_nobody(self):
        """What was deleted while open stays with its user, on the target."""
        self.start("--cutover=wait", "--wait")
        path = self.new_file("gone", b"g" * 3000)
        kept = self.new_file("kept", b"k" * 3000)
        holder = self.spawn(sys.executable, "-c", r"""
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR); kept = os.open(sys.argv[2], os.O_RDWR)
os.unlink(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
os.pwrite(fd, b"after", 5000); os.pwrite(kept, b"after", 5000)
assert os.pread(fd, 9000, 0) == b"g" * 3000 + bytes(2000) + b"after", "deleted"
assert os.fstat(fd).st_size == 5005, os.fstat(fd)
assert os.pread(kept, 9000, 0) == b"k" * 3000 + bytes(2000) + b"after", "kept"
os.fsync(fd)
print("right", flush=True)
""", path, kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(holder.stdout.readline(), b"held\n")
        self.livemv("abort", self.disk)
        bed.poll(lambda: f"the source at its place, {self.status()}\n{self.logs()}",
                 lambda: not any(str(self.disk) == line.split()[4] and " fuse" in line for line in
                                 pathlib.Path("/proc/self/mountinfo").read_text().splitlines()), 60)
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        self.assertEqual(holder.stdout.read(), b"right\n", self.logs())
        holder.wait(timeout=20)
        self.assertEqual(kept.read_bytes(), b"k" * 3000 + bytes(2000) + b"after")


if __name__ == "__main__":
    unittest.main()
