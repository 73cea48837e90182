"""Abort, faults at each step, processes that cannot be moved, full disks: the
application never notices more than a stall."""
import json
import os
import re
import signal
import subprocess
import unittest

import bed


class Abort(bed.Bed):
    def test_abort_while_copying_and_when_synced(self):
        bed.fill(self.disk, mb=bed.sized(60, 20), files=200)
        before = bed.tree(self.disk)
        self.writers(by_path=bed.sized(6, 2), held=bed.sized(6, 2), shared=bed.sized(2, 1))
        self.start("--cutover=wait")
        (self.disk / "grown").write_bytes(b"x" * 3_000_000)
        self.livemv("abort", self.disk, "--wait")
        self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(self.nas).st_dev)
        self.assertEqual((self.disk / "grown").read_bytes(), b"x" * 3_000_000)
        self.assertEqual(self.listed(), [])

        target = self.target_volume("nas2", 800)  # the first target is left aside
        self.start("--cutover=wait", "--wait", target=target)
        with open(self.disk / "grown", "ab") as f:
            f.write(b"y" * 2_000_000)
        self.livemv("abort", self.disk, "--wait")
        totals = self.stop_writers()
        self.assert_nothing_lost(totals)
        self.assertEqual((self.disk / "grown").read_bytes(), b"x" * 3_000_000 + b"y" * 2_000_000)
        after = bed.tree(self.disk)
        for name in [n for n in after[0] if n.endswith(b".log") or n == b"grown"]:
            del after[0][name]
        self.assertEqual(bed.difference(before, after), "")

    def test_abort_with_many_new_files(self):
        """More of them than can be brought back while everybody is frozen, though
        they are few bytes; a successor begins with them again."""
        bed.fill(self.disk, mb=5, files=60)
        self.start("--cutover=wait", "--wait")
        self.writers(by_path=1, held=2, shared=1)
        made = self.disk / "made"
        made.mkdir()
        for n in range(bed.sized(4000, 400)):
            (made / str(n)).write_bytes(b"new %d" % n)
        before = bed.tree(made)
        self.livemv("abort", self.disk)
        os.kill(self.status()["worker_pid"], signal.SIGKILL)
        bed.poll(lambda: f"the abort ends: {self.status()}", lambda: self.listed() == [], 60)
        self.assert_nothing_lost(self.stop_writers())
        self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(self.nas).st_dev)
        self.assertEqual(bed.difference(before, bed.tree(made)), "")

    def test_abort_typed_right_after_start(self):
        """The re-anchorer has said that it is done, and has not ended yet."""
        bed.fill(self.disk, mb=5, files=60)
        before = bed.tree(self.disk)
        self.start("--cutover=wait", env={"LIVEMV_FAULTS": "reanchor.reported=delay:1000"})
        self.livemv("abort", self.disk, "--wait")
        self.assertEqual(self.listed(), [])
        self.assertEqual(bed.difference(before, bed.tree(self.disk)), "")

    def test_an_attach_whose_end_is_not_heard_of_is_not_taken_back(self):
        """The redirect is in the journal and bytes are on the target: whoever dies now."""
        for n, faults in enumerate(("attach.redirected=kill", "attach.redirected=error:5",
                                    "redirect.begun=kill", "redirect.begun=error:5")):
            with self.subTest(faults):
                disk, nas = self.volume(f"disk{n}", 100), self.volume(f"nas{n}", 100)
                log = open(disk / "log", "ab", buffering=0)
                log.write(b"before,")
                self.start("--cutover=wait", "--wait", source=disk, target=nas,
                           env={"LIVEMV_FAULTS": faults})
                self.assertEqual(self.status(disk)["state"], "synced")
                log.write(b"after")
                self.assertEqual((disk / "log").read_bytes(), b"before,after")
                self.livemv("cutover", disk, "--wait")
                log.close()
                self.assertEqual((disk / "log").read_bytes(), b"before,after")
                self.assertEqual(os.stat(disk).st_dev, os.stat(nas).st_dev)
                self.livemv("finish", disk)

    def test_abort_waits_for_a_shared_mapping(self):
        """Its holder would write into the overlay's file, and others into the source's."""
        (self.disk / "mapped").write_bytes(b"before,")
        source = os.stat(self.disk).st_dev
        self.start("--cutover=wait", "--wait")
        overlay = os.stat(self.disk).st_dev
        self.assertNotEqual(overlay, source)
        holder = self.spawn("python3", "-c", "import mmap, sys\n"
                            "f = open(sys.argv[1], 'r+b')\n"
                            "m = mmap.mmap(f.fileno(), 0)\nprint('mapped', flush=True)\n"
                            "sys.stdin.readline()\nm[:6] = b'BEFORE'\nm.flush()\n",
                            self.disk / "mapped", cwd="/", stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
        self.assertEqual(holder.stdout.readline(), b"mapped\n")
        with open(self.disk / "mapped", "ab") as f:
            self.livemv("abort", self.disk)
            bed.poll("its holder is named",
                     lambda: f"process {holder.pid}" in str(self.status().get("reason")), 60)
            self.assertEqual(self.status()["state"], "aborting")
            self.assertEqual(os.stat(self.disk).st_dev, overlay)
            f.write(b"while it waits")
        holder.stdin.close()
        bed.poll("the abort ends", lambda: self.listed() == [], 60)
        self.assertEqual(os.stat(self.disk).st_dev, source)
        self.assertEqual((self.disk / "mapped").read_bytes(), b"BEFORE,while it waits")

    def test_abort_leaves_a_deleted_file_and_moves_what_else_its_holder_has(self):
        source = os.stat(self.disk).st_dev
        self.start("--cutover=wait", "--wait")
        gone, log = (os.open(self.disk / name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                     for name in ("gone", "log"))
        self.addCleanup(os.close, log)
        try:
            os.write(gone, b"scratch")
            os.unlink(self.disk / "gone")
            os.write(log, b"while live,")
            self.livemv("abort", self.disk)
            bed.poll("the log is on the source", lambda: os.fstat(log).st_dev == source, 60)
            self.assertEqual(os.stat(self.disk).st_dev, source)
            with open(self.disk / "log", "ab") as f:
                f.write(b"by another,")
            os.write(log, b"afterwards")
            self.assertEqual(os.pread(log, 100, 0), b"while live,by another,afterwards")
            os.write(gone, b", more")
            self.assertEqual(os.pread(gone, 100, 0), b"scratch, more")
            self.assertEqual(self.status()["state"], "aborting")
        finally:
            os.close(gone)
        bed.poll("the abort ends", lambda: self.listed() == [], 60)

    def test_abort_is_refused_when_the_growth_does_not_fit(self):
        (self.disk / "ballast").write_bytes(bytes(200 << 20))
        (self.disk / "job").write_bytes(b"start")
        self.start("--cutover=wait")
        block = os.urandom(1 << 20)
        with open(self.disk / "job", "ab") as f:
            for _ in range(300):
                f.write(block)
        said = self.livemv("abort", self.disk, "--wait", code=None)
        self.assertNotEqual(said.returncode, 0, said.text)
        self.assertRegex(said.text, r"[0-9]")
        self.assertIn(self.status()["state"], ("copying", "synced"))
        with open(self.disk / "job", "rb") as f:
            f.seek(5)
            self.assertEqual(f.read(1 << 20), block)


class Faults(bed.Bed):
    """A failure forced at each step: rolled back, everybody running, 0 lost."""
    nas_mb = 400

    def test_at_each_step_of_attach(self):
        bed.fill(self.disk, mb=5, files=60)
        self.writers(by_path=bed.sized(4, 2), held=bed.sized(4, 2), shared=bed.sized(2, 1))
        for point in ("attach.scanned", "attach.frozen", "attach.mounted", "attach.swapped",
                      "attach.rescanned", "attach.redirect"):
            with self.subTest(point):
                said = self.start("--wait", code=None, env={"LIVEMV_FAULTS": f"{point}=error:5@1"})
                self.assertEqual(said.returncode, 4, f"{point}: {said.text}\n{self.logs()}")
                self.assertIn(point, said.text)
                self.assertFalse([m for m in open("/proc/self/mountinfo")
                                  if "livemv" in m.split(" - ")[1] and str(self.work) in m])
                self.assertEqual(self.listed(), [])
        self.start("--wait")
        self.assert_nothing_lost(self.stop_writers())
        self.assert_moved()

    def test_at_each_step_of_cutover(self):
        bed.fill(self.disk, mb=5, files=60)
        self.writers(by_path=bed.sized(4, 2), held=bed.sized(4, 2), shared=bed.sized(2, 1))
        for n, point in enumerate(("cutover.frozen", "cutover.gated", "cutover.swapped",
                                   "cutover.mounted")):
            with self.subTest(point):
                target = self.target_volume(f"target{n}", 100)
                # Every attempt fails there, five of them, and then it is let be.
                self.start("--cutover=wait", "--wait", target=target,
                           env={"LIVEMV_FAULTS": f"{point}=error:5"})
                said = self.cut_over(expect=5)
                self.assertIn(point, said.text)
                self.assertEqual(self.status()["state"], "synced")
                self.livemv("abort", self.disk, "--wait")
                self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(target).st_dev)
        with self.subTest("before the freeze: no attempt that counts"):
            target = self.target_volume("target-flushed", 100)
            self.start("--wait", "--cutover=wait", target=target,
                       env={"LIVEMV_FAULTS": "cutover.flushed=error:5"})
            self.livemv("cutover", self.disk)
            bed.poll("the reason is told",
                     lambda: "cutover.flushed" in str(self.status().get("reason")))
            self.assertEqual(self.status()["state"], "synced")
            self.livemv("abort", self.disk, "--wait")
        self.start("--wait")
        self.assert_nothing_lost(self.stop_writers())
        self.assert_moved()

    def test_once_at_each_step_of_abort(self):
        """Also after the source was made the truth: what is written until the
        next attempt is the source's alone."""
        bed.fill(self.disk, mb=5, files=60)
        self.writers(by_path=bed.sized(4, 2), held=bed.sized(4, 2), shared=bed.sized(2, 1))
        # Walks to what it holds: after a first attempt the kernel has dropped
        # that name, and calls the file deleted.
        holder = self.spawn("sh", "-c", "exec 3<>held; while :; do test -e held; sleep 0.01; done",
                            cwd=self.disk)
        bed.poll("the file is held", lambda: os.path.exists(f"/proc/{holder.pid}/fd/3"))
        # In the worker, which lives on: the next attempt of a re-anchorer gets past.
        for n, point in enumerate(("gate.drain", "commit.source", "commit.source_done")):
            with self.subTest(point):
                target = self.target_volume(f"target{n}", 100)
                self.start("--cutover=wait", "--wait", target=target,
                           env={"LIVEMV_FAULTS": f"{point}=error:5@1"})
                with open(self.disk / "grown", "ab") as f:
                    f.write(point.encode() * 1000)
                self.livemv("abort", self.disk, "--wait")
                self.assertEqual(self.listed(), [])
                self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(target).st_dev)
                self.assertEqual(os.stat(f"/proc/{holder.pid}/fd/3").st_dev,
                                 os.stat(self.disk).st_dev)
        self.assert_nothing_lost(self.stop_writers())


class Stragglers(bed.Bed):
    def test_a_traced_holder_makes_cutover_wait_until_it_is_free(self):
        bed.fill(self.disk, mb=5, files=30)
        self.writers(by_path=2, held=2)
        holder = self.spawn("sh", "-c", "exec 3>>held.txt; while :; do echo line >&3; sleep 0.05; done",
                            cwd=self.disk)
        self.start("--cutover=wait", "--wait")
        strace = self.spawn("strace", "-o", "/dev/null", "-p", str(holder.pid),
                            stderr=subprocess.DEVNULL)
        tracer = lambda: int(next(l for l in open(f"/proc/{holder.pid}/status")
                                  if l.startswith("TracerPid")).split()[1])
        bed.poll("strace attached", tracer)
        waiting = self.spawn(bed.LIVEMV, "cutover", self.disk, "--wait",
                             stdout=subprocess.DEVNULL)
        bed.poll("the straggler is named",
                 lambda: str(holder.pid) in str(self.status().get("reason")))
        self.assertEqual(self.status()["state"], "synced")
        self.assertIsNone(waiting.poll())
        strace.send_signal(signal.SIGINT)
        strace.wait(timeout=10)
        self.assertEqual(waiting.wait(timeout=30), 0)
        self.assertEqual(self.status()["state"], "moved")
        holder.kill()
        self.assert_nothing_lost(self.stop_writers())

    def test_auto_goes_on_by_itself_when_the_straggler_has_left(self):
        bed.fill(self.disk, mb=bed.sized(40, 20), files=100)
        self.writers(by_path=2, held=2)
        (self.disk / "mapped").write_bytes(bytes(8192))
        self.start("--cutover=wait", "--wait")
        code = ("import mmap, sys, time\n"
                "f = open('mapped', 'r+b'); m = mmap.mmap(f.fileno(), 8192)\n"
                "print('mapped', flush=True)\n"
                "sys.stdin.read(); m[0:5] = b'hello'; m.flush()\n")
        holder = self.spawn("python3", "-c", code, cwd=self.disk, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.livemv("cutover", self.disk)  # not waited for
        bed.poll("the straggler is named",
                 lambda: str(holder.pid) in str(self.status().get("reason")))
        holder.stdin.close()
        self.assertEqual(holder.wait(timeout=20), 0)
        self.wait_state("moved")
        self.assertEqual((self.nas / "mapped").read_bytes()[:5], b"hello")
        self.assert_nothing_lost(self.stop_writers())

    def test_an_accepted_straggler_works_on_and_its_data_is_on_the_target(self):
        bed.fill(self.disk, mb=5, files=30)
        self.writers(by_path=2, held=2)
        (self.disk / "mapped").write_bytes(bytes(4096))
        self.start("--cutover=wait", "--wait")
        code = ("import mmap, os, sys\n"
                "f = open('mapped', 'r+b'); m = mmap.mmap(f.fileno(), 4096)\n"
                "g = open('straggler.log', 'ab', buffering=0)\n"
                "print('ready', flush=True)\n"
                "for line in sys.stdin:\n"
                "    m[0:4] = b'late'; m.flush()\n"
                "    g.write(line.encode()); os.fsync(g.fileno())\n"
                "    print('done', flush=True)\n")
        holder = self.spawn("python3", "-c", code, cwd=self.disk, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.livemv("cutover", self.disk)
        bed.poll("the straggler is named",
                 lambda: str(holder.pid) in str(self.status().get("reason")))
        self.livemv("cutover", self.disk, f"--accept={holder.pid}")
        self.wait_state("draining", "moved")
        self.assert_moved()
        holder.stdin.write(b"after the move\n")
        holder.stdin.flush()
        self.assertEqual(holder.stdout.readline(), b"done\n")
        self.assertEqual((self.nas / "straggler.log").read_bytes(), b"after the move\n")
        self.assertEqual((self.nas / "mapped").read_bytes()[:4], b"late")
        self.assertEqual(self.status()["state"], "draining")
        holder.stdin.close()
        holder.wait(timeout=20)
        self.wait_state("moved")
        self.assert_nothing_lost(self.stop_writers())


class FullDisk(bed.Bed):
    disk_mb = 120

    def test_a_full_source_is_relieved_at_once(self):
        """The motive: the disk is full, appends fail, and the move cures it."""
        bed.fill(self.disk, mb=10, files=60)
        log = self.work / "acknowledged"
        code = (
            "import os, sys, time\n"
            "n = ok = 0\n"
            "ack = open(sys.argv[2], 'a', buffering=1)\n"
            "f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)\n"
            "while not os.path.exists(sys.argv[3]):\n"
            "    line = b'%s %09d %s\\n' % (sys.argv[1].encode(), n, b'z' * 3000)\n"
            "    try:\n"
            "        w = os.write(f, line)\n"
            "        if w == len(line): ack.write('%d\\n' % n)\n"
            "    except OSError as e:\n"
            "        ack.write('error %d\\n' % e.errno)\n"
            "    n += 1; time.sleep(0.01)\n")
        stop = self.work / "stop-writing"
        writers = []
        os.chmod(self.work, 0o755)
        for i in range(5):
            ack = self.work / f"ack{i}"
            ack.touch()
            os.chmod(ack, 0o666)
            writers.append(self.spawn("python3", "-c", code, f"w{i}", ack, stop, cwd=self.disk))
        shell = self.spawn("sh", "-c", "while :; do date >> date.log; sleep 0.1; done",
                           cwd=self.disk, stderr=subprocess.DEVNULL)
        with open(self.disk / "ballast", "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(1 << 20))
            except OSError:
                pass
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass
        bed.poll("writers meet ENOSPC", lambda: all(
            "error 28" in (self.work / f"ack{i}").read_text() for i in range(5)), 60)
        self.start()
        marks = [len((self.work / f"ack{i}").read_text().splitlines()) for i in range(5)]
        (self.disk / "a new file").write_bytes(b"n" * 100_000)
        bed.poll("appends succeed again", lambda: all(
            len((self.work / f"ack{i}").read_text().splitlines()) > marks[i] + 20
            for i in range(5)), 30)
        for i in range(5):
            after = (self.work / f"ack{i}").read_text().splitlines()[marks[i]:]
            self.assertFalse([l for l in after if l.startswith("error")], after[:30])
        self.wait_state("moved", timeout=90)
        stop.touch()
        for w in writers:
            self.assertEqual(w.wait(timeout=20), 0)
        shell.kill()
        self.assertEqual((self.nas / "a new file").read_bytes(), b"n" * 100_000)
        for i in range(5):
            acked = [l for l in (self.work / f"ack{i}").read_text().splitlines()
                     if not l.startswith("error")]
            # A short write that met the end of the disk leaves part of a line.
            whole = re.findall(rb"w%d (\d{9}) z{3000}\n" % i,
                               (self.nas / f"w{i}").read_bytes())
            self.assertEqual(len(whole), len(set(whole)))
            missing = {b"%09d" % int(a) for a in acked} - set(whole)
            self.assertFalse(missing, f"writer {i}: {len(missing)} acknowledged lines lost")


if __name__ == "__main__":
    unittest.main(verbosity=2)
