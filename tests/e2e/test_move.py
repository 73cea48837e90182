"""A directory moves while processes use it, and nothing is lost."""
import json
import os
import subprocess
import sys
import unittest

import bed


class Move(bed.Bed):
    def moved_tree_is_the_same(self, before):
        after = bed.tree(self.disk)
        self.assertEqual(bed.difference(before, after), "")
        self.assertFalse([n for n in os.listdir(self.disk) if n.startswith(".livemv")])
        self.assert_moved()

    def test_a_tree_that_nobody_uses(self):
        bed.fill(self.disk, mb=20, files=200)
        before = bed.tree(self.disk)
        root = os.stat(self.disk)
        self.start("--wait")
        self.assertEqual(self.status()["state"], "moved")
        self.moved_tree_is_the_same(before)
        after = os.stat(self.disk)
        self.assertEqual((root.st_mode, root.st_uid, root.st_mtime_ns),
                         (after.st_mode, after.st_uid, after.st_mtime_ns))
        said = self.livemv("finish", self.disk).text
        self.assertIn(str(self.disk), said)
        self.assertEqual(self.listed(), [])
        self.assertEqual(list(self.state.iterdir()), [])

    def test_an_empty_directory(self):
        self.start("--wait")
        self.assertEqual(self.status()["state"], "moved")
        (self.disk / "new").write_text("on the target")
        self.assertEqual((self.nas / "new").read_text(), "on the target")

    def test_writers_by_path_and_with_descriptors(self):
        bed.fill(self.disk, mb=bed.sized(200, 20), files=bed.sized(400, 200))
        before = bed.tree(self.disk / "odd")
        self.writers(by_path=bed.sized(20, 6), held=bed.sized(14, 4), shared=bed.sized(3, 2))
        self.start("--wait", timeout=240)
        self.assert_moved()
        for row in self.status()["pauses"]:
            print("pause", row)
        totals = self.stop_writers()
        print(json.dumps(totals))
        self.assert_nothing_lost(totals)
        self.assertEqual(bed.difference(before, bed.tree(self.disk / "odd")), "")
        # Everything was written to the target alone after the move.
        self.assertEqual(bed.difference(bed.tree(self.disk), bed.tree(self.nas)), "")

    def test_the_tree_is_seen_whole_all_the_time(self):
        bed.fill(self.disk, mb=10, files=100)
        want = bed.tree(self.disk)
        code = ("import os, sys; sys.path.insert(0, sys.argv[1]); import bed\n"
                "# Inode numbers change at cutover, perhaps in the middle of a look.\n"
                "look = lambda: (bed.tree(sys.argv[2])[0], [])\n"
                "want = look()\n"
                "while not os.path.exists(sys.argv[3]):\n"
                "    d = bed.difference(want, look())\n"
                "    if d: print(d); sys.exit(1)\n"
                "    os.write(3, b'.')\n")
        stop, looks = self.work / "stop-looking", self.work / "looks"
        looker = self.spawn("sh", "-c", 'exec "$0" "$@" 3>>"$LOOKS"', sys.executable, "-c",
                            code, os.path.dirname(__file__), self.disk, stop, cwd="/",
                            env=dict(os.environ, LOOKS=str(looks)),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

        def looked():
            """Two more looks have ended: one of them began after now."""
            before = looks.stat().st_size if looks.exists() else 0
            bed.poll("looks", lambda: looker.poll() is not None or
                     (looks.exists() and looks.stat().st_size >= before + 2), 60)

        looked()
        self.start("--cutover=wait")
        looked()
        self.wait_state("synced")
        looked()
        self.livemv("cutover", self.disk, "--wait")
        looked()
        stop.touch()
        out, _ = looker.communicate(timeout=60)
        self.assertEqual(looker.returncode, 0, out.decode() + self.logs())
        self.assertEqual(bed.difference(want, bed.tree(self.disk)), "")

    def test_cutover_waits_when_told_to(self):
        bed.fill(self.disk, mb=5, files=50)
        self.writers(by_path=2, held=2)
        self.start("--cutover=wait", "--wait")
        self.assertEqual(self.status()["state"], "synced")
        self.livemv("cutover", self.disk, "--wait")
        self.assertEqual(self.status()["state"], "moved")
        self.assert_nothing_lost(self.stop_writers())

    def test_pause_and_resume_of_the_copier(self):
        bed.fill(self.disk, mb=60, files=100)
        self.start("--cutover=wait")
        self.livemv("pause", self.disk)
        s = self.wait_state("paused", "synced")
        (self.disk / "new").write_text("while paused")
        self.assertEqual((self.disk / "new").read_text(), "while paused")
        if s["state"] == "paused":
            self.livemv("resume", self.disk)
        self.wait_state("synced")
        self.livemv("cutover", self.disk, "--wait")
        self.assertEqual((self.nas / "new").read_text(), "while paused")

    def test_two_migrations_at_once(self):
        disk2, nas2 = self.volume("disk2", 200), self.target_volume("nas2", 200)
        bed.fill(self.disk, mb=10, files=100, seed=1)
        bed.fill(disk2, mb=10, files=100, seed=2)
        a, b = bed.tree(self.disk), bed.tree(disk2)
        self.start()
        self.start(source=disk2, target=nas2)
        self.wait_state("moved")
        self.wait_state("moved", of=disk2)
        self.assertEqual(bed.difference(a, bed.tree(self.disk)), "")
        self.assertEqual(bed.difference(b, bed.tree(disk2)), "")

    def test_started_from_inside_the_directory(self):
        bed.fill(self.disk, mb=5, files=50)
        sub = self.disk / "odd"
        script = (f'"{bed.LIVEMV}" start "{self.disk}" {" ".join(self.target(self.nas))} '
                  f'--state-dir="{self.state}" {bed.MAX_PAUSE} {bed.YES} '
                  f'--wait >"{self.work}/out" 2>&1; echo $? >"{self.work}/code"; '
                  f'pwd -P >"{self.work}/pwd"; echo after >here')
        shell = self.spawn("sh", "-c", script, cwd=sub)
        shell.wait(timeout=60)
        out = (self.work / "out").read_text()
        self.assertEqual((self.work / "code").read_text().strip(), "0", out + self.logs())
        self.assertEqual((self.work / "pwd").read_text().strip(), str(sub))
        self.assertEqual((self.nas / "odd" / "here").read_text(), "after\n")

    def test_a_subdirectory_of_a_volume(self):
        sub = self.disk / "a b" / "work\ndir"
        sub.mkdir(parents=True)
        bed.fill(sub, mb=5, files=50)
        (self.disk / "neighbour").write_text("stays")
        to = self.nas / "new home"
        to.mkdir()
        before = bed.tree(sub)
        self.writers(by_path=2, held=2, where=sub)
        self.start("--wait", source=str(sub) + "/", target=to)
        self.assertEqual((self.disk / "neighbour").read_text(), "stays")
        totals = self.stop_writers(where=sub)
        self.assert_nothing_lost(totals)
        after = bed.tree(sub)
        for name in [n for n in after[0] if n.endswith(b".log")]:
            del after[0][name]
        self.assertEqual(bed.difference(before, after), "")
        self.assertEqual(bed.difference(bed.tree(sub), bed.tree(to)), "")


class Churn(bed.Bed):
    """Four processes do everything to the tree while the copier runs; a model
    of it is kept outside."""

    def churn(self, seed, verb, seconds=10):
        model = self.work / "model"
        model.mkdir()
        bed.fill(self.disk, mb=bed.sized(40, 10), files=bed.sized(300, 100), seed=seed)
        churn = self.spawn(sys.executable, os.path.join(os.path.dirname(__file__), "churn.py"),
                           self.disk, model, seed, seconds, 4, cwd="/",
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.start("--cutover=wait")
        out, _ = churn.communicate(timeout=seconds * 3 + 60)
        self.assertEqual(churn.returncode, 0, out.decode() + self.logs())
        print(out.decode(), end="")
        seen = bed.tree(self.disk)
        model_tree = bed.tree(model, times=False)
        if verb == "move":
            self.livemv("cutover", self.disk, "--wait")
            self.assertEqual(self.status()["state"], "moved")
        else:
            self.livemv("abort", self.disk, "--wait")
        self.assertEqual(bed.difference(seen, bed.tree(self.disk)), "", self.logs())
        own = {k: v for k, v in bed.tree(self.disk, times=False)[0].items()
               if k.startswith(b"worker")}
        links = [l for l in bed.tree(self.disk)[1] if l[0].startswith(b"worker")]
        self.assertEqual(bed.difference((own, links), model_tree), "")

    def test_moved_1(self):
        self.churn(1, "move")

    def test_moved_2(self):
        self.churn(2, "move")

    def test_moved_3(self):
        self.churn(3, "move")

    def test_aborted_4(self):
        self.churn(4, "abort")

    def test_aborted_5(self):
        self.churn(5, "abort")

    def test_aborted_6(self):
        self.churn(6, "abort")


if __name__ == "__main__":
    unittest.main(verbosity=2)
