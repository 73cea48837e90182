"""Random operations on files, each beside a model in memory (support/fsx.cc), on
the overlay: while it copies and races with them, and when synced; then moved or
taken back, the files are compared with what the models say they hold."""
import os
import subprocess
import unittest

import bed

FSX = str(bed.BUILD / "tests" / "fsx")
WAYS = ("plain", "mmap", "direct", "plain,mmap,direct")


class Fsx(bed.Bed):
    seconds, ops = 6.0, None
    disk_mb = 900
    nas_mb = 1200

    def begin(self, seed):
        """Starts fsx on an old and a new file for each way. The old one has content
        that the copier has to bring."""
        (self.disk / "new").mkdir()
        self.running = []
        for number, ways in enumerate(WAYS):
            for folder in ("old", "new"):
                path, model = self.disk / folder / str(number), self.work / f"{folder}{number}"
                words = [f"--ops={self.ops}"] if self.ops else [f"--seconds={self.seconds}"]
                process = self.spawn(FSX, path, model, f"--ways={ways}", "--max-mb=3",
                                     f"--seed={seed + number}", *words, cwd="/",
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                self.running.append((path, model, process))

    def end(self):
        """All have found their files as their models are."""
        done = 0
        for path, _, process in self.running:
            out, _ = process.communicate(timeout=3600)
            self.assertEqual(process.returncode, 0, f"{path}: {out.decode()}\n{self.logs()}")
            done += int(out.split()[0])
        print(f"{done} operations", flush=True)

    def compare(self):
        for path, model, _ in self.running:
            bed.run("cmp", path, model)

    def through(self, seed, wait, verb):
        (self.disk / "old").mkdir()
        for number in range(len(WAYS)):
            (self.disk / "old" / str(number)).write_bytes(os.urandom(2_500_000))
        # What keeps the copier busy meanwhile.
        bed.fill(self.disk, mb=bed.sized(250, 20), files=500, seed=seed)
        self.start("--cutover=wait", *(["--wait"] if wait else []))
        self.begin(seed)
        self.end()
        self.compare()
        self.livemv(verb, self.disk, "--wait", timeout=200)
        self.compare()
        bed.run("sync", "-f", self.disk)
        self.compare()

    def test_while_copying_then_moved(self):
        self.through(1, False, "cutover")

    def test_while_copying_then_aborted(self):
        self.through(2, False, "abort")

    def test_when_synced_then_moved(self):
        self.through(3, True, "cutover")

    def test_when_synced_then_aborted(self):
        self.through(4, True, "abort")


if __name__ == "__main__":
    unittest.main(verbosity=2)
