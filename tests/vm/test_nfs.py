"""Moves to a kernel NFS server whose link is cut on the way.

Environment: LIVEMV_CUT, for how many seconds (10).
"""
import os
import subprocess
import time
import unittest

import bed

CUT = float(os.environ.get("LIVEMV_CUT", "10"))


def server(*words):
    bed.run("nfs-server", *words)


class Cut(bed.Bed):
    """The link is cut for a while; applications wait, and lose nothing."""

    def setUp(self):
        super().setUp()
        self.addCleanup(server, "heal")
        bed.fill(self.disk, mb=20, files=200)
        self.before = bed.tree(self.disk / "odd")

    def cut(self):
        """Cuts the link for CUT seconds; what needs no server answers meanwhile."""
        server("cut")
        end = time.monotonic() + CUT
        while time.monotonic() < end:
            asked = time.monotonic()
            said = self.status()
            self.assertLess(time.monotonic() - asked, 5, said)
            self.assertIn(said["state"], self.meanwhile, said)
            time.sleep(0.5)
        server("heal")

    def moved_whole(self):
        self.livemv("cutover", self.disk, "--wait", timeout=100)
        self.assertEqual(self.status()["state"], "moved")
        self.assert_moved()
        totals = self.stop_writers()
        print(totals, flush=True)
        self.assert_nothing_lost(totals)
        self.assertEqual(bed.difference(self.before, bed.tree(self.disk / "odd")), "")
        subprocess.run(["sync", "-f", self.disk], check=True)
        self.assertEqual(bed.difference(bed.tree(self.disk), bed.tree(self.nas)), "")

    def test_while_copying(self):
        self.meanwhile = ("copying", "synced")
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait")
        bed.poll("something was copied", lambda: self.status()["bytes"]["copied"] > 0)
        self.cut()
        self.wait_state("synced", timeout=90)
        self.moved_whole()

    def test_while_synced(self):
        self.meanwhile = ("copying", "synced")
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait", "--wait")
        self.cut()
        self.moved_whole()


if __name__ == "__main__":
    unittest.main(verbosity=2)
