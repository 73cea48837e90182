"""What is typed, what comes back: exit codes, refusals, wrong input."""
import json
import os
import signal
import subprocess
import time
import unittest

import bed


class Words(bed.Bed):
    disk_mb = 100
    nas_mb = 100

    def test_a_command_line_that_cannot_be_understood_is_64(self):
        for args in ([], ["strat"], ["start"], ["start", self.disk], ["plan", "--jsno"],
                     ["start", self.disk, self.nas, "--cutover=never"],
                     ["start", self.disk, self.nas, "--max-pause=soon"],
                     ["cutover"], ["status", "--frob"]):
            with self.subTest(args):
                self.livemv(*args, code=64)
        self.assertIn("start", self.livemv("strat", code=64).text)
        self.assertIn("plan", self.livemv("--help").text)
        self.assertRegex(self.livemv("--version").text, r"\d+\.\d+")

    def test_places_that_do_not_exist_or_do_not_suit_are_3(self):
        inside = self.disk / "inside"
        inside.mkdir()
        file = self.disk / "file"
        file.write_text("x")
        full = self.work / "full"
        for verb in ("plan", "start"):
            for source, target in ((self.work / "none", self.nas), (self.disk, self.work / "none"),
                                   (file, self.nas), (self.disk, file), (self.disk, inside),
                                   ("/", self.nas), ("/usr", self.nas), (self.disk, self.disk),
                                   ("/proc", self.nas), (self.disk, "host.invalid:/export")):
                with self.subTest(f"{verb} {source} {target}"):
                    said = self.livemv(verb, source, target, *(
                        [f"--state-dir={self.state}"] if verb == "start" else []), code=3)
                    self.assertTrue(said.text.strip())
        self.assertFalse(full.exists())
        (self.nas / "something").write_text("here")
        said = self.start(code=3)
        self.assertIn("empty", said.text)
        self.assertEqual((self.nas / "something").read_text(), "here")
        self.assertEqual(os.listdir(self.state), [])

    def test_a_mount_below_the_directory_is_refused(self):
        below = self.disk / "sub"
        below.mkdir()
        bed.run("mount", "-t", "tmpfs", "none", below)
        said = self.start(code=3)
        self.assertIn(str(below), said.text)

    def test_a_plan_changes_nothing_and_names_holders(self):
        bed.fill(self.disk, mb=5, files=50)
        before, nas = bed.tree(self.disk), bed.tree(self.nas)
        holder = self.spawn("sleep", "100", cwd=self.disk)
        bed.poll("cwd", lambda: os.readlink(f"/proc/{holder.pid}/cwd") == str(self.disk))
        p = self.livemv("plan", self.disk, self.nas, "--json", code=None)
        self.assertIn(p.returncode, (0, 2), p.text)
        plan = json.loads(p.text)
        self.assertIn(holder.pid, [h["pid"] for h in plan["holders"]])
        self.assertEqual(bed.difference(before, bed.tree(self.disk)), "")
        self.assertEqual(bed.difference(nas, bed.tree(self.nas)), "")
        text = self.livemv("plan", self.disk, self.nas, code=None).text
        self.assertIn(str(holder.pid), text)
        self.assertIn("movable", text)

    def test_holders_of_what_is_not_built_yet_block(self):
        leased = self.disk / "leased"
        leased.write_text("x")
        code = ("import fcntl, sys\nf = open(sys.argv[1])\n"
                "fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)\n"
                "print('leased', flush=True)\nsys.stdin.read()\n")
        holder = self.spawn("python3", "-c", code, leased, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
        holder.stdout.readline()
        said = self.start(code=3)
        self.assertIn(str(holder.pid), said.text)
        self.assertIn("lease", said.text)
        holder.stdin.close()
        holder.wait()
        self.start("--wait")

    def test_a_second_start_names_the_running_one(self):
        (self.disk / "child").mkdir()
        bed.fill(self.disk / "child", mb=5, files=50)
        self.start("--cutover=wait", "--wait")
        running = self.status()["id"]
        other = self.volume("other", 100)
        for source, target in ((self.disk, other), (self.disk / "child", other),
                               (self.work, other), (self.disk, self.nas)):
            with self.subTest(f"{source} {target}"):
                said = self.start(source=source, target=target, code=3)
                if source != self.work:
                    self.assertIn(running, said.text)
        disk2 = self.volume("disk2", 100)
        said = self.start(source=disk2, target=self.nas, code=3)
        self.assertIn(running, said.text)
        self.livemv("abort", running, "--wait")

    def test_ctrl_c_while_waiting_leaves_the_migration_running(self):
        bed.fill(self.disk, mb=50, files=100)
        waiting = self.spawn(bed.LIVEMV, "start", self.disk, self.nas, bed.YES,
                             f"--state-dir={self.state}", "--cutover=wait", "--wait",
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wait_state("copying", "synced")
        waiting.send_signal(signal.SIGINT)
        out, _ = waiting.communicate(timeout=20)
        if waiting.returncode != 0:  # it may have been done already
            for verb in ("status", "abort"):
                self.assertIn(verb, out.decode())
        self.wait_state("synced")
        self.livemv("cutover", self.disk, "--wait")

    def test_verbs_on_nothing_and_at_the_wrong_time(self):
        self.assertIn("no migration", self.livemv("status", self.disk, code=3).text.lower())
        self.livemv("abort", "zzzzzz", code=3)
        self.start("--cutover=wait", "--wait")
        said = self.livemv("finish", self.disk, code=None)
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("synced", said.text)
        self.livemv("cutover", self.disk, "--wait")
        said = self.livemv("abort", self.disk, code=None)
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("moved", said.text)

    def test_not_root(self):
        os.chmod(self.work, 0o755)
        p = bed.run("setpriv", "--reuid=65534", "--clear-groups", bed.LIVEMV, "start", self.disk,
                    self.nas, check=False)
        self.assertEqual(p.returncode, 3, p.text)
        self.assertIn("root", p.text)

    def test_an_unusable_state_directory(self):
        small = self.volume("small", 4, mkfs=("mkfs.ext2", "-q", "-F"))
        with open(small / "ballast", "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(1024))
            except OSError:
                pass
        said = self.livemv("start", self.disk, self.nas, bed.YES, f"--state-dir={small}", code=3)
        self.assertIn(str(small), said.text)
        (self.work / "afile").write_text("")
        self.livemv("start", self.disk, self.nas, bed.YES, f"--state-dir={self.work}/afile",
                    code=3)
        self.assertEqual(self.listed(), [])

    def test_explain_names_each_tie(self):
        log = self.disk / "log"
        log.write_text("x" * 10)
        os.mkfifo(self.disk / "pipe")
        code = ("import fcntl, os, sys\nos.chdir(sys.argv[1])\n"
                "f = open('log', 'a'); fcntl.flock(f, fcntl.LOCK_EX)\n"
                "p = os.open('pipe', os.O_RDWR) if len(sys.argv) > 2 else 0\n"
                "print('ready', flush=True)\nsys.stdin.read()\n")
        def tie(*more):
            return self.spawn("python3", "-c", code, self.disk, *more, cwd="/",
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        tied = tie()
        tied.stdout.readline()
        stuck = tie("fifo")
        said = self.livemv("explain", tied.pid, self.disk).text
        for part in ("movable", "cwd", '"."', '"log"', "write, append, at 10, close on exec, flock for writing"):
            self.assertIn(part, said)
        # It waits for the lock of the first, so it has not opened the pipe.
        tied.stdin.close()
        tied.wait(timeout=20)
        stuck.stdout.readline()
        said = self.livemv("explain", stuck.pid, self.disk, "--json", code=3).text
        (tree,) = json.loads(said)
        self.assertEqual(tree["verdict"], "blocks")
        by_path = {a["path"]: a for a in tree["anchors"]}
        self.assertEqual(by_path["log"]["verdict"], "movable")
        self.assertEqual(by_path["pipe"]["reasons"][0]["code"], "fifo")
        plan = json.loads(self.livemv("plan", self.disk, self.nas, "--json", code=3).text)
        (holder,) = plan["holders"]
        self.assertEqual(holder["anchors"], tree["anchors"])
        stuck.stdin.close()
        stuck.wait(timeout=20)
        self.livemv("explain", stuck.pid, self.disk, code=64)
        self.assertIn("holds nothing",
                      self.livemv("explain", os.getpid(), self.disk).text)

    def test_inspect_and_the_journal(self):
        bed.fill(self.disk, mb=5, files=30)
        self.start("--cutover=wait", "--wait")
        with open(self.disk / "odd" / "(deleted)", "ab") as f:
            f.write(b"more")
        said = self.livemv("inspect", self.disk / "odd" / "(deleted)").text
        self.assertIn("local end", said)
        self.livemv("inspect", self.disk)
        id = self.status()["id"]
        dump = self.livemv("journal", "dump", id).text
        self.assertGreater(len(dump.splitlines()), 30)

    def test_status_has_the_documented_fields(self):
        bed.fill(self.disk, mb=5, files=30)
        self.start("--cutover=wait", "--wait")
        s = self.status()
        for key in ("id", "source", "target", "state", "reason", "verbs", "bytes", "files",
                    "holders", "pauses", "supervisor_pid", "worker_pid"):
            self.assertIn(key, s)
        self.assertEqual(s["source"], str(self.disk))
        for key in ("total", "copied", "remote"):
            self.assertIn(key, s["bytes"])
            self.assertIn(key, s["files"])
        self.assertIn("cutover", s["verbs"])
        os.kill(s["supervisor_pid"], 0)
        os.kill(s["worker_pid"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
