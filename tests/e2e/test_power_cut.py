"""Power cuts that lose what was not durable. Source, target and state lie on
volumes of their own; at the cut everything that runs is stopped, the images of
the three are copied as the block layer has left them (what the page cache of the
filesystems above had not written yet is not in them), and the copies are what
the next boot finds.

LIVEMV_CUTS: how many (default 3).
"""
import contextlib
import os
import random
import signal
import sys
import time
import unittest

import bed
import fsyncer
import test_recover

CUTS = int(os.environ.get("LIVEMV_CUTS", "3"))


class PowerCut(test_recover.Crash):
    disk_mb, nas_mb = 120, 160

    def setUp(self):
        super().setUp()
        self.state.rmdir()
        self.volume("state", 80)
        self.volumes = {loop: at for loop, at in zip(
            self.loops, (self.disk, self.nas, self.state))}

    def copied(self, loop):
        """A copy of the image of loop, of one moment: no write came while it was
        made, and none was on its way."""
        image = bed.run("losetup", "-n", "-O", "BACK-FILE", loop).text.strip()
        stat = f"/sys/block/{os.path.basename(loop)}"

        def writes():
            with open(f"{stat}/stat") as f, open(f"{stat}/inflight") as g:
                words = f.read().split()
                return words[4], words[6], words[15:], g.read().split()
        for _ in range(100):
            before = writes()
            copy = f"{image}.{self.cuts}"
            bed.run("cp", "--sparse=always", image, copy)
            if writes() == before and before[3] == ["0", "0"]:
                return copy
        raise AssertionError(f"{loop} is written for ever")

    def cut(self):
        self.cuts += 1
        # Who waits for the stopped worker cannot stop, nor do anything.
        os.kill(self.busy.pid, signal.SIGSTOP)
        pids = [pid for pid, _ in self.own()]
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        for pid in pids:  # in the kernel it may be on its way yet
            bed.poll(f"{pid} stands", lambda: self.stands(pid))
        copies = [self.copied(loop) for loop in self.volumes]
        self.kill_all()
        ats = list(self.volumes.values())
        for at in ats:
            self.umount_all(at)
        for loop in self.volumes:
            bed.poll(f"{loop} is given back", lambda: not os.path.exists(
                f"/sys/fs/ext4/{os.path.basename(loop)}"))
            old = bed.run("losetup", "-n", "-O", "BACK-FILE", loop).text.strip()
            bed.run("losetup", "-d", loop)
            self.loops.remove(loop)
            os.unlink(old)
        self.volumes = {}
        for copy, at in zip(copies, ats):
            loop = bed.run("losetup", "--show", "-f", copy).text.strip()
            self.loops.append(loop)
            self.volumes[loop] = at
            bed.run("mount", loop, at)
        bed.run("rm", "-rf", f"/run/livemv/{self.id}")
        test_recover.Crash.boots += 1
        self.boot = {"LIVEMV_BOOT": f"boot{test_recover.Crash.boots}@{time.time()}"}

    @staticmethod
    def stands(pid):
        """Every thread is stopped, and not in the kernel."""
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/stat") as f:
                    if f.read().rsplit(") ", 1)[1][0] not in "TtZX":
                        return False
        except OSError:
            return not os.path.exists(f"/proc/{pid}")
        return True

    def test_cuts(self):
        for n in range(CUTS):
            with self.subTest(cut=n):
                self.one(random.Random(n), n)

    def one(self, rng, n):
        self.cuts = n * 10
        target = self.nas
        self.busy = self.spawn(sys.executable, fsyncer.__file__, self.disk, self.ack)
        bed.poll("the fsyncer runs", lambda: self.ack.exists() and self.acks() > 5)
        self.start("--cutover=wait", target=target)
        self.id = self.listed()[0]["id"]
        doing = ("copying", "synced", "abort", "cutover")[n % 4]
        if doing == "synced":
            self.wait_state("synced")
        elif doing == "abort":
            self.livemv("abort", self.disk)
        elif doing == "cutover":
            self.wait_state("synced")
            self.livemv("cutover", self.disk)
        time.sleep(rng.random() * (0.3 if doing in ("abort", "cutover") else 8))
        if not self.listed():  # the abort is over
            self.busy.kill()
            self.busy.wait()
            self.reset()
            return
        state = self.status()["state"]
        self.cut()
        what = f"cut {n}, {doing}, in {state}"
        self.recover(code=None)
        self.assertEqual(fsyncer.check(self.disk, self.ack), [], what)
        if rng.random() < 0.3 and self.listed():  # once more, at once
            self.busy = self.spawn("sleep", "1000")
            self.cut()
            self.recover()
            self.assertEqual(fsyncer.check(self.disk, self.ack), [], what)
        for m in self.listed():
            if m["state"] == "moved":
                self.livemv("finish", self.disk)
            elif m["state"] != "aborting" and rng.random() < 0.5:
                self.livemv("cutover", self.disk, "--wait")
                self.assert_moved()
                self.assertEqual(fsyncer.check(self.disk, self.ack), [], what)
                self.livemv("finish", self.disk)
            else:
                self.livemv("abort", self.disk, "--wait", code=None)
                if self.status()["state"] == "moved":  # by itself, before that
                    self.livemv("finish", self.disk)
        bed.poll("it is over", lambda: not self.listed(), 60)
        self.assertEqual(fsyncer.check(self.disk, self.ack), [], what)
        print(what, flush=True)
        self.reset()

    def reset(self):
        """Empty volumes for the next."""
        self.umount_all(self.disk)
        self.umount_all(self.nas)
        for loop, at in self.volumes.items():
            if at == self.state:
                continue
            bed.poll(f"{loop} is given back", lambda: not os.path.exists(
                f"/sys/fs/ext4/{os.path.basename(loop)}"))
            bed.run("mkfs.ext4", "-q", "-F", loop)
            bed.run("mount", loop, at)
        self.ack.unlink()
        bed.fill(self.disk, mb=8, files=80)
        fsyncer.prepare(self.disk)
        bed.run("sync", "-f", self.disk)


if __name__ == "__main__":
    unittest.main()
