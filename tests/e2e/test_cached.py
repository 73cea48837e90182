"""Names, attributes and listings that the kernel keeps: as long as they are true,
and no longer."""
import contextlib
import os
import subprocess
import sys
import time
import unittest

import bed


class Cached(bed.Bed):
    def setUp(self):
        super().setUp()
        bed.fill(self.disk, mb=2, files=20)
        self.dir = self.disk / "listed"
        self.dir.mkdir()
        for i in range(100):
            (self.dir / f"f{i}").write_text("x" * i)

    def ask(self, script, *args, fds=()):
        """In another process, which can be given up if nobody answers it."""
        return subprocess.run([sys.executable, "-c", script, *map(str, args)], timeout=20,
                              pass_fds=fds, stdout=subprocess.PIPE, check=True).stdout.decode()

    def test_what_was_seen_is_not_asked_for_again(self):
        self.start("--cutover=wait", "--wait")
        fd = os.open(self.dir, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, fd)
        names = sorted(os.listdir(fd))
        self.assertEqual(len(names), 100)
        os.fstat(fd)  # to have been listed has moved its atime
        seen = [os.stat(n, dir_fd=fd) for n in names]
        later = time.monotonic() + 1.5  # than what is kept for a second
        bed.poll("some time", lambda: time.monotonic() > later)
        look = ("import os, sys; fd = int(sys.argv[1]); names = sorted(os.listdir(fd)); "
                "print(len(names), sum(os.stat(n, dir_fd=fd).st_size for n in names))")
        # Where not all can be taken back from the kernel at once (before Linux
        # 6.16) it keeps nothing for longer than a second.
        major, minor = os.uname().release.split(".")[:2]
        kept = (int(major), int(minor)) >= (6, 16)
        with self.stopped_worker() if kept else contextlib.nullcontext():
            self.assertEqual(self.ask(look, fd, fds=(fd,)),
                             f"100 {sum(s.st_size for s in seen)}\n")

    def test_each_change_is_seen_at_once(self):
        self.start("--cutover=wait", "--wait")
        there = os.open(self.dir, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, there)
        want = set(os.listdir(self.dir))

        def check(words):
            self.assertEqual(set(os.listdir(self.dir)), want, words)
            self.assertEqual(set(os.listdir(there)), want, f"{words}, by an open descriptor")
            for n in want:
                os.stat(self.dir / n)

        check("at first")
        self.assertFalse((self.dir / "new").exists())
        # By other processes, and by other paths.
        for words, script, gone, made in (
                ("create", "open(sys.argv[1] + '/new', 'w').write('abc')", (), ("new",)),
                ("rename", "os.rename(sys.argv[1] + '/f1', sys.argv[1] + '/g1')", ("f1",), ("g1",)),
                ("link", "os.chdir(sys.argv[1]); os.link('f2', 'l2')", (), ("l2",)),
                ("unlink", "os.unlink(sys.argv[1] + '/f3')", ("f3",), ()),
                ("mkdir", "os.mkdir(sys.argv[1] + '/d')", (), ("d",)),
                ("out", "os.rename(sys.argv[1] + '/f4', sys.argv[1] + '/../f4')", ("f4",), ()),
                ("rmdir", "os.rmdir(sys.argv[1] + '/d')", ("d",), ()),
                ("over", "os.rename(sys.argv[1] + '/f5', sys.argv[1] + '/f6')", ("f5",), ())):
            self.ask("import os, sys; " + script, self.dir)
            want = (want - set(gone)) | set(made)
            check(words)
        self.assertEqual((self.dir / "new").stat().st_size, 3)
        self.assertEqual((self.dir / "f2").stat().st_nlink, 2)
        self.assertEqual((self.dir / "f6").stat().st_size, 5)
        path = self.dir / "f7"
        for words, script, seen in (
                ("append", "open(sys.argv[1], 'a').write('more')", lambda st: st.st_size == 11),
                ("truncate", "os.truncate(sys.argv[1], 3)", lambda st: st.st_size == 3),
                ("chmod", "os.chmod(sys.argv[1], 0o6755)", lambda st: st.st_mode & 0o7777 == 0o6755),
                ("utime", "os.utime(sys.argv[1], (5, 6))", lambda st: st.st_mtime == 6),
                ("chown", "os.chown(sys.argv[1], 1000, 1000)", lambda st: st.st_uid == 1000),
                ("chmod again", "os.chmod(sys.argv[1], 0o6755)", lambda st: st.st_mode & 0o6000),
                ("write by its owner", "os.chdir(os.path.dirname(sys.argv[1])); "
                 "os.setgid(1000); os.setuid(1000); open('f7', 'r+').write('u')", lambda st: not st.st_mode & 0o6000)):
            path.stat()
            self.ask("import os, sys; " + script, path)
            self.assertTrue(seen(path.stat()), f"{words}: {path.stat()}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
