"""The churn goes on through the cutover and through the abort.

test_move.Churn compares whole trees, which needs a quiet moment; here the
churn itself compares, and the model is compared when it has ended.
"""
import os
import subprocess
import sys
import time
import unittest

import bed


class Through(bed.Bed):
    def through(self, seed, verb, before=2, after=4):
        """Seconds of churn before the start and after the verb; it goes on in between."""
        model = self.work / "model"
        model.mkdir()
        bed.fill(self.disk, mb=bed.sized(40, 10), files=bed.sized(300, 100), seed=seed)
        filled = bed.tree(self.disk)
        churn = self.spawn(sys.executable, os.path.join(os.path.dirname(__file__), "churn.py"),
                           self.disk, model, seed, 400, 4, self.work / "stop-churn", cwd="/",
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        time.sleep(before)
        began = time.monotonic()
        self.start("--cutover=wait")
        if verb == "cutover":
            self.wait_state("synced")
        self.livemv(verb, self.disk, "--wait", timeout=180)
        print(f"{verb} done after {time.monotonic() - began:.1f} s")
        self.assertIsNone(churn.poll(), "the churn ended by itself")
        time.sleep(after)
        (self.work / "stop-churn").touch()
        out, _ = churn.communicate(timeout=60)
        self.assertEqual(churn.returncode, 0, out.decode() + self.logs())
        found, links = bed.tree(self.disk, times=False)
        own = {k: v for k, v in found.items() if k.startswith(b"worker")}
        own_links = [l for l in links if l[0].startswith(b"worker")]
        self.assertEqual(bed.difference((own, own_links), bed.tree(model, times=False)), "",
                         self.logs())
        found, links = bed.tree(self.disk)
        rest = {k: v for k, v in found.items() if not k.startswith(b"worker")}
        rest_links = [l for l in links if not l[0].startswith(b"worker")]
        self.assertEqual(bed.difference(filled, (rest, rest_links)), "", self.logs())

    def test_cutover_11(self):
        self.through(11, "cutover")

    def test_cutover_12(self):
        self.through(12, "cutover")

    def test_abort_13(self):
        self.through(13, "abort")

    def test_abort_14(self):
        self.through(14, "abort")


if __name__ == "__main__":
    unittest.main(verbosity=2)
