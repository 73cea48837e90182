"""The overlay answers as the local filesystem does: every system call on every
kind of object as several users (posix_cases.py), on the overlay and beside it on
a local filesystem; the answers, and everything that is seen afterwards, must be
the same, and once it has moved or was taken back, the trees too."""
import collections
import os
import unittest

import bed
import posix_cases


# "all" takes minutes; else a fifth of the cases, another one in each test. Or
# words: the calls that begin with one of them.
WHICH = os.environ.get("LIVEMV_POSIX", "")

# chown(-1, -1) of a file with set-id bits by somebody else is refused locally and
# does nothing here: a FUSE server cannot tell it from what the kernel says before
# a write of that user, which is allowed.
KNOWN = {(thing, "chown same", user) for thing in ("setuid", "setuid-all", "setgid")
         for user in ("member", "other")}


class Posix(bed.Bed):
    disk_mb = 400 if WHICH != "all" else 2000
    nas_mb = 600 if WHICH != "all" else 3000

    def setUp(self):
        super().setUp()
        self.local = self.volume("local", self.disk_mb)
        self.work.chmod(0o755)
        for at in (self.local, self.disk):
            at.chmod(0o755)
        self.differences = []

    def prepare(self, where, cases):
        """The cases' directories there; with each its case."""
        where.mkdir()
        where.chmod(0o755)
        return [(posix_cases.prepare(where, number, case[0]), case)
                for number, case in enumerate(cases)]

    def compare(self, name, cases, ours, theirs):
        found, right = posix_cases.run(ours), posix_cases.run(theirs)
        wrong = [(c, a, b) for c, a, b in zip(cases, found, right)
                 if a != b and c not in KNOWN]
        if not wrong:
            return print(f"{name}: {len(cases)} alike", flush=True)
        text = f"{name}: {len(wrong)} of {len(cases)} differ\n"
        for call, count in collections.Counter(c[1] for c, _, _ in wrong).most_common(50):
            text += f"  {call}: {count}\n"
        for (thing, call, user), a, b in wrong[:30]:
            text += f"{user}: {call} ({thing}): {a[0]!r}, local {b[0]!r}\n"
            for path in sorted(a[1].keys() | b[1].keys()):
                if a[1].get(path) != b[1].get(path):
                    text += f"    {path}: {a[1].get(path)}\n    local {b[1].get(path)}\n"
        self.differences.append(text)

    def run_cases(self, turn, wait):
        """On what was there before the start and on what was made since."""
        cases = list(posix_cases.cases())
        if WHICH == "":
            cases = cases[turn::5]
        elif WHICH != "all":
            cases = [c for c in cases if c[1].startswith(tuple(WHICH.split(",")))]
        old = self.prepare(self.disk / "old", cases)
        old_right = self.prepare(self.local / "old", cases)
        self.start("--cutover=wait", *(["--wait"] if wait else []))
        self.compare("before", cases, old, old_right)
        self.compare("since", cases, self.prepare(self.disk / "new", cases),
                     self.prepare(self.local / "new", cases))
        self.assertFalse(self.differences, "\n".join(self.differences))

    def same_trees(self, at):
        differ = bed.difference(bed.tree(self.local, times=False), bed.tree(at, times=False))
        self.assertFalse(differ, differ)

    def test_while_copying_then_moved(self):
        self.run_cases(0, wait=False)
        self.livemv("cutover", self.disk, "--wait", timeout=200)
        self.assert_moved()
        self.same_trees(self.disk)

    def test_when_synced_then_aborted(self):
        self.run_cases(1, wait=True)
        self.livemv("abort", self.disk, "--wait", timeout=200)
        self.same_trees(self.disk)


if __name__ == "__main__":
    unittest.main(verbosity=2)
