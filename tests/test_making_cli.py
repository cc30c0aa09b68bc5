"""`openshape targets`: records of a data set, wrong arguments, banks and stages that do not fit."""

import os
import shutil

import numpy as np
import pytest

from openshape_jax.cli import main as cli
from openshape_jax.data import sources, verify
from openshape_jax.making import captions, rules, work
from tests.chat_server import serve
from tests.test_making_stages import CLIP, FAST, MESHES, WIDTH, run, sees, told


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A work folder with small pictures of the ten models."""
    where = tmp_path_factory.mktemp("drawn") / "work"
    assert run("render", "--work", where, "--source", MESHES, "--size", 32, "--jobs", 1) == 0
    return where


@pytest.fixture
def copy(drawn, tmp_path):
    """A copy of it that a test changes."""
    return shutil.copytree(drawn, tmp_path / "work")


def test_records_of_a_data_set_are_drawn_as_points(tmp_path, monkeypatch, data_dir):
    from openshape_jax.making import shapes

    def few(source):
        return of_records(source)[:2]

    of_records = shapes._of_records
    monkeypatch.setattr(shapes, "_of_records", few)
    where = tmp_path / "work"
    every = [
        "all",
        "--work",
        where,
        "--data",
        "primitives/tiny",
        "--data_dir",
        data_dir,
        "--size",
        32,
        "--jobs",
        1,
    ]
    assert run(*every, "--clip", CLIP, "--name", "tiny") == 0
    found, info = sources.open_split("targets/tiny", "train", data_dir)
    before = sources.open_split("primitives/tiny", "train", data_dir)[0]
    old = {before[i]["uid"]: before[i] for i in range(len(before))}
    for i in range(len(found)):
        new = found[i]
        for key in ("xyz", "rgb", "center", "scale", "checksum", "label", "dataset"):
            np.testing.assert_array_equal(new[key], old[new["uid"]][key])
        assert len(new["image_features"]) == 12
        assert {t.text for t in old[new["uid"]]["texts"]} >= {t.text for t in new["texts"]}
    assert info.metadata["text_space"] != "clip_vitb32_names_centred"
    assert verify.verify(sources.find("targets/tiny", data_dir)).problems == []
    with pytest.raises(ValueError, match="lie in different spaces"):
        sources.text_space(["targets/tiny", "primitives/tiny"], data_dir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption"], "give one captioner: --endpoint URL, --blip MODEL or --captions-from FILE"),
        (["caption", "--endpoint", "http://x/v1", "--blip", "y"], "give one captioner"),
        (["caption", "--endpoint", "http://x/v1"], "--model NAME"),
        (["caption", "--captions-from", "none.csv"], "none.csv"),
        (["caption", "--endpoint", "http://x/v1", "--model", "m", "--views", "0,12"], "numbers from 0 to 11"),
        (["filter", "--by", "both"], "no endpoint is given"),
        (["filter", "--endpoint", "http://x/v1"], "--by is rules"),
        (["render", "--size", "9"], "--size is 9"),
        (["render", "--captions", "x.csv"], "belong to --source DIR"),
        (["retrieve", "--clip", CLIP], "--bank"),
        (["retrieve", "--clip", CLIP, "--bank", "none.npz"], "none.npz is not there; a bank is a .npz"),
        (["embed", "--clip", CLIP, "--name", "a b"], "cannot be a name"),
        (["embed", "--clip", "openai-b33"], "'openai-b33' is neither a file nor a folder"),
    ],
)
def test_wrong_arguments_say_what_to_do(copy, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in str(run(*arguments, "--work", copy))


def test_a_misspelt_source_or_list_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("file,name\nhamer,Hammer\n")
    for wrong in (["--source", "none"], ["--source", MESHES, "--captions", "words.csv"]):
        run("render", "--work", "work", *wrong)
        assert not (tmp_path / "work").exists()


def test_captions_of_unknown_shapes_are_listed_with_the_folder(copy, tmp_path):
    (tmp_path / "said.csv").write_text("file,caption\nhammer/martau.obj,it hits nails\n")
    message = str(run("caption", "--work", copy, "--captions-from", tmp_path / "said.csv"))
    assert f"line 2: 'hammer/martau.obj' is no shape in {MESHES} (near: 'hammer/marteau.obj')" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "openai-b33"], "'openai-b33' is neither a file nor a folder"),
        (["--clip", CLIP, "--bank", "none.npz"], "none.npz is not there"),
        (["--clip", CLIP, "--captions-from", "none.csv"], "none.csv"),
        (["--clip", CLIP, "--caption-endpoint", "http://x/v1"], "http://x/v1 needs the model's name"),
        (["--clip", CLIP, "--by", "both"], "--filter-endpoint"),
        (["--clip", CLIP, "--by", "both", "--filter-endpoint", "x:80", "--filter-model", "m"], "is 'x:80'"),
        (
            [
                *("--clip", CLIP, "--by", "llm", "--filter-endpoint", "http://x", "--filter-model", "m"),
                *("--filter-prompt", "none.txt"),
            ],
            "the prompt file none.txt cannot be read",
        ),
        (["--clip", CLIP, "--name", "a b"], "cannot be a name"),
    ],
)
def test_all_checks_every_stage_before_the_first_begins(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in str(run("all", "--work", "work", "--source", MESHES, *arguments))
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["source.json"]


def test_a_bank_of_another_clip_names_both_widths(copy, tmp_path):
    bank = tmp_path / "bank"
    bank.mkdir()
    np.save(bank / "image_features.npy", np.ones((2, 7), np.float16))
    (bank / "texts.txt").write_text("a chair\na table\n")
    message = str(run("retrieve", "--work", copy, "--clip", CLIP, "--bank", bank))
    assert "has features of width 7, the CLIP's have 24" in message
    np.save(bank / "image_features.npy", np.zeros((2, WIDTH), np.float16))
    assert "row 0 is zero" in str(run("retrieve", "--work", copy, "--clip", CLIP, "--bank", bank))
    (bank / "texts.txt").write_text("a chair\n")
    assert "shape (2, 24) (float16) and 1 texts" in str(
        run("retrieve", "--work", copy, "--clip", CLIP, "--bank", bank)
    )


def test_blip_without_torch_says_what_to_do(copy, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    assert "pip install torch" in str(run("caption", "--work", copy, "--blip", "Salesforce/x"))


def test_stages_out_of_order_name_the_missing_one(tmp_path):
    arguments = ["--work", tmp_path / "w", "--source", MESHES]
    message = str(run("caption", *arguments, "--captions-from", MESHES / "attribution.csv"))
    assert "render.json is not there: run `openshape targets render" in message
    assert "openshape targets embed" in str(_build("targets/x", tmp_path / "data", tmp_path / "w"))


def _build(name, data, source):
    with pytest.raises(SystemExit) as done:
        cli.main(["data", "build", name, "--data_dir", str(data), "--source", str(source)])
    return done.value.code


def test_one_stage_at_a_time_works_in_a_folder(copy):
    with work.locked(copy, "filter"):
        assert "another `openshape targets filter` is at work" in str(run("filter", "--work", copy))
    assert run("filter", "--work", copy) == 0
    assert told(copy / "filter.json")["settings"]["rules"] == rules.VERSION
    assert os.path.exists(copy / "filter.jsonl")


def test_useless_answers_are_told_and_asked_for_again_on_request(copy, capsys):
    with serve(lambda body: "word " * 200) as server:
        endpoint = ["--work", copy, "--endpoint", server.url, "--model", "m", *FAST]
        assert run("caption", *endpoint) == 0
        told_of = capsys.readouterr().out
        assert "10 shapes have none" in told_of and "longer than 400 characters; --again-empty" in told_of
        assert run("caption", *endpoint) == 0
        assert len(server.bodies) == 10
        server.answer = sees
        assert run("caption", *endpoint, "--again-empty") == 0
        assert run("caption", *endpoint, "--again-empty") == 0
        assert len(server.bodies) == 20
        assert all(line["texts"] for line in work.read_lines(copy / captions.FILE))
        server.answer = lambda body: "no"
        capsys.readouterr()
        assert run("filter", "--by", "llm", "--asks", 1, *endpoint) == 0
        told_of = capsys.readouterr().out
        assert "answers of m were of no use (it is no JSON" in told_of and "--again-unknown" in told_of
