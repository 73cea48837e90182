"""One test for each way a live migration goes wrong that can be shown from
outside. tests/hazards/README.md lists all of them by number, and where those
are tested that need the simulator, a fake or a later version."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import bed  # noqa: E402
import kills  # noqa: E402


class Hazards(bed.Bed):
    def freeze(self, mount):
        """The target hangs from here on: writes wait, reads go on."""
        bed.run("fsfreeze", "-f", mount)
        self.addCleanup(lambda: subprocess.run(["fsfreeze", "-u", mount],
                                               stderr=subprocess.DEVNULL))

    def thaw(self, mount):
        bed.run("fsfreeze", "-u", mount)

    def test_h01_two_writers_at_attach_have_one_truth(self):
        """Processes that appear and open files all the time while attach runs:
        none of their bytes goes to the bare source after redirect began."""
        code = ("i=0; while [ ! -e '%s' ]; do i=$((i+1)); "
                "sh -c 'echo line '$i' >> short.log'; done; echo $i > '%s'")
        stop, count = self.work / "stop-short", self.work / "count"
        bed.fill(self.disk, mb=10, files=100)
        storm = [self.spawn("sh", "-c", code % (stop, f"{count}{n}"), cwd=self.disk)
                 for n in range(3)]
        self.writers(by_path=4, held=4, shared=2)
        self.start("--wait")
        stop.touch()
        for p in storm:
            self.assertEqual(p.wait(timeout=30), 0)
        written = sum(int((self.work / f"count{n}").read_text()) for n in range(3))
        lines = (self.disk / "short.log").read_text().splitlines()
        self.assertEqual(len(lines), written, self.logs())
        self.assert_nothing_lost(self.stop_writers())

    def test_h09_a_straggler_and_a_mover_see_each_other(self):
        (self.disk / "shared").write_bytes(b"0" * 4096)
        (self.disk / "map").write_bytes(bytes(4096))
        self.start("--cutover=wait", "--wait")
        code = ("import mmap, os, sys\n"
                "keep = mmap.mmap(os.open('map', os.O_RDWR), 4096)\n"
                "f = os.open('shared', os.O_RDWR)\nprint('ready', flush=True)\n"
                "for line in sys.stdin:\n"
                "    word = line.split()\n"
                "    if word[0] == 'read': print(os.pread(f, 8, 0).decode(),"
                " os.fstat(f).st_size, flush=True)\n"
                "    elif word[0] == 'write': os.pwrite(f, word[1].encode(), 0);"
                " print('ok', flush=True)\n"
                "    else: print(' '.join(sorted(os.listdir('.'))), flush=True)\n")
        s = self.spawn("python3", "-c", code, cwd=self.disk, stdin=subprocess.PIPE,
                       stdout=subprocess.PIPE)

        def ask(line):
            s.stdin.write(line.encode() + b"\n")
            s.stdin.flush()
            return s.stdout.readline().decode().strip()
        s.stdout.readline()
        self.assertEqual(ask("read"), "00000000 4096")
        self.livemv("cutover", self.disk, f"--accept={s.pid}")
        self.wait_state("draining")
        with open(self.disk / "shared", "r+b") as f:
            f.write(b"moved---")
            f.truncate(5000)
        os.rename(self.disk / "map", self.disk / "renamed")
        self.assertEqual(ask("read"), "moved--- 5000")
        self.assertIn("renamed", ask("list"))
        self.assertEqual(ask("write straggle"), "ok")
        self.assertEqual((self.disk / "shared").read_bytes()[:8], b"straggle")
        s.stdin.close()
        s.wait(timeout=20)
        self.wait_state("moved")

    def test_h09_a_straggler_is_served_by_a_successor_of_the_worker(self):
        """All names begin at the root, which nobody else has asked for then."""
        bed.fill(self.disk, mb=3, files=60)
        (self.disk / "sub").mkdir()
        (self.disk / "sub" / "old").write_bytes(b"old")
        self.start("--cutover=wait", "--wait")
        code = ("import mmap, os, sys\n"
                "open('map', 'wb').write(bytes(4096))\n"
                "keep = mmap.mmap(os.open('map', os.O_RDWR), 4096)\n"
                "print('ready', flush=True)\n"
                "for line in sys.stdin:\n"
                "    n = line.strip()\n"
                "    try:\n"
                "        assert open('sub/old').read() == 'old'\n"
                "        os.mkdir(n); open(n + '/f', 'w').write(n)\n"
                "        assert open(n + '/f').read() == n\n"
                "        print(' '.join(sorted(os.listdir('.'))), flush=True)\n"
                "    except Exception as e: print(repr(e), flush=True)\n")
        s = self.spawn("python3", "-c", code, cwd=self.disk, stdin=subprocess.PIPE,
                       stdout=subprocess.PIPE)
        s.stdout.readline()
        self.livemv("cutover", self.disk, f"--accept={s.pid}")
        self.wait_state("draining")
        for n in range(3):
            worker = bed.poll("a worker", lambda: self.status().get("worker_pid"))
            os.kill(worker, signal.SIGKILL)
            s.stdin.write(b"made%d\n" % n)
            s.stdin.flush()
            said = s.stdout.readline().decode().split()
            self.assertEqual(said, sorted(os.listdir(self.disk)), self.logs())
            self.assertIn(f"made{n}", said)
            self.assertNotIn(f".livemv-{self.status()['id']}", said)
            self.assertEqual((self.disk / f"made{n}" / "f").read_text(), f"made{n}")
        s.stdin.close()
        s.wait(timeout=20)
        self.wait_state("moved")

    def test_h10_a_rename_over_a_linked_file_corrupts_nobody(self):
        """The copier must not write one file's bytes into another's object."""
        for n in range(200):
            (self.disk / f"a{n}").write_bytes(b"A%d" % n * 30000)
            (self.disk / f"b{n}").write_bytes(b"B%d" % n * 50000)
            os.link(self.disk / f"b{n}", self.disk / f"c{n}")
        self.start("--cutover=wait")
        for n in range(200):
            os.rename(self.disk / f"a{n}", self.disk / f"b{n}")
        self.wait_state("synced")
        self.livemv("cutover", self.disk, "--wait")
        for n in range(200):
            self.assertEqual((self.disk / f"b{n}").read_bytes(), b"A%d" % n * 30000)
            self.assertEqual((self.disk / f"c{n}").read_bytes(), b"B%d" % n * 50000)
            self.assertEqual(os.stat(self.disk / f"c{n}").st_nlink, 1)

    def test_h11_a_subtree_that_moves_under_the_walker_is_copied(self):
        for d in range(30):
            os.makedirs(self.disk / f"z{d}" / "deep" / "er")
            for n in range(20):
                (self.disk / f"z{d}" / "deep" / "er" / f"f{n}").write_bytes(os.urandom(3000))
        before = bed.tree(self.disk)
        self.start("--cutover=wait")
        for turn in range(6):
            for d in range(30):
                a, b = ("z", "a") if turn % 2 == 0 else ("a", "z")
                os.rename(self.disk / f"{a}{d}", self.disk / f"{b}{d}")
        self.livemv("cutover", self.disk, "--wait")
        self.assertEqual(self.wait_state("moved")["state"], "moved")
        after = bed.tree(self.disk)
        self.assertEqual(bed.difference(before, after), "")

    def test_h12_attributes_have_one_owner(self):
        names = [f"f{n}" for n in range(300)]
        for n in names:
            (self.disk / n).write_bytes(os.urandom(20000))
        self.start("--cutover=wait")
        for i, n in enumerate(names):
            os.chmod(self.disk / n, 0o600)
            os.utime(self.disk / n, ns=(10 ** 18 + i, 10 ** 18 + i))
        self.livemv("cutover", self.disk, "--wait")
        self.wait_state("moved")
        for i, n in enumerate(names):
            st = os.stat(self.disk / n)
            self.assertEqual((st.st_mode & 0o7777, st.st_mtime_ns), (0o600, 10 ** 18 + i), n)

    def test_h14_h16_a_hung_target_stops_neither_reads_nor_status_nor_the_worker(self):
        bed.fill(self.disk, mb=10, files=60)
        (self.disk / "local").write_bytes(b"L" * 100_000)
        self.start("--cutover=wait", "--wait")
        worker = self.status()["worker_pid"]
        self.freeze(self.nas)
        began = time.monotonic()
        rounds = 0
        while time.monotonic() - began < 13:
            t = time.monotonic()
            self.assertEqual((self.disk / "local").read_bytes()[:3], b"LLL")
            os.listdir(self.disk)
            self.assertLess(time.monotonic() - t, 2.0, "a local read waited for the target")
            if rounds == 2:  # an overwrite of local bytes does not need the target
                with open(self.disk / "local", "r+b") as f:
                    f.seek(50_000)
                    f.write(b"over")
            t = time.monotonic()
            self.assertIn(self.status()["state"], ("synced", "copying"))
            self.assertLess(time.monotonic() - t, 2.0, "status waited for the target")
            rounds += 1
            time.sleep(0.3)
        # The overwritten chunk is to be copied again, so the cutover has to wait.
        self.livemv("cutover", self.disk)
        self.assertEqual(self.status()["worker_pid"], worker, self.logs())
        self.thaw(self.nas)
        self.wait_state("moved")
        data = (self.disk / "local").read_bytes()
        self.assertEqual(data[50_000:50_004], b"over")
        self.assertEqual(len(data), 100_000)

    def test_h17_other_doors_to_the_tree_are_found(self):
        sub = self.disk / "tree"
        (sub / "inner").mkdir(parents=True)
        (sub / "file").write_text("x")
        with self.subTest("bind mount of a part"):
            door = self.work / "door"
            door.mkdir()
            bed.run("mount", "--bind", sub / "inner", door)
            said = self.start(source=sub, code=3)
            self.assertIn(str(door), said.text)
            bed.run("umount", door)
        with self.subTest("a hard link that leaves the tree"):
            os.link(sub / "file", self.disk / "outside")
            said = self.start(source=sub, code=None)
            self.assertIn(said.returncode, (3,), said.text)
            self.assertIn("link", said.text)
            os.unlink(self.disk / "outside")
        with self.subTest("a loop device on a file of the tree"):
            image = sub / "image"
            with open(image, "wb") as f:
                f.truncate(1 << 20)
            loop = bed.run("losetup", "--show", "-f", image).text.strip()
            try:
                said = self.start(source=sub, code=3)
                self.assertIn("image", said.text)
            finally:
                bed.run("losetup", "-d", loop)
            os.unlink(image)
        self.start("--wait", source=sub)

    def test_h20_state_inside_the_tree_is_refused(self):
        inside = self.disk / "state"
        inside.mkdir()
        said = self.livemv("start", self.disk, self.nas, f"--state-dir={inside}", code=3)
        self.assertIn("state", said.text)
        self.assertEqual(os.listdir(inside), [])

    def test_h27_a_reused_inode_number_is_another_file(self):
        """ext4 hands a freed inode number out again at once."""
        self.start("--cutover=wait", "--wait")
        want = {}
        for turn in range(200):
            path = self.disk / f"t{turn % 7}"
            path.unlink(missing_ok=True)
            data = b"turn %d " % turn * (turn + 1)
            path.write_bytes(data)
            want[path.name] = data
            self.assertEqual(path.read_bytes(), data)
        self.livemv("cutover", self.disk, "--wait")
        self.wait_state("moved")
        for name, data in want.items():
            self.assertEqual((self.nas / name).read_bytes(), data, name)

    def test_h38_a_reused_device_number_is_another_filesystem(self):
        """The kernel hands the number of an overlay that has ended to the next
        one: a cutover that looks for those left on its own then saw the
        descriptors of another migration's attach, and put them elsewhere."""
        disk2, nas2 = self.volume("disk2", 200), self.volume("nas2", 200)
        for n, disk in enumerate((self.disk, disk2)):
            bed.fill(disk, mb=5, files=50, seed=n)
        first, second = bed.tree(self.disk), bed.tree(disk2)

        def overlay_dev(source):
            state = self.state / self.status(source)["id"] / "supervisor.json"
            return json.loads(state.read_text())["settings"]["overlay_dev"]

        # The overlay of the first ends, and its worker notices late.
        self.start("--cutover=wait", "--wait", env={"LIVEMV_FAULTS":
                   "cutover.rest=delay:1500;worker.overlay_gone=delay:12000"})
        ended = overlay_dev(self.disk)
        self.livemv("cutover", self.disk)
        bed.poll("the end of the overlay", lambda: os.stat(self.disk).st_dev ==
                 os.stat(self.nas).st_dev)
        # The re-anchorer of the first looks three times from here on, while
        # that of the second has its overlay's mount open and attaches it.
        self.start("--cutover=wait", source=disk2, target=nas2,
                   env={"LIVEMV_FAULTS": "attach.scanned=delay:4000"}, timeout=60)
        self.assertEqual(overlay_dev(disk2), ended, "the number was not used again")
        self.wait_state("moved")
        self.assertEqual(os.stat(self.disk).st_dev, os.stat(self.nas).st_dev)
        self.assertEqual(bed.difference(first, bed.tree(self.disk)), "", self.logs())
        self.assertEqual(bed.difference(second, bed.tree(disk2)), "", self.logs())
        self.wait_state("synced", of=disk2)
        self.livemv("cutover", disk2, "--wait")
        self.assertEqual(os.stat(disk2).st_dev, os.stat(nas2).st_dev)
        self.assertEqual(bed.difference(second, bed.tree(disk2)), "", self.logs())

    def test_h40_names_that_move_while_the_overlay_is_prepared(self):
        """What is opened ahead of the freeze is opened by a name that may be
        another by then, or closed. The overlay would keep the old one: a
        descriptor shows it, and a lookup of the new one of a directory is
        refused with ESTALE (fs/dcache.c, __d_unalias) whenever another rename
        runs beside it."""
        for name in ("x", "y", "p", "q"):
            (self.disk / name).mkdir()
        for n in range(60):
            (self.disk / "x" / f"d{n}").mkdir()
            (self.disk / "x" / f"d{n}" / "f").write_text(f"{n}")
        script = self.work / "mover.py"
        script.write_text(
            "import json, os, sys, time\n"
            "fds = [os.open(f'x/d{n}/f', os.O_RDWR) for n in range(60)]\n"
            "at, bare, n = ['x'] * 60, os.stat(sys.argv[1]).st_dev, 0\n"
            "print('ready', flush=True)\n"
            "while os.stat(sys.argv[1]).st_dev == bare:\n"
            "    to = 'y' if at[n] == 'x' else 'x'\n"
            "    os.rename(f'{at[n]}/d{n}', f'{to}/d{n}')\n"
            "    at[n] = to\n"
            "    if n >= 30:\n"
            "        if fds[n] is None:\n"
            "            fds[n] = os.open(f'{at[n]}/d{n}/f', os.O_RDWR)\n"
            "        else:\n"
            "            os.close(fds[n])\n"
            "            fds[n] = None\n"
            "    n = (n + 7) % 60\n"
            "    time.sleep(0.001)\n"
            "renamers = []\n"
            "for k in range(3):\n"
            "    pid = os.fork()\n"
            "    if pid == 0:\n"
            "        os.mkdir(f'p/{k}')\n"
            "        while not os.path.exists(sys.argv[2]):\n"
            "            os.rename(f'p/{k}', f'q/{k}')\n"
            "            os.rename(f'q/{k}', f'p/{k}')\n"
            "        os._exit(0)\n"
            "    renamers.append(pid)\n"
            "errors, shown = [], []\n"
            "time.sleep(0.2)\n"
            "for n in range(60):\n"
            "    path = f'{sys.argv[1]}/{at[n]}/d{n}/f'\n"
            "    link = fds[n] and os.readlink(f'/proc/self/fd/{fds[n]}')\n"
            "    if link and link != path:\n"
            "        shown.append((link, path))\n"
            "    try:\n"
            "        if open(path).read() != str(n):\n"
            "            errors.append(f'{path}: other content')\n"
            "    except OSError as e:\n"
            "        errors.append(str(e))\n"
            "open(sys.argv[2], 'w').close()\n"
            "for pid in renamers:\n"
            "    os.waitpid(pid, 0)\n"
            "print(json.dumps([errors, shown]), flush=True)\n")
        mover = self.spawn(sys.executable, script, self.disk, self.work / "stop-renaming",
                           cwd=self.disk, stdout=subprocess.PIPE)
        mover.stdout.readline()
        self.start("--cutover=wait", "--wait", env={"LIVEMV_FAULTS": "attach.opened=delay:500"})
        errors, shown = json.loads(mover.communicate(timeout=60)[0])
        self.assertEqual((errors, shown), ([], []))

    def test_h13_a_placeholder_is_told_from_an_empty_file(self):
        (self.disk / "empty").write_bytes(b"")
        self.start("--cutover=wait", "--wait")
        (self.disk / "grown").write_bytes(b"g" * 10_000)
        self.assertEqual((self.disk / "grown").stat().st_size, 10_000)
        self.assertNotIn("trusted.livemv", os.listxattr(self.disk / "grown"))
        self.livemv("abort", self.disk, "--wait")
        self.assertEqual((self.disk / "empty").stat().st_size, 0)
        self.assertEqual((self.disk / "grown").read_bytes(), b"g" * 10_000)
        self.assertEqual(os.listxattr(self.disk / "grown"), [])

    def test_h23_a_killed_worker_costs_a_stall_only(self):
        """The short form of tests/kills."""
        stalls, totals = kills.kill_workers(self, 50, seed=23, churners=2)
        print(f"{kills.table(stalls)}\n{totals}")

    def test_h29_close_in_the_freeze_does_not_wait_for_a_hung_target(self):
        """Cutover cannot succeed while the target hangs; it must give up in
        time, and every holder must go on."""
        bed.fill(self.disk, mb=5, files=20)
        (self.disk / "below").write_bytes(bytes(1 << 20))
        code = ("import os, sys, time\nf = os.open('below', os.O_RDWR)\nlong = 0\n"
                "print('ready', flush=True)\n"
                "while not os.path.exists(sys.argv[1]):\n"
                "    t = time.monotonic(); os.pread(f, 100, 5000)\n"
                "    long = max(long, time.monotonic() - t); time.sleep(0.005)\n"
                "print(long)\n")
        self.start("--cutover=wait", "--wait")
        stop = self.work / "stop-reading"
        reader = self.spawn("python3", "-c", code, stop, cwd=self.disk, stdout=subprocess.PIPE)
        reader.stdout.readline()
        self.freeze(self.nas)
        said = self.livemv("cutover", self.disk, "--wait", code=None, timeout=100)
        self.assertIn(said.returncode, (5, 8), said.text)
        self.thaw(self.nas)
        stop.touch()
        self.assertLess(float(reader.stdout.read()), 1.0)
        self.wait_state("synced")
        self.livemv("cutover", self.disk, "--wait")

    def hung_device(self):
        """The target's device stops: what is written goes to the page cache, a
        sync of it waits and cannot be killed, as on NFS when the server is gone."""
        below = self.volume("below", 500)
        image = below / "image"
        bed.run("truncate", "-s", "300M", image)
        bed.run("mkfs.ext4", "-q", "-F", image)
        loop = bed.run("losetup", "--show", "-f", image).text.strip()
        self.loops.insert(0, loop)
        self.nas = self.work / "nas-above"
        self.nas.mkdir()
        bed.run("mount", loop, self.nas)
        return below

    @staticmethod
    def waiting_calls(pid):
        """System calls in which tasks of a process wait and cannot be killed."""
        calls = []
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
            try:
                if (task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "D":
                    calls.append(int((task / "syscall").read_text().split()[0]))
            except (OSError, ValueError):
                continue
        return calls

    @staticmethod
    def lives(pid):
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            tasks = len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            return False
        return state not in "ZX" or tasks > 1

    def test_h30_a_dead_worker_that_cannot_end_has_a_successor(self):
        below = self.hung_device()
        bed.fill(self.disk, mb=10, files=60)
        for i in range(200):
            (self.disk / f"local{i}").write_bytes(b"%d" % i * 3000)
        self.start("--cutover=wait", "--wait")
        # Bytes of the target alone, whose sync waits for it.
        sync = self.spawn(sys.executable, "-c",
                          "import os, sys\n"
                          "f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
                          "print('open', flush=True)\nsys.stdin.readline()\n"
                          "os.write(f, b'acknowledged')\n"
                          "print('written', flush=True)\nos.fsync(f)\nprint('synced')\n",
                          self.disk / "local0", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(sync.stdout.readline(), b"open\n")
        # First, or a barrier may bring them there before it hangs.
        self.freeze(below)
        sync.stdin.write(b"\n")
        sync.stdin.close()
        sync.stdin = None
        self.assertEqual(sync.stdout.readline(), b"written\n")
        dead = []
        for i in range(3):
            worker = bed.poll("a worker", lambda: self.status().get("worker_pid"))
            bed.poll("a worker that waits for the target", lambda: self.waiting_calls(worker), 20)
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
            for n in range(40 * i + 1, 40 * i + 30):
                self.assertEqual((self.disk / f"local{n}").read_bytes(), b"%d" % n * 3000)
            print(f"local files were read {time.monotonic() - killed:.2f} s after the kill")
            self.assertLess(time.monotonic() - killed, 5)
            dead.append(worker)
            for pid in dead:
                self.assertTrue(self.lives(pid), "it is not the dead worker that hung")
        self.assertIsNone(sync.poll())
        os.truncate(self.disk / "local151", 5)  # owed to the target until it answers
        self.assertEqual((self.disk / "local151").read_bytes(), b"15115")
        with open(self.disk / "local150", "r+b") as f:
            f.write(b"over")
        self.thaw(below)
        self.assertEqual(sync.communicate(timeout=30)[0], b"synced\n")
        for pid in dead:
            bed.poll("the dead workers end", lambda: not self.lives(pid))
        (self.disk / "after").write_bytes(b"a" * 3_000_000)
        self.wait_state("synced", timeout=90)
        self.livemv("cutover", self.disk, "--wait")
        self.wait_state("moved")
        self.assertEqual((self.disk / "local0").read_bytes(), b"0" * 3000 + b"acknowledged")
        self.assertEqual((self.disk / "local150").read_bytes(), b"over" + (b"150" * 3000)[4:])
        self.assertEqual((self.disk / "local151").read_bytes(), b"15115")
        self.assertEqual((self.disk / "after").read_bytes(), b"a" * 3_000_000)

    def test_h30_a_dead_worker_in_the_middle_of_a_write_is_waited_for(self):
        """The write of a dead worker may still change the target: no successor
        before it is over, and status says so."""
        bed.fill(self.disk, mb=5, files=20)
        self.start("--cutover=wait", "--wait")
        worker = self.status()["worker_pid"]
        self.freeze(self.nas)
        write = self.spawn(sys.executable, "-c", "import sys\n"
                           "open(sys.argv[1], 'wb').write(b'new' * 50000)\n", self.disk / "new")
        bed.poll("a worker that waits for the target", lambda: self.waiting_calls(worker), 20)
        os.kill(worker, signal.SIGKILL)
        bed.poll("status says it", lambda: "may still change" in self.status()["reason"], 10)
        self.assertIsNone(write.poll())
        self.thaw(self.nas)
        self.assertEqual(write.wait(timeout=30), 0)
        self.assertNotIn("may still change", self.status()["reason"])
        self.livemv("cutover", self.disk, "--wait")
        self.wait_state("moved")
        self.assertEqual((self.disk / "new").read_bytes(), b"new" * 50000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
