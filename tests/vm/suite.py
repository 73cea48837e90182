"""Runs end-to-end tests in the guest and says at once how each one went: when
the guest's time is up, what was known is on the console.

    suite.py NAME…    module.Class.test, module.Class or module
"""
import pathlib
import sys
import time
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
for folder in ("e2e", "hazards", "vm"):
    sys.path.insert(0, str(TESTS / folder))


class AtOnce(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def say(self, test, how):
        print(f"{how:<7} {time.monotonic() - self.began:6.1f} s  {test.id()}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.say(test, "passed")

    def bad(self, test, err):
        self.say(test, "FAILED")
        print(self._exc_info_to_string(err, test), flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self.bad(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.bad(subtest, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.say(test, "SKIPPED")
        print(reason, flush=True)


def main():
    suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:])
    result = AtOnce()
    suite.run(result)
    # A test that was skipped here has not shown what it is for.
    ok = result.wasSuccessful() and not result.skipped and result.testsRun > 0
    print(f"{result.testsRun} tests, {len(result.failures) + len(result.errors)} failed, "
          f"{len(result.skipped)} skipped", flush=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
