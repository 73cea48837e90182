"""flock(2), open file description and POSIX locks: held by the same processes on
every filesystem that DIR shows, and by nobody else at any moment."""
import os
import select
import signal
import subprocess
import unittest

import bed

# Holds what it is told to until it hears a line; then says so and ends.
HOLDER = """
import fcntl, os, struct, sys
how, path = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
if how == "flock":
    fcntl.flock(fd, fcntl.LOCK_EX)
elif how == "shared":
    fcntl.flock(fd, fcntl.LOCK_SH)
elif how == "posix":
    fcntl.lockf(fd, fcntl.LOCK_EX)
else:  # bytes 10 to 19 by the description
    fcntl.fcntl(fd, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 10, 10, 0))
print("locked", flush=True)
sys.stdin.readline()
os.close(fd)
print("let go", flush=True)
"""
# Tries again and again by path; whoever gets a lock that is held says so.
CONTENDER = """
import fcntl, os, struct, sys, select
tries = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for how, path in (a.split(":", 1) for a in sys.argv[1:]):
        fd = os.open(path, os.O_RDWR)
        try:
            if how == "range":
                fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 15, 1, 0))
            elif how == "posix":
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("got", how, path, flush=True)
        except BlockingIOError:
            tries += 1
        os.close(fd)
print("tries", tries, flush=True)
"""


class Locks(bed.Bed):
    def setUp(self):
        super().setUp()
        names = ("flock", "posix", "shared", "range")
        for name in names:
            (self.disk / name).write_bytes(b"x" * 100)
        self.holders = {name: self.talker(HOLDER, name, self.disk / name) for name in names}
        for holder in self.holders.values():
            self.assertEqual(holder.stdout.readline(), b"locked\n")
        self.contender = self.talker(
            CONTENDER, *(f"{name}:{self.disk / name}" for name in names))
        self.waiters = {"flock": [], "posix": []}
        self.wait_for_it()

    def talker(self, code, *args):
        return self.spawn("python3", "-c", code, *args, cwd="/", stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE)

    def wait_for_it(self):
        """One more process that is blocked in flock, and one in fcntl."""
        for how, waiters in self.waiters.items():
            waiter = self.talker(HOLDER, how, self.disk / how)
            waiters.append(waiter)
            bed.poll("it waits for the lock", lambda: self.waits(waiter))

    @staticmethod
    def waits(process):
        """In fcntl(2) or flock(2); a client of NFS that polls is not in /proc/locks."""
        with open(f"/proc/{process.pid}/syscall") as f:
            return f.read().split()[0] in ("72", "73")

    @staticmethod
    def has_said(process):
        return select.select([process.stdout], [], [], 0)[0]

    def assert_kept(self):
        """Nobody got a lock; then each of the waiters does, one after the other."""
        for waiter in self.waiters["flock"] + self.waiters["posix"]:
            self.assertFalse(self.has_said(waiter))
        out, _ = self.contender.communicate(b"stop\n", timeout=30)
        self.assertRegex(out, rb"\Atries [1-9]\d*\n\Z")
        for holder in self.holders.values():
            self.assertEqual(holder.communicate(b"go\n", timeout=30)[0], b"let go\n")
        for left in self.waiters.values():
            self.assert_each_gets_it(list(left))

    def assert_each_gets_it(self, left):
        while left:
            got = bed.poll("one of them gets it",
                           lambda: [w for w in left if self.has_said(w)], 60)
            self.assertEqual(len(got), 1)
            self.assertEqual(got[0].communicate(b"go\n", timeout=30)[0], b"locked\nlet go\n")
            left.remove(got[0])

    def test_locks_go_with_their_holders_to_the_target(self):
        self.start("--cutover=wait", "--wait")
        self.wait_for_it()
        self.livemv("cutover", self.disk, "--wait")
        self.wait_for_it()
        self.assert_kept()

    def test_an_attach_that_ends_behind_shut_doors_keeps_them(self):
        """The overlay is on, and opens wait: for whoever takes it off again."""
        for faults in ("attach.shut=error:5", "attach.shut=kill", "attach.mounted=kill",
                       "attach.swapped=kill", "attach.committed=kill"):
            with self.subTest(faults):
                self.start(code=4, env={"LIVEMV_FAULTS": faults})
                self.assertEqual(self.listed(), [])
        self.wait_for_it()
        self.assert_kept()

    def test_opens_do_not_wait_for_an_attach_that_nobody_ends(self):
        """The re-anchorer dies behind shut doors, and the supervisor with it."""
        source = os.stat(self.disk).st_dev
        start = self.spawn(
            bed.LIVEMV, "start", self.disk, self.nas, f"--state-dir={self.state}", bed.YES,
            "--max-pause=20s", cwd="/", env={**os.environ, "LIVEMV_FAULTS": "attach.shut=delay:8000"})
        bed.poll("the overlay is on", lambda: os.stat(self.disk).st_dev != source, 20)
        migration = os.listdir(self.state)[0]
        for pid in self.own_called(("livemv-supervisor", "livemv-attach"), migration):
            os.kill(pid, signal.SIGKILL)
        start.wait(timeout=30)
        done = subprocess.run(["cat", self.disk / "range"], timeout=20, capture_output=True)
        self.assertEqual(done.stdout, b"x" * 100)

    @staticmethod
    def own_called(names, migration):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().replace(b"\0", b" ").decode(errors="replace").split()
            except OSError:
                continue
            if words and words[0] in names and migration in words:
                yield int(pid)

    def test_locks_come_back_with_an_abort(self):
        self.start("--cutover=wait", "--wait")
        self.wait_for_it()
        self.livemv("abort", self.disk, "--wait")
        self.wait_for_it()
        self.assert_kept()

    def test_a_lock_on_a_file_that_the_kernel_writes_by_itself(self):
        self.start("--cutover=wait", "--wait")
        pairs = []
        for how in self.waiters:
            made = self.disk / ("made-" + how)
            made.write_bytes(b"")
            fd = os.open(made, os.O_WRONLY | os.O_APPEND)
            os.close(fd)
            holder = self.talker(HOLDER, how, made)
            self.assertEqual(holder.stdout.readline(), b"locked\n")
            waiter = self.talker(HOLDER, how, made)
            bed.poll("it waits for the lock", lambda: self.waits(waiter))
            pairs.append((holder, waiter))
        self.livemv("abort", self.disk, "--wait")
        for holder, waiter in pairs:
            bed.poll("it waits for the lock", lambda: self.waits(waiter))
            self.assertFalse(self.has_said(waiter))
            holder.communicate(b"go\n", timeout=30)
            self.assertEqual(waiter.communicate(b"go\n", timeout=30)[0], b"locked\nlet go\n")
        self.assert_kept()

    def test_rounds_that_are_put_back_keep_them(self):
        self.start("--cutover=wait", "--wait", env={"LIVEMV_FAULTS": "cutover.swapped=error:5"})
        self.cut_over(expect=5)
        self.assertEqual(self.status()["state"], "synced")
        self.wait_for_it()
        self.livemv("abort", self.disk, "--wait")
        self.assert_kept()


if __name__ == "__main__":
    unittest.main()
