"""Worker after worker killed under a load that checks itself.

Beside self-checking writers and a churn with a model, three processes do one
thing after the other and note how long each took: they see what the worst of
the applications sees.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import bed


def measured(what, tree, stop, out):
    """Does what again and again until stop exists; times longer than a
    moment go to out, as [when it began, how long it took], and the count."""
    at = os.path.join(tree, f"measured-{what}")
    block, long, count, errors = os.urandom(4096), [], 0, []
    fd = os.open(at, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, bytes(1 << 20))
    while not os.path.exists(stop):
        n = count % 250
        began = time.monotonic()
        try:
            if what == "write":
                os.pwrite(fd, block, n * 4096)
            elif what == "read":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                got = os.pread(fd, 4096, n * 4096)
                if got != bytes(4096):
                    errors.append(f"{len(got)} bytes at {n * 4096}, not zero")
            else:
                name, other = f"{at}.{count}", f"{at}.{count}.moved"
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                os.rename(name, other)
                os.unlink(other)
        except OSError as e:
            errors.append(f"{what} {count}: {e}")
        took = time.monotonic() - began
        if took > 0.01:
            long.append([began, took])
        count += 1
        time.sleep(0.001)
    if what == "write":
        for n in range(min(count, 250)):
            if os.pread(fd, 4096, n * 4096) != block:
                errors.append(f"what was written at {n * 4096} is not there")
    os.close(fd)
    pathlib.Path(out).write_text(json.dumps({"long": long, "count": count, "errors": errors}))


def children(pid, role):
    """Processes of a role that a supervisor has; the newest last."""
    found = []
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if pathlib.Path(f"/proc/{child}/cmdline").read_bytes().startswith(
                    b"livemv-" + role.encode()):
                found.append(int(child))
        except OSError:
            continue
    return found


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def kill_workers(test, kills, seed, churners=4):
    """Kills so many workers of test's migration, each 40 to 250 ms after it
    first answered; then moves. Fails if anything was lost or went wrong; the
    stalls: {kind: {median, p99, worst}} in seconds, a stall being the longest
    call that was under way at the kill or began before the next answer."""
    rng = random.Random(seed)
    bed.fill(test.disk, mb=20, files=200, seed=seed)
    filled = bed.tree(test.disk)
    model = test.work / "model"
    model.mkdir()
    stop = test.work / "stop-load"
    here = os.path.dirname(os.path.abspath(__file__))
    test.writers(by_path=4, held=4, shared=2)
    test.start("--cutover=wait")
    churn = test.spawn(sys.executable, os.path.join(here, "churn.py"), test.disk, model, seed,
                       36000, churners, stop, cwd="/", stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
    kinds = ("read", "write", "names")
    probes = [test.spawn(sys.executable, os.path.abspath(__file__), kind, test.disk, stop,
                         test.work / f"{kind}.json", cwd="/") for kind in kinds]
    supervisor = test.status()["supervisor_pid"]
    # Unlike any name before: the kernel has no answer of its own.
    asked = 0

    def answered():
        nonlocal asked
        asked += 1
        os.path.lexists(test.disk / f"no-such-name-{asked}")
        return time.monotonic()

    answered()
    windows, pids = [], set()
    for _ in range(kills):
        time.sleep(rng.uniform(0.040, 0.250))
        worker = bed.poll("a worker", lambda: children(supervisor, "worker"), step=0.001)[-1]
        test.assertNotIn(worker, pids, "this one was killed before")
        pids.add(worker)
        began = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        windows.append((began, answered()))
    for process, name in [(churn, "the churn")] + list(zip(probes, kinds)):
        test.assertIsNone(process.poll(), f"{name} ended by itself")
    stop.touch()
    said, _ = churn.communicate(timeout=120)
    test.assertEqual(churn.returncode, 0, said.decode() + test.logs())
    stalls = {"first answer": [end - began for began, end in windows]}
    for kind, probe in zip(kinds, probes):
        test.assertEqual(probe.wait(timeout=60), 0)
        seen = json.loads((test.work / f"{kind}.json").read_text())
        test.assertEqual(seen["errors"], [], test.logs())
        test.assertGreater(seen["count"], kills)
        stalls[kind] = [max([took for start, took in seen["long"]
                             if start < end and start + took > began], default=0.0)
                        for began, end in windows]
    test.wait_state("synced", timeout=120)
    test.livemv("cutover", test.disk, "--wait")
    test.wait_state("moved")
    totals = test.stop_writers()
    test.assert_nothing_lost(totals)
    found, links = bed.tree(test.disk, times=False)
    own = {k: v for k, v in found.items() if k.startswith(b"worker")}
    test.assertEqual(bed.difference((own, [l for l in links if l[0].startswith(b"worker")]),
                                    bed.tree(model, times=False)), "", test.logs())
    found, links = bed.tree(test.disk)
    rest = {k: v for k, v in found.items() if k in filled[0]}
    test.assertEqual(bed.difference(filled, (rest, [l for l in links if l[0] in rest])), "",
                     test.logs())
    return {kind: {"median": percentile(values, 0.5), "p99": percentile(values, 0.99),
                   "worst": max(values)} for kind, values in stalls.items()}, totals


def table(stalls):
    out = [f"{'stall, ms':14}{'median':>9}{'p99':>9}{'worst':>9}"]
    for kind, row in stalls.items():
        out.append(f"{kind:14}" + "".join(f"{row[k] * 1000:9.0f}"
                                          for k in ("median", "p99", "worst")))
    return "\n".join(out)


if __name__ == "__main__":
    measured(*sys.argv[1:])
