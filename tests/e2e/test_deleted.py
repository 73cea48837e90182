"""Files that are deleted and used a moment longer, through start and abort."""
import os
import signal
import subprocess
import sys
import time
import unittest

import bed

# Deletes a file, uses it for some ms and closes it; ends with 1 if the file
# was not what was written.
USER = r"""
import os, random, sys, time
where, number, stop, pause = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
rng, turn = random.Random(number), 0
while not os.path.exists(stop):
    turn += 1
    path = os.path.join(where, f"t{number}.{turn % 5}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 1000)
    os.unlink(path)
    time.sleep(rng.random() * 0.004)
    got = os.pread(fd, 2000, 0)
    if got != b"x" * 1000:
        print(f"turn {turn}: {len(got)} bytes read of 1000", flush=True)
        sys.exit(1)
    os.close(fd)
    time.sleep(rng.random() * pause)
"""


class Deleted(bed.Bed):
    def test_for_a_moment_during_start_and_abort(self):
        bed.fill(self.disk, mb=5, files=60)
        stop = self.work / "stop"
        users = [self.spawn(sys.executable, "-c", USER, self.disk, i, stop,
                            bed.sized(0.02, 0.4), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                 for i in range(3)]
        time.sleep(0.3)
        for turn in range(6):
            target = self.nas / str(turn)
            target.mkdir()
            self.start("--cutover=wait", target=target)
            self.wait_state("synced")
            self.livemv("abort", self.disk, "--wait")
            for user in users:
                self.assertIsNone(user.poll(), f"turn {turn}\n{self.logs()}")
        stop.touch()
        for user in users:
            out, _ = user.communicate(timeout=20)
            self.assertEqual(user.returncode, 0, out.decode())

    def test_while_open_and_the_worker_is_killed(self):
        """A successor must know that it is in use, or its burial takes it."""
        (self.disk / "old").write_bytes(b"o" * 200_000)
        self.start("--cutover=wait", "--wait")
        held = []
        for name, flags in (("old", os.O_RDWR), ("new", os.O_RDWR | os.O_CREAT)):
            fd = os.open(self.disk / name, flags)
            self.addCleanup(os.close, fd)
            os.pwrite(fd, b"past the local end", 300_000)
            os.unlink(self.disk / name)
            held.append(fd)
        worker = self.status()["worker_pid"]
        os.kill(worker, signal.SIGKILL)
        bed.poll("another worker", lambda: self.status().get("worker_pid") not in
                 (None, 0, worker), 30)
        # Several rounds of its burial: each ends with the redo it looked at.
        for turn in range(5):
            (self.disk / f"turn{turn}").write_bytes(b"x")
            time.sleep(0.4)
        for fd in held:
            self.assertEqual(os.pread(fd, 100, 300_000), b"past the local end", self.logs())
            os.pwrite(fd, b"after", 300_000)
            self.assertEqual(os.pread(fd, 5, 300_000), b"after")
            self.assertEqual(os.fstat(fd).st_size, 300_018)
        self.assertEqual(os.pread(held[0], 200_000, 0), b"o" * 200_000)

    @staticmethod
    def name(fd, path):
        """linkat of a descriptor: os.link does so with a directory's one only."""
        here = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.link(str(fd), path, src_dir_fd=here, follow_symlinks=True)
        finally:
            os.close(here)

    def test_made_without_a_name(self):
        """O_TMPFILE: it outlives the worker, gets a name or goes with its last user."""
        self.start("--cutover=wait", "--wait")
        (self.disk / "dir").mkdir()
        for verb in ("cutover", "abort"):
            fds = [os.open(self.disk / "dir", os.O_RDWR | os.O_TMPFILE, 0o640)
                   for _ in range(3)]
            for number, fd in enumerate(fds):
                os.write(fd, b"%d" % number * 100_000)
            os.fsync(fds[0])
            self.assertEqual(os.fstat(fds[0]).st_nlink, 0)
            self.name(fds[0], self.disk / f"early-{verb}")
            worker = self.status()["worker_pid"]
            os.kill(worker, signal.SIGKILL)
            bed.poll("another worker", lambda: self.status().get("worker_pid") not in
                     (None, 0, worker), 30)
            for number, fd in enumerate(fds):
                self.assertEqual(os.pread(fd, 200_000, 0), b"%d" % number * 100_000)
                os.pwrite(fd, b"late", 99_998)
            self.name(fds[1], self.disk / "dir" / f"late-{verb}")
            self.assertEqual(os.fstat(fds[1]).st_nlink, 1)
            for fd in fds:
                os.close(fd)
            self.livemv(verb, self.disk, "--wait")
            for number, name in ((0, f"early-{verb}"), (1, f"dir/late-{verb}")):
                path = self.disk / name
                self.assertEqual(path.read_bytes(), b"%d" % number * 99_998 + b"late")
                self.assertEqual(path.stat().st_mode & 0o7777, 0o640)
            if verb == "cutover":
                self.assert_moved()
                self.livemv("finish", self.disk)
                bed.run("umount", self.disk)
                self.nas = self.target_volume("nas-again", self.nas_mb)
                (self.disk / "dir").mkdir(exist_ok=True)
                self.start("--cutover=wait", "--wait")

    def test_a_name_that_is_gone_while_another_is_left(self):
        """It is called deleted in /proc, and is moved and brought back all the same."""
        for verb in ("abort", "cutover"):
            old, log = self.disk / f"old-{verb}", self.disk / f"log-{verb}"
            old.write_bytes(b"of old,")
            if verb == "cutover":
                self.nas = self.target_volume("nas-again", self.nas_mb)
            self.start("--cutover=wait", "--wait")
            log.touch()
            fds = [os.open(path, os.O_RDWR | os.O_APPEND) for path in (old, log)]
            for path, fd in zip((old, log), fds):
                self.addCleanup(os.close, fd)
                os.link(path, f"{path}.1")
                path.unlink()
                os.write(fd, b"while live,")
                self.assertIn("(deleted)", os.readlink(f"/proc/self/fd/{fd}"))
            self.livemv(verb, self.disk, "--wait")
            for path, fd, begin in zip((old, log), fds, (b"of old,", b"")):
                with open(f"{path}.1", "ab") as f:
                    f.write(b"by another,")
                os.write(fd, b"afterwards")
                self.assertEqual(os.pread(fd, 100, 0),
                                 begin + b"while live,by another,afterwards")
                self.assertEqual(os.fstat(fd).st_dev, os.stat(self.disk).st_dev)
        self.assert_moved()

    def test_more_than_a_channel_holds_survive_the_worker(self):
        """Each descriptor of a deleted file goes to the supervisor and from there
        to every successor."""
        count = 1500
        for i in range(count):
            (self.disk / f"f{i}").write_bytes(b"%d" % i)
        self.start("--cutover=wait")
        held = [os.open(self.disk / f"f{i}", os.O_RDWR) for i in range(count)]
        try:
            for i in range(count):
                os.unlink(self.disk / f"f{i}")
            for n in range(3):
                worker = bed.poll("a worker", lambda: self.status().get("worker_pid"))
                os.kill(worker, signal.SIGKILL)
                for i, fd in enumerate(held):
                    os.pwrite(fd, b"%d again" % n, 10)
                    self.assertEqual(os.pread(fd, 100, 0), (b"%d" % i).ljust(10, b"\0") +
                                     b"%d again" % n, self.logs())
        finally:
            for fd in held:
                os.close(fd)
        self.livemv("abort", self.disk, "--wait")


if __name__ == "__main__":
    unittest.main(verbosity=2)
