"""Moves to a kernel NFS server: what it holds, and a link that is cut on the way.

Environment: LIVEMV_CUT, for how many seconds (10).
"""
import errno
import json
import os
import pathlib
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
        if self.status()["state"] not in ("moved", "draining"):
            self.livemv("cutover", self.disk, "--wait", timeout=100)
        self.wait_state("moved")
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

    def test_while_paused(self):
        self.meanwhile = ("paused", "synced")
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait")
        self.livemv("pause", self.disk)
        self.cut()
        if self.status()["state"] == "paused":
            self.livemv("resume", self.disk)
        self.wait_state("synced", timeout=90)
        self.moved_whole()

    def test_while_attaching(self):
        """Attach asks nothing of the server; the first writes after it wait."""
        self.meanwhile = ("attaching", "copying", "synced")
        self.writers(by_path=3, held=2, shared=1)
        start = self.spawn(bed.LIVEMV, "start", self.disk, *self.target(self.nas),
                           f"--state-dir={self.state}", "--cutover=wait",
                           env=dict(os.environ, LIVEMV_FAULTS="attach.scanned=delay:3000@1"))
        bed.poll("attaching", lambda: self.listed() and self.status()["state"] == "attaching")
        self.cut()
        self.assertEqual(start.wait(timeout=60), 0)
        self.wait_state("synced", timeout=90)
        self.moved_whole()

    def test_while_cutting_over(self):
        """The cutover gives up in time, or waits in synced for its next attempt."""
        self.meanwhile = ("cutting_over", "synced", "moved", "draining")
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait", "--wait")
        cutover = self.spawn(bed.LIVEMV, "cutover", self.disk, "--wait")
        bed.poll("cutting over", lambda: self.status()["state"] != "synced" or
                 cutover.poll() is not None, step=0)
        self.cut()
        self.assertIn(cutover.wait(timeout=100), (0, 5, 8))
        if self.status()["state"] not in ("moved", "draining"):
            self.wait_state("synced", timeout=90)
        self.moved_whole()

    def test_while_aborting(self):
        self.meanwhile = ("aborting", "synced", "aborted")
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait", "--wait")
        (self.disk / "new").write_bytes(b"n" * 3_000_000)
        server("cut")
        abort = self.spawn(bed.LIVEMV, "abort", self.disk, "--wait")
        self.cut()
        self.assertEqual(abort.wait(timeout=100), 0)
        self.assertEqual(self.listed(), [])
        totals = self.stop_writers()
        print(totals, flush=True)
        self.assert_nothing_lost(totals)
        self.assertEqual((self.disk / "new").read_bytes(), b"n" * 3_000_000)
        self.assertEqual(bed.difference(self.before, bed.tree(self.disk / "odd")), "")

    def test_while_draining(self):
        """One that was accepted goes on working on the overlay after the move."""
        self.meanwhile = ("draining",)
        held = self.spawn("sleep", "1000", cwd=self.disk)
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait", "--wait")
        tracer = self.spawn("strace", "-o", self.work / "trace", "-p", held.pid)
        bed.poll("a tracer", lambda: "TracerPid:\t0" not in
                 pathlib.Path(f"/proc/{held.pid}/status").read_text())
        self.livemv("cutover", self.disk, f"--accept={held.pid}", "--wait")
        self.wait_state("draining")
        self.cut()
        tracer.terminate()
        tracer.wait(timeout=20)
        held.kill()
        held.wait()
        self.wait_state("moved", timeout=90)
        self.moved_whole()

    def test_once_moved(self):
        """Nothing of ours is left between the processes and the server."""
        self.meanwhile = ("moved",)
        self.writers(by_path=3, held=2, shared=1)
        self.start("--wait")
        self.cut()
        self.livemv("finish", self.disk)
        self.assert_moved()
        self.assert_nothing_lost(self.stop_writers())

    def test_before_start(self):
        """Nobody answers: start says so and has changed nothing."""
        self.writers(by_path=3, held=2)
        server("cut")
        said = self.livemv("start", self.disk, *self.target(self.nas, "retry=0"),
                           f"--state-dir={self.state}", code=8, timeout=100)
        self.assertIn("nothing was changed", said.text)
        server("heal")
        self.assertEqual(self.listed(), [])
        self.assert_nothing_lost(self.stop_writers())

    def test_the_server_restarts_while_copying(self):
        self.meanwhile = ("copying", "synced")
        self.writers(by_path=3, held=2, shared=1)
        self.start("--cutover=wait")
        bed.poll("something was copied", lambda: self.status()["bytes"]["copied"] > 0)
        server("stop")
        server("start")
        self.wait_state("synced", timeout=90)
        self.moved_whole()


class Planned(bed.Bed):
    def plan(self, *args):
        said = self.livemv("plan", self.disk, *self.target(self.nas), *args, "--json",
                           code=None)
        plan = json.loads(said.text)
        return plan, {f["code"]: f for f in plan["findings"]}


class Contract(Planned):
    """What the export does not hold is named before anything is changed, and
    given up only if told so."""

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


class Squash(Planned):
    """A server that takes root for nobody."""

    def test_plan_knows_a_squashed_root(self):
        server("export", "rw,sync,root_squash")
        self.addCleanup(server, "export", "rw,sync,no_root_squash")
        self.nas.chmod(0o777)
        file = self.disk / "file"
        file.write_text("text")
        os.chown(file, 1000, 1000)
        _, findings = self.plan()
        self.assertEqual(findings["target-owners"]["severity"], "blocker")
        self.assertEqual(findings["target-root"]["severity"], "blocker")
        os.chown(self.nas, 65534, 65534)
        _, findings = self.plan()
        self.assertNotIn("target-root", findings)
        self.start("--allow-loss=owner", "--wait")
        self.assertEqual(file.read_text(), "text")
        self.assertNotEqual(file.stat().st_uid, 1000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
