"""The parts of the comparison with other engines that need none of them."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))

import llama_cpp  # noqa: E402
import peer_tables  # noqa: E402
from peer_environments import make_folder, run  # noqa: E402
from peer_process import Worker  # noqa: E402
from peer_records import Answer, Passes, RunRecords  # noqa: E402
from peer_runners import Runner, all_runners, choose_runners, in_turn  # noqa: E402

QUESTIONS = ["a/1", "a/2"]


def answer(
    runner: str,
    question: str,
    repeat: int = 0,
    *,
    tokens: tuple[int, ...] = (5, 6, 7, 8),
    prompt: float = 1.0,
    decode: float = 1.0,
) -> Answer:
    return Answer(
        runner=runner,
        question=question,
        repeat=repeat,
        session=0,
        tokens=tokens,
        generated=len(tokens),
        prompt_tokens=1,
        prompt_seconds=prompt,
        decode_seconds=decode,
    )


def kept(*answers: Answer) -> dict[tuple[str, str, int], Answer]:
    return {(one.runner, one.question, one.repeat): one for one in answers}


def test_rates_are_totals_over_the_questions() -> None:
    found = peer_tables.rates(
        [answer("x", "a/1", decode=0.5), answer("x", "a/2", tokens=(1, 2), decode=1.5)]
    )
    # Four and two tokens, the first of each with the prompt.
    assert found == (4 / 2.0, 6 / 4.0)


def test_medians_are_over_complete_repeats() -> None:
    answers = kept(
        *(answer("x", question, 0, decode=1.0) for question in QUESTIONS),
        *(answer("x", question, 1, decode=3.0) for question in QUESTIONS),
        *(answer("x", question, 2, decode=2.0) for question in QUESTIONS),
        answer("x", "a/1", 3, decode=100.0),
    )
    assert peer_tables.complete_repeats(answers, "x", QUESTIONS) == [0, 1, 2]
    assert peer_tables.median_rates(answers, "x", QUESTIONS) == (6 / 4, 8 / 6)
    assert peer_tables.median_rates(answers, "y", QUESTIONS) is None


def test_the_end_token_does_not_make_texts_different() -> None:
    answers = kept(
        answer("x", "a/1", tokens=(1, 2, 0)),
        answer("y", "a/1", tokens=(1, 2)),
        answer("x", "a/2", tokens=(1, 2)),
        answer("y", "a/2", tokens=(1, 3)),
    )
    assert peer_tables.equal_texts(answers, "x", "y", QUESTIONS, end=0) == 1
    assert peer_tables.equal_texts(answers, "x", "z", QUESTIONS, end=0) is None


def test_the_ratio_table_takes_the_best_of_each() -> None:
    seconds = {
        "eaglerl native plain": 4.0,
        "eaglerl native 5/3/2": 3.0,
        "eaglerl native 6/2/4": 2.0,
        "eaglerl native policy": 1.0,
        "eaglerl float32 policy": 3.0,
        "llama.cpp Q4_1 plain": 6.0,
        "llama.cpp Q8_0 ngram-mod": 2.0,
        "OpenVINO int8 lookup": 1.0,
    }
    answers = kept(
        *(
            answer(name, question, prompt=decode / 4, decode=decode)
            for name, decode in seconds.items()
            for question in QUESTIONS
        )
    )
    rows = peer_tables.RatioTable(all_runners(), answers, QUESTIONS).rows()
    found = {row.label: (row.mine, row.other, row.decode, row.whole) for row in rows}
    plain, best = (
        found["plain native / llama.cpp Q4_1"],
        found["best tree native / llama.cpp's best"],
    )
    assert plain == ("eaglerl native plain", "llama.cpp Q4_1 plain", 1.5, 1.5)
    assert best == ("eaglerl native 6/2/4", "llama.cpp Q8_0 ngram-mod", 1.0, 1.0)
    assert found["policy native / policy float32"][2:] == pytest.approx((3.0, 3.0))
    assert found["policy native / OpenVINO int8 + lookup (prompts included)"][3] == 1.0
    assert not any("int8 / llama.cpp" in label for label in found), "int8 was not measured"
    # Equal ratios in all questions leave no doubt.
    assert all(row.low == pytest.approx(row.whole) for row in rows)


def test_ratios_of_passes() -> None:
    passes = [
        Passes(runner="eaglerl native", rows=1, turn=turn, seconds=(0.002, second))
        for turn, second in enumerate((0.001, 0.009))
    ]
    passes.append(Passes(runner="eaglerl native", rows=8, turn=0, seconds=(0.006,)))
    medians = peer_tables.pass_medians(passes)
    assert medians == {"eaglerl native": {1: pytest.approx(2.0), 8: pytest.approx(6.0)}}
    (found,) = peer_tables.pass_ratios(medians, {"eaglerl native": 10_000_000}, 1e10)
    assert found["one_row_over_reading"] == pytest.approx(2.0)
    assert found["eight_rows_over_one"] == pytest.approx(3.0)
    (unknown,) = peer_tables.pass_ratios(medians, {}, None)
    assert unknown["one_row_over_reading"] is None


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    first, second = answer("x", "a/1"), answer("x", "a/2")
    with RunRecords(tmp_path, {"threads": 2}) as records:
        assert records.session == 0
        records.add_answer(first)
        records.add_passes(Passes(runner="x", rows=1, turn=0, seconds=(0.5,)))
    lines = tmp_path / "answers.jsonl"
    lines.write_bytes(lines.read_bytes() + b'{"runner":"x","quest')
    with pytest.warns(UserWarning, match="cut short"):
        resumed = RunRecords(tmp_path, {"threads": 2})
    with resumed as records:
        assert records.session == 1
        assert records.answers == kept(first)
        records.add_answer(second)
    with RunRecords(tmp_path, {"threads": 2}) as records:
        assert records.answers == kept(first, second)
        assert records.passes[("x", 1, 0)].seconds == (0.5,)


def test_a_run_has_one_kind_of_settings(tmp_path: Path) -> None:
    with RunRecords(tmp_path, {"threads": 2}):
        pass
    with pytest.raises(ValueError, match=r"threads 2, and this would be 4: give --run"):
        RunRecords(tmp_path, {"threads": 4})


def test_the_order_rotates() -> None:
    runners = choose_runners(["llama.cpp * plain"])
    assert [runner.weights for runner in runners] == ["Q4_1", "Q8_0", "F32"]
    assert [runner.weights for runner in in_turn(runners, 4)] == ["Q8_0", "F32", "Q4_1"]
    with pytest.raises(ValueError, match="'no such' fits none"):
        choose_runners(["no such"])


def test_names_are_distinct() -> None:
    names = [runner.name for runner in all_runners()]
    assert len(set(names)) == len(names)
    assert Runner("eaglerl", "int8", "6/2/4").is_tree
    assert not Runner("eaglerl", "int8", "plain").is_tree


def test_a_worker_that_ends_is_named_with_its_stderr(tmp_path: Path) -> None:
    script = "import sys; sys.stdin.readline(); sys.exit('no such model')"
    worker = Worker("peer", [sys.executable, "-c", script], tmp_path / "peer.log")
    with pytest.raises(RuntimeError, match=r"peer ended with 1\. Its stderr .*\nno such model"):
        worker.ask(prompt=[1])
    worker.close()


def test_a_worker_answers(tmp_path: Path) -> None:
    script = "for line in __import__('sys').stdin: print(line, end='', flush=True)"
    worker = Worker("peer", [sys.executable, "-c", script], tmp_path / "peer.log")
    assert worker.ask(prompt=[1]) == {"prompt": [1]}
    worker.close()


def test_a_command_that_fails_shows_its_output() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\nwhy"):
        run([sys.executable, "-c", "print('why'); raise SystemExit(3)"])


def test_a_folder_is_made_once_and_whole(tmp_path: Path) -> None:
    def fails(to: Path) -> None:
        to.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_folder(tmp_path / "model", fails)
    assert not (tmp_path / "model").exists()
    made = make_folder(tmp_path / "model", Path.mkdir)
    assert make_folder(made, fails) == made


def test_a_completion_is_read() -> None:
    timings = {"prompt_n": 9, "prompt_ms": 20.0, "predicted_n": 5, "predicted_ms": 50.0}
    found = llama_cpp.read_completion({"tokens": [1, 2, 3, 4, 5], "timings": timings}, 9, 4)
    assert (found["tokens"], found["generated"]) == ([1, 2, 3, 4], 5)
    assert (found["prompt_seconds"], found["decode_seconds"]) == (0.02, 0.05)
    with pytest.raises(RuntimeError, match="read 9 of the prompt's 12"):
        llama_cpp.read_completion({"tokens": [1], "timings": timings}, 12, 4)


def test_the_tile_configuration_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "mmq.cpp"
    file.write_text("    fill(&tc);\n    _tile_loadconfig(&tc);\n", encoding="utf-8")
    llama_cpp.keep_tile_config(file)
    assert '"m"(tc));\n    _tile_loadconfig(&tc);' in file.read_text(encoding="utf-8")
    file.write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError, match="must load one tile configuration"):
        llama_cpp.keep_tile_config(file)
