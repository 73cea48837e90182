"""Moves to a kernel NFS server: what it holds, and a link that is cut on the way.

Environment: LIVEMV_CUT, for how many seconds (10).
"""
import errno
import json
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


class Contract(bed.Bed):
    """What the export does not hold is named before anything is changed, and
    given up only if told so."""

    def plan(self, *args):
        said = self.livemv("plan", self.disk, *self.target(self.nas), *args, "--json",
                           code=None)
        plan = json.loads(said.text)
        return plan, {f["code"]: f for f in plan["findings"]}

    def test_plan_tries_the_export_and_shows_its_options(self):
        bed.fill(self.disk, mb=5, files=20)
        plan, findings = self.plan()
        self.assertEqual(plan["result"], "ok", plan)
        options = plan["target_volume"]["options"].split(",")
        self.assertIn("vers=" + bed.NFS_VERS, options)
        self.assertIn("hard", options)
        self.assertTrue([o for o in options if o.startswith("rsize=")], options)
        self.assertGreater(plan["target_volume"]["free_bytes"], 0)
        self.assertIn("exchanging two names", findings["target-lacks"]["what"])
        self.assertEqual(os.listdir(self.nas), [])
        (self.nas / "old").write_text("x")
        _, findings = self.plan()
        self.assertEqual(findings["target-not-empty"]["severity"], "blocker")

    def test_a_soft_mount_is_refused(self):
        said = self.livemv("start", self.disk, *self.target(self.nas, "soft,timeo=600"),
                           code=3)
        self.assertIn("--allow-loss=soft", said.text)
        self.assertEqual(os.listdir(self.nas), [])

    def test_attributes_that_it_does_not_store(self):
        kept = bed.NFS_VERS.startswith("4")
        file = self.disk / "file"
        file.write_text("text")
        os.chmod(file, 0o640)
        os.setxattr(file, "user.colour", b"red")
        _, findings = self.plan()
        self.assertEqual("target-xattrs" in findings, not kept, findings)
        os.setxattr(file, "trusted.mark", b"1")
        subprocess.run(["setfacl", "-m", "u:1234:r", file], check=True)
        _, findings = self.plan()
        self.assertEqual("target-acls" in findings, kept, findings)
        self.assertIn("target-system-xattrs", findings)
        self.livemv("start", self.disk, *self.target(self.nas), code=3)
        self.start("--allow-loss=xattr,acl", "--cutover=wait", "--wait")
        # Live: as the target will have it, not later.
        for name, value, held in (("user.size", b"1", kept), ("trusted.mark", b"2", False)):
            try:
                os.setxattr(file, name, value)
                refused = 0
            except OSError as e:
                refused = e.errno
            self.assertEqual(refused, 0 if held else errno.EOPNOTSUPP, name)
        self.livemv("cutover", self.disk, "--wait")
        self.assertEqual(file.read_text(), "text")
        want = {"user.colour", "user.size"} if kept else set()
        self.assertEqual({n for n in os.listxattr(file) if not n.startswith("system.")}, want)
        acl = subprocess.run(["getfacl", "-cn", file], capture_output=True, text=True).stdout
        self.assertEqual("user:1234:r--" in acl, not kept, acl)

    def test_times_out_of_range(self):
        file = self.disk / "file"
        file.write_text("text")
        late = 5_000_000_000  # in 2128
        os.utime(file, (late, late))
        _, findings = self.plan()
        if bed.NFS_VERS.startswith("4"):
            self.assertNotIn("target-times", findings)
            return
        self.assertEqual(findings["target-times"]["severity"], "blocker")
        self.start("--allow-loss=time", "--wait")
        self.assertEqual(file.read_text(), "text")


if __name__ == "__main__":
    unittest.main(verbosity=2)
