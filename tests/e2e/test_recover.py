"""A crash of the host, and what `livemv recover` makes of it. The crash here:
every process is killed, the volumes are unmounted and mounted again, /run is
empty, and the boot is another. What was not durable survives in the page cache
or by the unmounting: test_power_cut has the others.
"""
import contextlib
import fcntl
import ctypes
import os
import pathlib
import shutil
import shlex
import signal
import struct
import subprocess
import sys
import time
import unittest

import bed
import fsyncer


def slot(path, more=0):
    """The name of its object in the private directory, from its handle (ext4's)."""
    handle = struct.pack("=Ii", 8, 0) + bytes(8)
    buffer, mount = ctypes.create_string_buffer(handle, len(handle)), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at", path)
    inode, generation = struct.unpack("=II", buffer.raw[8:16])
    return f"{inode << 32 | generation + more & 0xffffffff:016x}"


class Crash(bed.Bed):
    disk_mb, nas_mb = 200, 300
    boots = 0
    subdirectory = False

    def setUp(self):
        super().setUp()
        self.boot = {}
        self.mounted = self.disk  # where the source's volume is
        if self.subdirectory:
            self.disk = self.disk / "the job"
            self.disk.mkdir()
        self.ack = self.work / "ack"
        bed.fill(self.disk, mb=8, files=80)
        fsyncer.prepare(self.disk)

    def livemv(self, *args, env=None, **kw):
        return super().livemv(*args, env=dict(self.boot, **(env or {})), **kw)

    def begin(self, *options, acks=30, **kw):
        """The fsyncer, and the start of a migration beside it."""
        self.busy = self.spawn(sys.executable, fsyncer.__file__, self.disk, self.ack)
        bed.poll("the fsyncer runs", lambda: self.ack.exists() and self.acks() > 5)
        self.start(*options, **kw)
        self.id = self.listed()[0]["id"]
        self.more(acks)

    def acks(self):
        return fsyncer.acknowledged(self.ack)["log"]

    def more(self, n=30):
        want = self.acks() + n
        bed.poll(f"{n} more acknowledged writes\n", lambda: self.acks() >= want, 120)

    def own(self):
        """The migration's processes."""
        for p in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (p / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].startswith(b"livemv-") and self.id.encode() in words:
                yield int(p.name), words[0].decode()

    def kill_all(self, writers=True):
        if writers:
            self.busy.kill()
        # Stopped first: none of them sees another die.
        for pid, _ in list(self.own()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        for pid, _ in list(self.own()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        bed.poll("all of them are gone", lambda: not list(self.own()))
        # A process that is ending has no name, and what it has open yet.
        bed.poll("nothing of them is left", self.lock_is_free)
        if writers:
            self.busy.wait(timeout=20)

    def lock_is_free(self):
        for path in (self.work / "state").glob("*/lock"):
            with open(path, "rb") as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
        return True

    def umount_all(self, at):
        while str(at) in self.mounts():
            bed.run("umount", "-l", at)

    def crash(self, guard=False):
        """After it the volumes are mounted anew, as by a boot."""
        self.kill_all()
        for at in (self.disk, self.mounted, self.nas):
            self.umount_all(at)
        for at, loop in ((self.mounted, self.loops[0]), (self.nas, self.loops[1])):
            # Until the last reference of a dying process is gone it is the old one.
            bed.poll(f"{loop} is given back", lambda: not os.path.exists(
                f"/sys/fs/ext4/{os.path.basename(loop)}"))
            bed.run("mount", loop, at)
        shutil.rmtree(pathlib.Path("/run/livemv") / self.id, ignore_errors=True)
        Crash.boots += 1
        self.boot = {"LIVEMV_BOOT": f"boot{Crash.boots}@{time.time()}"}
        self.assertEqual(self.listed(), [])
        if guard:
            self.cover()

    def cover(self):
        bed.run("mount", "-t", "tmpfs", "-o", "ro,size=4k", "livemv-guard", self.disk)

    def uncover(self, said):
        """The bare source was covered by what refused, as it says."""
        self.assertIn("covered by an empty read-only mount", said)
        self.assertEqual(os.listdir(self.disk), [])
        bed.run(*shlex.split(said[said.rindex("umount "):].splitlines()[0]))

    def recover(self, *options, code=0, which=None):
        return self.livemv("recover", which or self.id, f"--state-dir={self.state}", *options,
                           code=code)

    def assert_acknowledged(self, where=None):
        self.assertEqual(fsyncer.check(where or self.disk, self.ack), [], self.logs())

    def state_of(self):
        return self.status()["state"]

    def finish_by(self, end):
        """Cutover or abort, and all that was ever acknowledged is there."""
        if end == "cutover":
            if self.status()["state"] == "paused":
                self.livemv("resume", self.disk)
            self.livemv("cutover", self.disk, "--wait")
            self.wait_state("moved")
            self.assert_moved()
            self.assert_acknowledged()
            self.livemv("finish", self.disk)
        else:
            self.livemv("abort", self.disk, "--wait")
            self.assert_acknowledged()
            self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(self.nas).st_dev)
        self.assertEqual(self.listed(), [])
        self.assertEqual(list(self.state.iterdir()), [])


class States(Crash):
    def go(self, end, *options, until=None, pause=False, guard=False):
        self.begin("--cutover=wait", *options, acks=0 if pause else 30,
                   env={"LIVEMV_FAULTS": "copy.claimed=delay:300"} if pause else {})
        if pause:
            self.livemv("pause", self.disk)
            self.more(20)
        if until:
            self.wait_state(until)
        self.more(5)
        self.crash(guard)
        said = self.recover()
        self.assertIn("is back", said.text)
        self.assert_acknowledged()
        before = fsyncer.acknowledged(self.ack)
        with open(self.disk / "after", "wb") as f:
            f.write(b"after the crash")
        self.finish_by(end)
        self.assertEqual((self.disk / "after").read_bytes(), b"after the crash")
        self.assertEqual(before, fsyncer.acknowledged(self.ack))

    def test_synced_then_cutover(self):
        self.go("cutover", until="synced")

    def test_synced_then_abort(self):
        self.go("abort", until="synced")

    def test_synced_under_a_guard_then_cutover(self):
        self.go("cutover", until="synced", guard=True)

    def test_synced_under_a_guard_then_abort(self):
        self.go("abort", until="synced", guard=True)

    def test_paused_then_cutover(self):
        self.go("cutover", pause=True)

    def test_paused_then_abort(self):
        self.go("abort", pause=True)



class Subdirectory(Crash):
    """DIR is no mount of its own."""
    subdirectory = True

    def test_under_a_guard_then_abort(self):
        States.go(self, "abort", until="synced", guard=True)
        self.assertNotIn(str(self.disk), self.mounts())

    def test_without_a_guard_then_cutover(self):
        States.go(self, "cutover", until="synced")


class Edges(Crash):
    """The moments at which it is decided whose the truth is."""

    def begin_with(self, faults, *options):
        self.busy = self.spawn(sys.executable, fsyncer.__file__, self.disk, self.ack)
        bed.poll("the fsyncer runs", lambda: self.ack.exists() and self.acks() > 5)
        self.starting = self.spawn(
            bed.LIVEMV, "start", self.disk, *self.target(self.nas), f"--state-dir={self.state}",
            "--max-pause=30s", "--cutover=wait", bed.YES, *options,
            env=dict(os.environ, LIVEMV_FAULTS=faults), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        bed.poll("it is registered", self.listed)
        self.id = self.listed()[0]["id"]

    def journal(self):
        return self.livemv("journal", "dump", self.id, code=None).text

    def wait_journal(self, text):
        bed.poll(lambda: f"{text} in the journal\n{self.journal()[-600:]}",
                 lambda: text in self.journal(), 60, 0.1)

    def test_attaching_is_rolled_back(self):
        self.begin_with("attach.redirect=delay:60000")
        self.wait_journal("attaching")
        bed.poll("the overlay is on", lambda: str(self.disk) in
                 bed.run("findmnt", "-n", "-t", "fuse.livemv", "-o", "TARGET", check=False).text)
        self.more(5)
        for guard in (True,):
            self.crash(guard)
            said = self.recover(code=4)
            self.assertIn("as it was before the start", said.text)
        self.assert_acknowledged()
        self.assertEqual(os.listdir(self.nas), ["lost+found"])
        self.assertEqual(list(self.state.iterdir()), [])
        self.assertEqual(self.listed(), [])
        self.start("--wait")  # nothing is in its way
        self.wait_state("moved")

    def cut_at(self, point, mark):
        self.begin_with(f"{point}=delay:60000")
        self.wait_state("synced")
        self.more(5)
        self.livemv("cutover", self.disk)
        self.wait_journal(mark)
        bed.poll("the freeze", lambda: self.frozen(), 60)
        self.crash()

    def frozen(self):
        was = self.acks()
        time.sleep(1)
        return self.acks() == was

    def test_cutting_over_before_the_truth(self):
        self.cut_at("commit.target", "cutting_over")
        self.assertIn("it was cutting_over", self.recover().text)
        self.wait_state("synced", "copying")
        self.assert_acknowledged()
        self.finish_by("cutover")

    def test_cutting_over_before_the_truth_then_abort(self):
        self.cut_at("commit.target", "cutting_over")
        # Without what the operator said last nothing irreversible goes on.
        (self.state / self.id / "supervisor.json").unlink()
        self.assertIn("waits for 'livemv cutover", self.recover().text)
        self.assert_acknowledged()
        self.finish_by("abort")

    def test_cutting_over_after_the_truth(self):
        self.cut_at("commit.target_done", "target=yes")
        self.assertIn("is back", self.recover().text)
        self.assertEqual(self.state_of(), "moved")
        self.assert_moved()
        self.assert_acknowledged()
        self.assertFalse(list(self.disk.glob(".livemv-*")))
        self.recover(code=3)
        self.livemv("finish", self.disk)
        self.assert_acknowledged()
        self.assertEqual(list(self.state.iterdir()), [])

    def test_names_that_the_target_lost(self):
        """After a power cut objects are where they were before their last record."""
        self.cut_at("commit.target_done", "target=yes")
        private = self.nas / f".livemv-{self.id}"
        (private / "o").mkdir(parents=True)
        slots = {name: private / "o" / slot(self.disk / name) for name in ("log", "made")}
        for name, at in slots.items():
            os.rename(self.nas / name, at)
        dead = private / "o" / slot(self.disk / "log", 1)  # of another generation
        dead.write_bytes(b"deleted")
        before = bed.tree(self.nas)
        said = self.recover(code=9).text
        self.assertEqual(bed.difference(before, bed.tree(self.nas)), "")
        for name, at in slots.items():
            self.assertIn(f"\n  {at.relative_to(self.nas)}: {name}\n", said)
        self.assertNotIn(dead.name, said)
        self.assertIn("mv -n", said)
        for name, at in slots.items():
            os.rename(at, self.nas / name)
        self.recover()
        self.assertFalse(private.exists())
        self.assert_moved()
        self.assert_acknowledged()

    def test_draining_and_moved(self):
        self.begin("--cutover=wait", "--wait")
        code = ("import mmap, sys\nf = open('old', 'r+b'); m = mmap.mmap(f.fileno(), 4096)\n"
                "print('mapped', flush=True)\nsys.stdin.read()\n")
        straggler = self.spawn(sys.executable, "-c", code, cwd=self.disk, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
        straggler.stdout.readline()
        self.livemv("cutover", self.disk, f"--accept={straggler.pid}")
        self.wait_state("draining")
        self.more(5)
        straggler.kill()
        self.kill_all()
        straggler.wait()
        self.crash(guard=True)
        self.assertIn("is back", self.recover().text)
        self.assertEqual(self.state_of(), "moved")
        self.assert_moved()
        self.assert_acknowledged()
        self.crash(guard=True)  # once more, moved now
        self.assertIn("it was moved", self.recover().text)
        self.assert_moved()
        self.persist()
        self.assert_acknowledged()

    def persist(self):
        root = self.work / "root"
        (root / "etc").mkdir(parents=True)
        fstab = root / "etc" / "fstab"
        fstab.write_text(f"UUID=1 / ext4 defaults 0 1\n{self.loops[0]} {self.disk} ext4 rw 0 2\n")
        said = self.livemv("finish", self.disk, "--persist=fstab",
                           env={"LIVEMV_SYSTEMD": str(root)}).text
        self.assertIn(str(fstab), said)
        lines = fstab.read_text().splitlines()
        self.assertEqual(lines[0], "UUID=1 / ext4 defaults 0 1")
        self.assertTrue(lines[1].startswith("# replaced by livemv: "), lines)
        self.assertEqual(lines[2], f"{self.nas} {self.disk} none bind 0 0")
        # As the next boot does it.
        self.umount_all(self.disk)
        bed.run("mount", "--fstab", fstab, self.disk)
        self.assert_moved()

    def test_aborting_before_and_after_the_truth(self):
        self.begin_with("commit.source=delay:60000")
        self.wait_state("synced", "copying")
        self.more(20)
        self.livemv("abort", self.disk)
        self.wait_journal("aborting")
        bed.poll("the freeze", lambda: self.frozen(), 60)
        self.crash(guard=True)
        self.assertIn("it was aborting", self.recover().text)
        self.assert_acknowledged()
        bed.poll("it ends by itself", lambda: not self.listed(), 60)
        self.assert_acknowledged()
        self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(self.nas).st_dev)

    def test_aborting_after_the_truth(self):
        self.begin_with("commit.source_done=delay:60000")
        self.wait_state("synced", "copying")
        self.more(20)
        self.livemv("abort", self.disk)
        self.wait_journal("source_is_truth")
        self.crash(guard=True)
        self.assertIn("is the source again", self.recover().text)
        self.assert_acknowledged()
        self.assertEqual(self.listed(), [])
        self.assertNotEqual(os.stat(self.disk).st_dev, os.stat(self.nas).st_dev)


class Refusals(Crash):
    def test_a_source_that_others_changed(self):
        self.begin("--cutover=wait", "--wait")
        self.crash()
        with open(self.disk / "log", "ab") as f:
            f.write(b"cron was here\n")
        (self.disk / "made" / "foreign").write_bytes(b"foreign")
        placeholder = next(p for p in (self.disk / "made").iterdir()
                           if "trusted.livemv" in os.listxattr(p))
        placeholder.write_bytes(b"written into a placeholder")
        with open(self.disk / "old", "r+b") as f:
            f.seek(300 * 4096)
            f.write(b"in place")
        os.rename(self.disk / "odd" / "sp ace ", self.disk / "odd" / "moved")
        before = bed.tree(self.disk)
        said = self.recover(code=9).text
        self.uncover(said)
        for name in ("log", "made", "made/foreign", f"made/{placeholder.name}", "old",
                     "odd", "odd/moved"):
            self.assertIn(f"\n  {name}: ", said)
        self.assertNotIn("odd/sparse", said)
        self.assertIn("log: it was written", said)
        self.assertEqual(bed.difference(before, bed.tree(self.disk)), "")
        self.assertEqual(self.listed(), [])
        # Their own bytes below the local end, and names, are the authority.
        self.recover("--accept-changes")
        self.assertEqual((self.disk / "made" / "foreign").read_bytes(), b"foreign")
        self.livemv("cutover", self.disk, "--wait")
        self.assert_moved()
        self.assertEqual((self.disk / "made" / "foreign").read_bytes(), b"foreign")
        self.assertTrue((self.disk / "odd" / "moved").exists())
        self.assertFalse((self.disk / "odd" / "sp ace ").exists())
        with open(self.disk / "old", "rb") as f:
            f.seek(300 * 4096)
            self.assertEqual(f.read(8), b"in place")
        self.assertEqual((self.disk / "log").read_bytes().count(b"cron"), 0)
        wrong = [w for w in fsyncer.check(self.disk, self.ack) if "block 300" not in w]
        self.assertEqual(wrong, [])

    def test_a_file_that_others_cut_is_not_accepted(self):
        self.begin("--cutover=wait", "--wait")
        self.crash()
        size = (self.disk / "old").stat().st_size
        os.truncate(self.disk / "old", 1000)
        said = self.recover("--accept-changes", code=9).text
        self.uncover(said)
        self.assertIn(f"it was cut to 1000 bytes, and had {size}", said)
        os.truncate(self.disk / "old", size)
        self.recover("--accept-changes")
        self.assertEqual((self.disk / "old").stat().st_size, size)
        self.livemv("abort", self.disk, "--wait")

    def test_a_source_that_is_in_use(self):
        self.begin("--cutover=wait", "--wait")
        self.crash()
        shell = self.spawn("sleep", "60", cwd=self.disk)
        said = self.recover(code=9).text
        self.assertIn(str(shell.pid), said)
        self.assertEqual(os.listdir(self.disk), [])
        shell.kill()
        shell.wait()
        self.recover()
        self.assert_acknowledged()
        self.finish_by("abort")

    def test_changes_between_two_attempts(self):
        """The first one had a worker, and its overlay has never been on."""
        self.begin("--cutover=wait", "--wait")
        self.crash()
        said = self.livemv("recover", self.id, f"--state-dir={self.state}", code=9,
                           env={"LIVEMV_FAULTS": "put_on.scanned=error:5"})
        self.assertEqual(os.listdir(self.disk), [], said.text)
        bed.run("umount", self.disk)
        bed.poll("all of them are gone", lambda: not list(self.own()))
        (self.disk / "foreign").write_bytes(b"foreign")
        said = self.recover(code=9).text
        self.assertIn("\n  foreign: ", said)
        self.assertNotIn("\n  log: ", said)
        self.uncover(said)
        self.recover("--accept-changes")
        self.assertEqual((self.disk / "foreign").read_bytes(), b"foreign")
        self.assert_acknowledged()
        self.finish_by("cutover")

    def test_live_or_twice(self):
        self.begin("--cutover=wait", "--wait")
        self.assertIn("lives", self.recover(code=3).text)
        self.assertIn("no migration", self.livemv(
            "recover", "--all", f"--state-dir={self.state}").text)
        self.crash()
        self.livemv("recover", "--all", f"--state-dir={self.state}")
        self.assertIn("lives", self.recover(code=3).text)
        self.more_by_hand()
        self.crash()  # and what was recovered can be lost again
        self.recover(which=self.disk)
        self.assertEqual((self.disk / "by hand").read_bytes(), b"by hand")
        self.assert_acknowledged()
        self.finish_by("cutover")

    def more_by_hand(self):
        with open(self.disk / "by hand", "wb") as f:
            f.write(b"by hand")
            os.fsync(f.fileno())

    def test_the_target_is_away(self):
        self.begin("--cutover=wait", "--wait")
        self.crash(guard=True)
        bed.run("umount", self.nas)
        said = self.recover(code=8).text
        self.assertIn("Mount the right one", said)
        self.assertEqual(os.listdir(self.disk), [])  # covered
        bed.run("mount", self.loops[1], self.nas)
        self.recover()
        self.assert_acknowledged()
        self.finish_by("cutover")

    def test_another_target(self):
        """It has the private directory, and is not the directory that it was."""
        right = self.nas / "right"
        right.mkdir()
        self.nas, volume = right, self.nas
        self.begin("--cutover=wait", "--wait")
        self.nas = volume
        self.crash(guard=True)
        os.rename(right, volume / "away")
        (right / f".livemv-{self.id}" / "o").mkdir(parents=True)
        said = self.recover(code=8).text
        self.assertIn("another directory", said)
        shutil.rmtree(right)
        os.rename(volume / "away", right)
        self.recover()
        self.nas = right
        self.assert_acknowledged()
        self.finish_by("cutover")

    def test_another_source(self):
        """A copy of it with the number of its filesystem has other files."""
        self.begin("--cutover=wait", "--wait")
        self.crash()
        was = bed.tree(self.disk)
        bed.run("umount", self.disk)
        uuid = bed.run("blkid", "-o", "value", "-s", "UUID", self.loops[0]).text.strip()
        other = self.work / "other.img"
        with open(other, "wb") as f:
            f.truncate(100 << 20)
        bed.run("mkfs.ext4", "-q", "-U", uuid, other)
        bed.run("mount", "-o", "loop", other, self.disk)
        fsid = os.statvfs(self.disk).f_fsid
        said = self.recover(code=9).text
        self.assertIn("another filesystem than there was", said)
        self.uncover(said)
        self.assertEqual(os.listdir(self.disk), ["lost+found"])
        bed.run("umount", self.disk)
        bed.run("mount", self.loops[0], self.disk)
        self.assertEqual(os.statvfs(self.disk).f_fsid, fsid)
        self.assertEqual(bed.difference(was, bed.tree(self.disk)), "")
        self.recover()
        self.assert_acknowledged()
        self.finish_by("abort")

    def test_a_start_on_an_interrupted_migration(self):
        self.begin("--cutover=wait", "--wait")
        self.crash()
        other = self.volume("other", 100)
        said = self.start(code=3, target=other).text
        self.assertIn(f"livemv recover {self.id}", said)
        self.recover()
        self.finish_by("abort")


class Damage(Crash):
    def test_a_journal_that_is_damaged_or_gone(self):
        self.begin("--cutover=wait", "--wait")
        self.crash(guard=True)
        journal = self.state / self.id / "journal"
        whole = journal.read_bytes()
        for what, data in (("flipped", whole[:3000] + bytes([whole[3000] ^ 4]) + whole[3001:]),
                           ("header", b"x" + whole[1:]), ("gone", None)):
            with self.subTest(what):
                journal.unlink(missing_ok=True)
                if data is not None:
                    journal.write_bytes(data)
                said = self.recover(code=9).text
                self.assertIn("nothing is guessed", said)
                self.assertIn(f"rm -r {self.state / self.id}", said)
                if data is not None:
                    self.assertEqual(journal.read_bytes(), data)
                self.assertEqual(os.listdir(self.disk), [])
                self.assertEqual(self.listed(), [])
        # A torn tail is what a power cut leaves.
        end = len(whole.rstrip(b"\0"))
        journal.write_bytes(whole[:end] + bytes(64) + b"torn" * 20 + whole[end + 144:])
        self.recover()
        self.assert_acknowledged()
        self.finish_by("cutover")


class Processes(Crash):
    """Supervisor and worker are killed, and the host goes on."""

    def test_without_a_reboot(self):
        self.begin("--cutover=wait", "--wait")
        holder = self.spawn("sh", "-c", "exec 3>>held; while :; do sleep 1; done", cwd=self.disk)
        bed.poll("it holds", lambda: (self.disk / "held").exists())
        self.kill_all()
        with self.assertRaises(OSError):
            os.listdir(self.disk)
        said = self.recover()
        self.assertIn(str(holder.pid), said.text)
        # The disk's, its copy, which can be reached again, and the overlay.
        self.assertEqual(self.mounts().count(str(self.disk)), 3)
        self.assert_acknowledged()
        holder.kill()
        holder.wait()
        self.finish_by("abort")

    def test_a_bare_source_without_a_reboot(self):
        """What is done to it in the seconds after the end is seen too."""
        self.begin("--cutover=wait", "--wait")
        self.kill_all()
        bed.run("umount", "-l", self.disk)
        (self.disk / "foreign").write_bytes(b"foreign")
        said = self.recover(code=9).text
        self.assertIn("\n  foreign: ", said)
        self.assertEqual(os.listdir(self.disk), [])
        self.recover("--accept-changes")
        self.assertEqual((self.disk / "foreign").read_bytes(), b"foreign")
        self.assert_acknowledged()
        self.finish_by("cutover")


if __name__ == "__main__":
    unittest.main()
