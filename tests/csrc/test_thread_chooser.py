"""The chooser of the number of threads, on given times: nothing here depends on a clock."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_LIMIT = 1 << 20


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/common/thread_chooser.cpp alone."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    target = tmp_path_factory.mktemp("chooser") / "chooser.so"
    sources = [
        ROOT / "csrc/common/thread_chooser.cpp",
        ROOT / "tests/csrc/thread_chooser_shim.cpp",
    ]
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
         f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(target)],
        check=True,
    )  # fmt: skip
    library = ctypes.CDLL(str(target))
    double, integer, pointer = ctypes.c_double, ctypes.c_int, ctypes.c_void_p
    library.chooser_new.restype = pointer
    library.chooser_delete.argtypes = [pointer]
    library.chooser_choose.argtypes = [pointer, integer, double]
    library.chooser_observe.argtypes = [pointer, integer, double, double, double]
    library.chooser_limit.argtypes = library.chooser_lasts.argtypes = [pointer]
    library.chooser_lasts.restype = ctypes.c_bool
    return library


class Machine:
    """A simulated machine on which regions run one after the other.

    Attributes:
        now: seconds on its clock.
        wanted: threads that every region could use.
        free: cores that no other process wants. Each thread beyond them stalls a region.
        spent: seconds of regions by the threads that ran them.
    """

    def __init__(self, library: ctypes.CDLL, wanted: int = 2, work: float = 0.016) -> None:
        self._library, self._chooser = library, library.chooser_new()
        self.wanted, self.free, self.work = wanted, wanted, work
        self.now = 100.0
        self.spent: dict[int, float] = {}

    def __del__(self) -> None:
        self._library.chooser_delete(self._chooser)

    @property
    def limit(self) -> int:
        return self._library.chooser_limit(self._chooser)

    @property
    def lasts(self) -> bool:
        return self._library.chooser_lasts(self._chooser)

    def region(self, stall: float = 0.0) -> int:
        """Run a region that takes `work` on one thread, and `stall` more if threads lack cores."""
        threads = self._library.chooser_choose(self._chooser, self.wanted, self.now)
        stalled = stall if threads > self.free else 0.0
        seconds = self.work / threads + stalled
        self.now += seconds
        self.spent[threads] = self.spent.get(threads, 0.0) + seconds
        self._library.chooser_observe(self._chooser, threads, self.now, seconds, stalled)
        return threads

    def run(self, seconds: float, stall: Callable[[int], float] = lambda region: 0.0) -> int:
        """Run regions for that long and return how many."""
        end, regions = self.now + seconds, 0
        while self.now < end:
            self.region(stall(regions))
            regions += 1
        return regions


def test_without_stalls_all_threads_work(library: ctypes.CDLL) -> None:
    machine = Machine(library)
    machine.run(60.0)
    assert set(machine.spent) == {2}
    assert machine.limit == NO_LIMIT


def test_what_passes_lowers_nothing(library: ctypes.CDLL) -> None:
    # A core is taken away for 70 ms every second, as on a virtual machine.
    machine = Machine(library)
    machine.free = 1
    machine.run(60.0, lambda region: 0.07 if region % 120 == 119 else 0.0)
    assert set(machine.spent) == {2}


@pytest.mark.parametrize("stall", [0.02, 0.1, 1.0])
def test_late_threads_make_way(library: ctypes.CDLL, stall: float) -> None:
    machine = Machine(library)
    machine.run(10.0)
    machine.free = 1
    alone = 120.0 / machine.work
    regions = machine.run(120.0, lambda region: stall)
    # What was gained in quiet times is not saved up: the change is noticed within 0.2 s or a pass.
    # Trials, of one region each, take the rest.
    assert regions >= 0.94 * alone
    assert machine.limit == 1
    assert machine.lasts


def test_stalls_worth_their_while_are_borne(library: ctypes.CDLL) -> None:
    # A third of the time is lost, but one thread alone would take a third longer still.
    machine = Machine(library)
    machine.free = 1
    machine.run(60.0, lambda region: 0.004)
    assert set(machine.spent) == {2}


def test_threads_come_back(library: ctypes.CDLL) -> None:
    machine = Machine(library)
    machine.free = 1
    machine.run(60.0, lambda region: 0.05)
    assert machine.limit == 1
    machine.free = 2
    # The next trial is at most 4 s away, since none lost more than 50 ms, and passes after 0.2 s.
    machine.run(4.3)
    assert machine.limit == NO_LIMIT
    assert not machine.lasts
    machine.spent.clear()
    machine.run(10.0)
    assert set(machine.spent) == {2}


def test_a_trial_costs_what_it_loses(library: ctypes.CDLL) -> None:
    machine = Machine(library)
    machine.free = 1
    machine.run(30.0, lambda region: 0.05)
    machine.spent.clear()
    machine.run(80.0, lambda region: 0.05)
    # 20 trials of one region each.
    assert machine.spent[2] == pytest.approx(20 * 0.058, rel=0.1)


def test_torch_waits_for_the_end_of_a_trial(library: ctypes.CDLL) -> None:
    machine = Machine(library)
    machine.free = 1
    while machine.limit == NO_LIMIT:
        machine.region(0.05)
    machine.free = 2
    machine.now += 1.0
    assert machine.region() == 2  # a trial
    assert machine.limit == 1
    machine.run(1.0)
    assert machine.limit == NO_LIMIT


@pytest.mark.parametrize(("wanted", "free"), [(8, 7), (16, 12), (16, 3), (64, 63)])
def test_many_threads_find_the_free_cores(library: ctypes.CDLL, wanted: int, free: int) -> None:
    machine = Machine(library, wanted=wanted)
    machine.free = free
    machine.run(120.0, lambda region: 0.05)
    assert free // 2 < machine.limit <= free
    machine.free = wanted
    machine.run(60.0)
    assert machine.limit == NO_LIMIT


def test_small_regions_do_not_decide_for_large_ones(library: ctypes.CDLL) -> None:
    machine = Machine(library, wanted=16)
    machine.free = 1
    while machine.limit == NO_LIMIT:
        machine.wanted = 2 if machine.wanted == 16 else 16
        machine.region(0.01)
    assert machine.limit == 12


def test_small_regions_are_watched_while_larger_ones_are_on_trial(library: ctypes.CDLL) -> None:
    machine = Machine(library, wanted=16)
    machine.free = 1
    while machine.limit == NO_LIMIT:
        machine.region(0.01)
    machine.now += 1.0
    assert machine.region() > 12  # a trial, which no other region ends
    machine.wanted = 2
    machine.run(1.0, lambda region: 0.05)
    assert machine.limit == 1


def test_short_regions_pass_a_trial_in_time(library: ctypes.CDLL) -> None:
    # Most of the time is spent outside of regions, as where torch computes the products.
    machine = Machine(library, work=2e-5)
    machine.free = 1
    while machine.limit == NO_LIMIT:
        machine.region(0.05)
    machine.free = 2
    for _ in range(400):
        machine.region()
        machine.now += 0.01
    assert machine.limit == NO_LIMIT


def test_one_thread_is_never_limited(library: ctypes.CDLL) -> None:
    machine = Machine(library, wanted=1)
    machine.free = 0
    machine.run(10.0, lambda region: 1.0)
    assert machine.limit == NO_LIMIT
