"""Moves to a kernel NFS server: what it holds, and a link that is cut on the way.

Environment: LIVEMV_CUT, for how many seconds (10).
"""
import ctypes
import errno
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
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
            said = self.livemv("cutover", self.disk, "--wait", timeout=100, code=None)
            # 8: the server was slow to answer, and it is tried again by itself.
            self.assertIn(said.returncode, (0, 8), said.text + self.logs())
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
        start = self.spawn(bed.LIVEMV, "start", self.disk, *self.target(self.nas), bed.YES,
                           f"--state-dir={self.state}", "--cutover=wait",
                           "--max-pause=10s",
                           env=dict(os.environ, LIVEMV_FAULTS="attach.scanned=delay:3000@1"))
        bed.poll("attaching", lambda: self.listed() and self.status()["state"] == "attaching")
        self.cut()
        self.assertEqual(start.wait(timeout=60), 0)
        self.wait_state("synced", timeout=90)
        self.moved_whole()

    def test_while_cutting_over(self):
        """The cutover gives up in time, or waits in synced for its next attempt."""
        self.meanwhile = ("copying", "synced", "cutting_over", "moved", "draining")
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
        self.meanwhile = ("copying", "synced", "aborting", "aborted")
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


class Dead(bed.Bed):
    """A worker dies while the server is gone: its exit waits for the server."""

    def test_its_successor_serves_what_is_local(self):
        self.addCleanup(server, "heal")
        bed.fill(self.disk, mb=10, files=100)
        for i in range(60):
            (self.disk / f"local{i}").write_bytes(b"%d" % i * 3000)
        self.writers(by_path=2, held=2, shared=1)
        self.start("--cutover=wait", "--wait")
        server("cut")
        # Dirty in the worker's descriptors, and a sync that waits.
        sync = self.spawn(sys.executable, "-c",
                          "import os, sys\n"
                          "f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
                          "os.write(f, b'acknowledged')\nos.fsync(f)\nprint('synced')\n",
                          self.disk / "local0", stdout=subprocess.PIPE)
        time.sleep(2)
        dead = []
        for i in range(2):
            worker = bed.poll("a worker", lambda: self.status().get("worker_pid"))
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
            for n in range(20 * i + 1, 20 * i + 20):
                self.assertEqual((self.disk / f"local{n}").read_bytes(), b"%d" % n * 3000)
            print(f"local files were read {time.monotonic() - killed:.2f} s after the kill",
                  flush=True)
            self.assertLess(time.monotonic() - killed, 10)
            tasks = []
            for task in pathlib.Path(f"/proc/{worker}/task").glob("*"):
                stat = (task / "stat").read_text().rsplit(")", 1)[1].split()
                tasks.append((stat[0], "exits" if int(stat[6]) & 4 else
                              (task / "syscall").read_text().split()[0]))
            print(f"the dead worker: {tasks}", flush=True)
            dead.append(worker)
        self.assertTrue(any(os.path.exists(f"/proc/{pid}") for pid in dead),
                        "no dead worker hung: nothing was shown")
        self.assertIsNone(sync.poll())
        os.truncate(self.disk / "local50", 5)  # owed to the server
        self.assertEqual((self.disk / "local50").read_bytes(), b"50505")
        server("heal")
        self.assertEqual(sync.communicate(timeout=60)[0], b"synced\n")
        for pid in dead:
            bed.poll("the dead workers end", lambda: not os.path.exists(f"/proc/{pid}"), 60)
        (self.disk / "after").write_bytes(b"a" * 1_000_000)
        self.wait_state("synced", timeout=90)
        self.livemv("cutover", self.disk, "--wait", timeout=100, code=None)
        self.wait_state("moved")
        self.assert_moved()
        totals = self.stop_writers()
        print(totals, flush=True)
        self.assert_nothing_lost(totals)
        self.assertEqual((self.disk / "local0").read_bytes(), b"0" * 3000 + b"acknowledged")
        self.assertEqual((self.disk / "local50").read_bytes(), b"50505")
        self.assertEqual((self.disk / "after").read_bytes(), b"a" * 1_000_000)
        subprocess.run(["sync", "-f", self.disk], check=True)
        self.assertEqual(bed.difference(bed.tree(self.disk), bed.tree(self.nas)), "")


def until_told(path, error, sync, user=None, mb=30):
    """Writes mb MiB to path as a user until somebody says error; who did, None
    if nobody."""
    block = b"f" * (1 << 20)
    if user is not None:
        os.seteuid(user)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            try:
                for _ in range(mb):
                    done = 0
                    while done < len(block):
                        done += os.write(fd, block[done:])
                if sync:
                    os.fsync(fd)
            finally:
                told = sys.exc_info()[1]
                try:
                    os.close(fd)
                except OSError:
                    if told is None:
                        raise
        except OSError as e:
            if e.errno != error:
                raise
            return "write or fsync" if told else "close"
        return None
    finally:
        os.seteuid(0)


class Full(bed.Bed):
    """The server has no room: who writes is told, nothing else is lost."""

    def only(self, before):
        """The tree as it is, without what the test made."""
        found, links = bed.tree(self.disk)
        return {n: v for n, v in found.items() if n in before[0]}, links

    def silly_names(self):
        return [n for n in bed.tree(self.nas)[0] if os.path.basename(n).startswith(b".nfs")]

    def fill_the_export(self, room_mb):
        """All but room_mb and a little, in ever smaller pieces."""
        self.ballast = pathlib.Path(tempfile.mkdtemp(prefix="ballast.", dir="/export"))
        self.addCleanup(self.empty_the_export)
        (self.ballast / "room").write_bytes(bytes(room_mb << 20))
        mb = 512
        for i in range(100):
            if mb == 0:
                break
            done = bed.run("fallocate", "-l", f"{mb}M", self.ballast / str(i), check=False)
            if done.returncode != 0:
                (self.ballast / str(i)).unlink(missing_ok=True)
                mb //= 2
        (self.ballast / "room").unlink()

    def empty_the_export(self):
        shutil.rmtree(self.ballast, ignore_errors=True)

    def limit(self, user, mb):
        """So much may the user's files on the server take; 0: any amount."""
        block = struct.pack("<8QI", mb << 10, mb << 10, 0, 0, 0, 0, 0, 0, 1)
        libc = ctypes.CDLL(None, use_errno=True)
        set_user_quota = 0x800008 << 8
        if libc.quotactl(set_user_quota, b"/dev/vm-export", user, block) != 0:
            raise OSError(ctypes.get_errno(), "quotactl")

    def owned_by(self, user):
        bed.run("chown", "-hR", f"{user}:{user}", self.disk, self.nas)
        self.work.chmod(0o755)

    def told_and_freed(self, error, user=None):
        """Both who syncs and who only closes are told; what was there before is
        read as ever; it is all given back."""
        odd = bed.tree(self.disk / "odd")
        self.assertIsNotNone(until_told(self.disk / "synced", error, True, user))
        self.assertIsNotNone(until_told(self.disk / "closed", error, False, user))
        self.assertEqual(bed.difference(odd, bed.tree(self.disk / "odd")), "")
        for name in ("synced", "closed"):
            (self.disk / name).unlink()

    def test_a_full_server(self):
        bed.fill(self.disk, mb=5, files=60)
        before = bed.tree(self.disk)
        self.start("--cutover=wait", "--wait")
        self.fill_the_export(room_mb=8)
        self.told_and_freed(errno.ENOSPC)
        self.empty_the_export()
        (self.disk / "after").write_bytes(b"f" * (12 << 20))
        self.livemv("cutover", self.disk, "--wait", timeout=100)
        self.assert_moved()
        self.assertEqual((self.disk / "after").read_bytes(), b"f" * (12 << 20))
        self.assertEqual(bed.difference(before, self.only(before)), "")
        self.assertEqual(self.silly_names(), [])

    def test_the_copy_of_what_is_over_quota_waits(self):
        """Everything is made as its owner, so the owner's limit holds for it (a
        directory takes a block; bytes are written as root, whom none binds);
        status says so, and with another limit it goes on by itself."""
        self.addCleanup(self.limit, 1000, 0)
        used = pathlib.Path(tempfile.mkdtemp(prefix="used.", dir="/export"))
        self.addCleanup(shutil.rmtree, used)
        (used / "3 MB").write_bytes(bytes(3 << 20))
        bed.run("chown", "-R", "1000", used)
        bed.fill(self.disk, mb=5, files=60)
        self.owned_by(1000)
        before = bed.tree(self.disk)
        self.limit(1000, 2)
        self.start("--cutover=wait")
        bed.poll(lambda: f"status tells it: {self.status()}\n{self.logs()}",
                 lambda: "EDQUOT" in self.status()["reason"], 15)
        self.assertEqual(bed.difference(before, self.only(before)), "")
        self.limit(1000, 0)
        self.wait_state("synced", timeout=90)
        self.livemv("cutover", self.disk, "--wait", timeout=100)
        self.assert_moved()
        self.assertEqual(bed.difference(before, self.only(before)), "")
        self.limit(1000, 2)
        self.assertIsNotNone(until_told(self.disk / "more", errno.EDQUOT, True, 1000))


class Exported(bed.Bed):
    """The export is taken back for a while and given again."""

    def test_exported_anew_while_copying(self):
        bed.fill(self.disk, mb=20, files=200)
        before, odd = bed.tree(self.disk), bed.tree(self.disk / "odd")
        self.addCleanup(server, "export", "rw,sync,no_root_squash")
        self.start("--cutover=wait")
        bed.poll("something was copied", lambda: self.status()["bytes"]["copied"] > 0)
        server("unexport")
        end = time.monotonic() + CUT
        kept, refused = {}, set()
        while time.monotonic() < end:
            name = f"new{len(kept) + len(refused)}"
            text = name.encode() * 9999
            asked = time.monotonic()
            said = self.status()
            self.assertLess(time.monotonic() - asked, 5, said)
            self.assertIn(said["state"], ("copying", "synced"), said)
            self.assertEqual(bed.difference(odd, bed.tree(self.disk / "odd")), "")
            try:
                with open(self.disk / name, "wb") as out:
                    out.write(text)
                    out.flush()
                    os.fsync(out.fileno())
                kept[name] = text
            except OSError as e:
                refused.add(errno.errorcode[e.errno])
            time.sleep(0.3)
        print(f"{len(kept)} were made meanwhile, others were told {refused}", flush=True)
        self.assertLessEqual(refused, {"ESTALE", "EIO", "EACCES", "EPERM", "ENOENT"})
        server("export", "rw,sync,no_root_squash")
        self.wait_state("synced", timeout=90)
        (self.disk / "after").write_bytes(b"after")
        self.livemv("cutover", self.disk, "--wait", timeout=100)
        self.assert_moved()
        kept["after"] = b"after"
        for name, text in kept.items():
            self.assertEqual((self.disk / name).read_bytes(), text, name)
        found, links = bed.tree(self.disk)
        self.assertEqual(bed.difference(
            before, ({n: v for n, v in found.items() if n in before[0]}, links)), "")


class Planned(bed.Bed):
    def plan(self, options=""):
        said = self.livemv("plan", self.disk, *self.target(self.nas, options), "--json",
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

    def test_other_mounts_of_the_export(self):
        """What an earlier mount decides, and what has a cache of its own."""
        first = self.work / "first"
        first.mkdir()
        source, _, options = self.target(self.nas)
        bed.run("mount", "-t", "nfs", "-o", options, source, first)
        try:
            plan, findings = self.plan("nconnect=3,timeo=500")
            self.assertNotIn("export-mounted", findings, plan)
            self.assertEqual(findings["target-options"]["severity"], "warning")
            self.assertIn("nconnect=3", findings["target-options"]["what"])
            bed.run("umount", first)
            bed.run("mount", "-t", "nfs", "-o", options + ",noac", source, first)
            _, findings = self.plan()
            self.assertIn(str(first), findings["export-mounted"]["what"])
            self.assertNotIn("target-options", findings)
        finally:
            bed.run("umount", first)

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
    """A server that takes root for nobody: everything is done as its owner."""

    def setUp(self):
        super().setUp()
        server("export", "rw,sync,root_squash")
        self.addCleanup(server, "export", "rw,sync,no_root_squash")

    def act(self, user, script, code=0, groups=()):
        """A shell as somebody, in the tree."""
        p = subprocess.run(["bash", "-ec", script], cwd="/", user=user, group=user,
                           extra_groups=list(groups), env=dict(os.environ, D=self.disk),
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual(p.returncode, code, p.stdout.decode())

    def fill_owned(self):
        """Objects of three owners, with modes that keep out even those."""
        for at in (self.disk, self.nas):
            os.chown(at, 1000, 1000)
            at.chmod(0o755)
        self.work.chmod(0o755)
        self.act(1000, """
            mkdir -p $D/mine/objects $D/mine/locked $D/shared $D/tmp
            head -c 3000000 /dev/urandom >$D/mine/objects/pack
            for i in $(seq 20); do echo $i >$D/mine/objects/$i; done
            ln $D/mine/objects/1 $D/mine/hard
            chmod 444 $D/mine/objects/*; chmod 555 $D/mine/objects
            echo secret >$D/mine/secret; chmod 400 $D/mine/secret
            echo none >$D/mine/none; chmod 0 $D/mine/none
            echo write >$D/mine/write; chmod 200 $D/mine/write
            echo suid >$D/mine/suid; chmod 4755 $D/mine/suid
            echo in >$D/mine/locked/file; chmod 0 $D/mine/locked
            mkfifo $D/mine/fifo
            ln -s nowhere $D/mine/link
            chmod 777 $D/shared; chmod 1777 $D/tmp""")
        self.act(2000, """
            mkdir $D/shared/theirs $D/tmp/theirs
            chmod 700 $D/tmp/theirs
            echo theirs >$D/shared/file; chmod 640 $D/shared/file
            echo private >$D/tmp/theirs/private
            ln -s x $D/shared/theirs/link
            chmod 1777 $D/shared/theirs""")
        self.act(1000, """
            mkdir -p $D/shared/theirs/ours/deep
            echo deep >$D/shared/theirs/ours/deep/file
            chmod 500 $D/shared/theirs/ours/deep $D/shared/theirs/ours""")
        os.chown(self.disk / "shared" / "file", 2000, 3000)
        group = self.disk / "group"
        group.mkdir()
        os.chown(group, 1000, 3000)
        group.chmod(0o2775)
        self.act(2000, "echo g >$D/group/file", groups=[3000])
        if bed.NFS_VERS.startswith("4"):
            os.setxattr(self.disk / "mine" / "secret", "user.colour", b"red")
            os.setxattr(self.disk / "mine" / "none", "user.colour", b"black")

    @staticmethod
    def forget(tree, *names):
        """Takes what begins with the names out of what bed.tree found."""
        for name in [n for n in tree[0] if n.startswith(names)]:
            del tree[0][name]

    def test_everything_stays_its_owners(self):
        self.fill_owned()
        before = bed.tree(self.disk)
        plan, findings = self.plan()
        self.assertEqual(plan["result"], "warnings", plan)
        self.assertEqual(findings["target-squashes-root"]["severity"], "warning")
        self.assertEqual(os.listdir(self.nas), [])
        live = self.disk / "live"
        live.mkdir()
        os.chown(live, 1000, 1000)
        self.writers(by_path=2, held=2, shared=1, where=live, user=1000)
        self.start("--cutover=wait", "--wait")
        # While it is live: made, closed and moved by both.
        self.act(1000, """
            mkdir $D/tmp/new; echo 1 >$D/tmp/new/one; chmod 444 $D/tmp/new/one
            chmod 555 $D/tmp/new
            exec 5>>$D/mine/late; chmod 0 $D/mine/late; echo late >&5""")
        self.act(2000, """
            mkdir $D/tmp/theirs/sub; echo 2 >$D/tmp/theirs/sub/two
            mv $D/tmp/theirs/sub $D/shared/theirs/sub
            echo more >>$D/tmp/theirs/private""")
        with self.assertRaises(PermissionError):
            os.chown(self.disk / "mine" / "suid", 2000, -1)
        self.livemv("cutover", self.disk, "--wait")
        self.assert_moved()
        totals = self.stop_writers(where=self.nas / "live")
        print(totals, flush=True)
        self.assert_nothing_lost(totals)
        after = bed.tree(self.nas)
        self.assertEqual((self.nas / "mine" / "late").read_text(), "late\n")
        self.assertEqual((self.nas / "mine" / "late").stat().st_mode & 0o7777, 0)
        for name, uid, mode, text in (("tmp/new/one", 1000, 0o444, "1\n"),
                                      ("shared/theirs/sub/two", 2000, 0o644, "2\n"),
                                      ("tmp/theirs/private", 2000, 0o644, "private\nmore\n")):
            st = (self.nas / name).stat()
            self.assertEqual((st.st_uid, st.st_mode & 0o777), (uid, mode), name)
            self.assertEqual((self.nas / name).read_text(), text)
        self.forget(after, b"live", b"tmp/new", b"mine/late", b"shared/theirs/sub")
        # Changed meanwhile, or their names were.
        for of in (before, after):
            self.forget(of, b"live")
            for name in (b"tmp", b"tmp/theirs", b"tmp/theirs/private", b"shared/theirs",
                         b"mine"):
                of[0][name] = None
        self.assertEqual(bed.difference(before, after), "")
        self.assertEqual([n for n in after[0] if b".nfs" in n or b".livemv" in n], [])

    def test_abort_brings_everything_back(self):
        self.fill_owned()
        before = bed.tree(self.disk)
        live = self.disk / "live"
        live.mkdir()
        os.chown(live, 1000, 1000)
        self.writers(by_path=2, held=2, where=live, user=1000)
        self.start("--cutover=wait", "--wait")
        self.act(2000, "head -c 2000000 /dev/zero >$D/tmp/theirs/new; chmod 400 $D/tmp/theirs/new")
        self.livemv("abort", self.disk, "--wait")
        totals = self.stop_writers(where=live)
        self.assert_nothing_lost(totals)
        self.assertEqual((self.disk / "tmp/theirs/new").read_bytes(), bytes(2000000))
        after = bed.tree(self.disk)
        self.forget(after, b"live", b"tmp/theirs/new")
        for of in (before, after):
            of[0][b"tmp/theirs"] = None
        self.assertEqual(bed.difference(before, after), "")

    def test_roots_files_are_nobodys(self):
        self.nas.chmod(0o777)
        file = self.disk / "file"
        file.write_text("text")
        os.chown(self.disk, 1000, 1000)
        _, findings = self.plan()
        self.assertEqual(findings["target-owners"]["severity"], "blocker")
        self.assertIn("0:0 becomes 65534:65534", findings["target-owners"]["what"])
        self.assertEqual(findings["target-root-owner"]["severity"], "blocker")
        os.chown(self.nas, 1000, 1000)
        _, findings = self.plan()
        self.assertNotIn("target-root-owner", findings)
        self.start("--allow-loss=owner", "--wait")
        self.assertEqual(file.read_text(), "text")
        self.assertEqual(file.stat().st_uid, 65534)


if __name__ == "__main__":
    unittest.main(verbosity=2)
