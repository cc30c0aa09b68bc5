"""`openshape targets` on ten real models: five stages, local servers, kills, and what training reads."""

import contextlib
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openshape_jax.cli import main as cli
from openshape_jax.config import DataConfig
from openshape_jax.data import class_features, schema, sources, targets, verify
from openshape_jax.making import captions, judging, ready, retrieve, work
from tests.chat_server import serve
from tests.test_clip import TRANSFORMERS
from tests.test_making_endpoint import by_rules, listed

MESHES = Path(__file__).parent / "fixtures" / "furniture"
CLIP = str(TRANSFORMERS)  # random weights, D = 24
WIDTH = 24
FAST = ["--attempts", "4", "--timeout", "5"]


def run(*arguments):
    """What `openshape targets ...` ends with: its exit status, or its message."""
    with pytest.raises(SystemExit) as done:
        cli.main(["targets", *map(str, arguments)])
    return done.value.code


def embed(where, data, name="ten"):
    return run("embed", "--work", where, "--clip", CLIP, "--name", name, "--data_dir", data, "--jobs", 1)


def told(path):
    return json.loads(path.read_text())


def write_captions(path):
    """The list of the ten, with a file name instead of a name for two, as strangers' folders have them."""
    with (MESHES / "attribution.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["name"] = {"Desk": "", "Tatami": "untitled model 3"}.get(row["name"], row["name"])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def sees(body):
    """A captioner that looks: it names the mean colour of what is drawn, and the number of pictures."""
    import base64
    import io

    from PIL import Image

    content = body["messages"][0]["content"]
    images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert all(url.startswith("data:image/jpeg;base64,") for url in images)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))))
    shown = pixels[(pixels < 250).any(-1)].mean(0).astype(int)
    return f' "A piece of furniture coloured {shown[0]} {shown[1]} {shown[2]}, seen {len(images)} times." '


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The work folder, its data set's folder and what the two servers saw, after all five stages."""
    root = tmp_path_factory.mktemp("made")
    where, data = root / "work", root / "data"
    write_captions(root / "words.csv")
    shapes = ["--source", MESHES, "--captions", root / "words.csv"]
    assert run("render", "--work", where, *shapes, "--size", 64, "--jobs", 1) == 0
    with serve(sees) as eyes, serve(by_rules) as judge:
        eyes.faults = ["", 500, (429, "0"), "no chat", "cut"]
        endpoint = ["--endpoint", eyes.url, "--model", "eyes", "--price-in", 1, "--price-out", 2, *FAST]
        assert run("caption", "--work", where, *endpoint, "--views", "0,5", "--parallel", 2) == 0
        answers = iter(["not JSON", '{"results": [{"id": 0}]}'])  # then as asked
        judge.answer = lambda body: next(answers, None) or by_rules(body)
        judge.faults = [503]
        endpoint = ["--endpoint", judge.url, "--model", "judge", "--price-in", 3, *FAST]
        assert run("filter", "--work", where, "--by", "llm", "--batch", 7, *endpoint, "--parallel", 1) == 0
        seen = {"eyes": list(eyes.bodies), "judge": list(judge.bodies)}
    bank = root / "bank.npz"
    rng = np.random.default_rng(0)
    pairs = ["a wooden seat", "kitchen appliance, white", "garden at night", "tool box", "two green pens"]
    pairs += ["a photograph of a castle"]
    pairs += ["IMG_0001", "A photograph of... a CASTLE!", "Hammer"]
    np.savez(
        bank, image_features=rng.normal(size=(len(pairs), WIDTH)).astype(np.float32), texts=np.array(pairs)
    )
    least = ["--min-similarity", -1, "--k", 3]
    assert run("retrieve", "--work", where, "--bank", bank, "--clip", CLIP, *least) == 0
    assert (
        run("embed", "--work", where, "--clip", CLIP, "--name", "ten", "--data_dir", data, "--jobs", 1) == 0
    )
    return where, data, seen


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the work folder that a test changes."""
    return shutil.copytree(made[0], tmp_path / "work")


def records(data, split="train"):
    found, _ = sources.open_split("targets/ten", split, data)
    return {found[i]["uid"]: found[i] for i in range(len(found))}


def test_every_stage_left_its_results_and_what_made_them(made):
    where, _, seen = made
    counts = {stage: told(where / f"{stage}.json") for stage in ready.STAGES}
    assert all(
        record["complete"] and record["made"] and record["openshape_jax"] for record in counts.values()
    )
    assert counts["render"]["counts"] == {"shapes": 10, "rejected": 0}
    caption = counts["caption"]
    assert caption["settings"]["model"] == "eyes" and caption["settings"]["views"] == [0, 5]
    assert caption["settings"]["prompt"].startswith("The pictures show one 3D model")
    assert caption["counts"]["captions"] == 10
    usage = told(where / "usage.json")
    assert usage["caption"]["eyes"] == {
        "requests": 14, "retries": 4, "prompt_tokens": 1000, "completion_tokens": 100, "uncounted": 0,
        "usd": 0.0012,
    }  # fmt: skip
    assert len(seen["eyes"]) == 14
    lines = work.read_lines(where / captions.FILE)
    assert [line["uid"] for line in lines] == sorted(line["uid"] for line in lines)
    assert all("seen 2 times." in line["texts"][0] and '"' not in line["texts"][0] for line in lines)
    hammer, fridge = (
        next(li["texts"][0] for li in lines if li["uid"].startswith(n)) for n in ("hammer", "fridge")
    )
    red, green = map(int, hammer.split("coloured ")[1].split(" ")[:2])
    assert red > 1.2 * green
    assert int(fridge.split("coloured ")[1].split(" ")[0]) > 150
    found = counts["filter"]
    assert found["settings"]["model"] == "judge" and "prompt_hash" in found["settings"]
    assert found["counts"]["reject"] == 1 and found["counts"]["reasons"] == {"boilerplate": 1}
    assert usage["filter"]["judge"]["usd"] == pytest.approx(3e-4 * (len(seen["judge"]) - 1))


def test_the_filter_spares_what_a_person_said_and_asks_once_for_each_text(made):
    where, _, seen = made
    lines = work.read_lines(where / "filter.jsonl")
    kinds = {(line["source"], line["by"]) for line in lines}
    assert kinds == {("class", "trusted"), ("name", "judge"), ("caption", "judge")}
    rejected = [line for line in lines if line["verdict"] == judging.REJECT]
    assert [(r["uid"], r["text"]) for r in rejected] == [("tatami/tatami.obj", "untitled model 3")]
    assert {"simple Desk", "Hammer"} <= {line["text"] for line in lines}  # a file name became a title
    asked = [entry["text"] for body in seen["judge"] for entry in listed(body)]
    assert len(set(asked)) == 20
    assert not {"chair", "streetlight"} & set(asked)


def test_retrieved_texts_are_the_nearest_without_near_duplicates(made):
    where, _, _ = made
    lines = work.read_lines(where / retrieve.FILE)
    assert len(lines) == 10
    bank = np.load(where.parent / "bank.npz")
    rows = bank["image_features"] / np.linalg.norm(bank["image_features"], axis=1, keepdims=True)
    for line in lines:
        found = list((where / "features" / "images").glob(f"{line['uid'].split('/')[0]}*.npz"))
        mean = np.load(found[0])["features"].astype(np.float32).mean(0)
        cosine = dict(zip(bank["texts"].tolist(), rows @ mean / np.linalg.norm(mean), strict=True))
        texts = [text for text, _ in line["texts"]]
        assert len(texts) == 3 and "IMG_0001" not in texts
        assert not (line["uid"].startswith("hammer") and "Hammer" in texts)
        assert not {"a photograph of a castle", "A photograph of... a CASTLE!"} <= set(texts)
        for text, said in line["texts"]:
            assert said == pytest.approx(cosine[text], abs=2e-4)
        best = max((t for t in cosine if t not in ("IMG_0001", "Hammer")), key=lambda t: cosine[t])
        assert texts[0] == best or texts[0] == "Hammer"


def test_records_hold_what_the_towers_say(made):
    import openshape_jax
    from openshape_jax.evals.prompts import ULIP
    from openshape_jax.making.pictures import on_background

    where, data, _ = made
    clip = openshape_jax.load_clip(CLIP)
    train, test = records(data), records(data, "test")
    assert set(test) == {"bench/painted-bench.obj", "cabinet/upperCabinet.obj"} and len(train) == 8
    hammer = train["hammer/marteau.obj"]
    schema.check(hammer)
    assert (hammer["label"], hammer["creator"], hammer["license"]) == ("hammer", "Scopia", "CC-BY-3.0")
    assert len(hammer["xyz"]) == 10_000 and hammer["icon"].startswith(b"\x89PNG")
    assert [t.source for t in hammer["texts"]] == ["class", "name", "caption", *["retrieval"] * 3]
    for text in hammer["texts"]:
        np.testing.assert_allclose(text.feature, clip.encode_text([text.text])[0], atol=2e-3)
        if text.source == "retrieval":
            assert text.prompt_feature is None
        else:
            np.testing.assert_allclose(
                text.prompt_feature, clip.prompt_average([text.text], ULIP)[0], atol=2e-3
            )
    from PIL import Image

    paths = sorted((where / "render" / "hammer%2Fmarteau.obj").glob("*.png"))
    want = clip.encode_images([on_background(Image.open(path)) for path in paths])
    np.testing.assert_allclose(hammer["image_features"], want, atol=2e-3)
    assert hammer["image_sources"] == ["render"] * 12
    tatami = train["tatami/tatami.obj"]
    turned_down = next(t for t in tatami["texts"] if t.source == "name")
    assert turned_down.feature is None and tatami["text_flag"] == "N" and hammer["text_flag"] == "Y"
    assert targets.has_target(tatami, DataConfig())


def test_the_data_set_verifies_and_names_its_space(made):
    _, data, _ = made
    folder = sources.find("targets/ten", data)
    found = verify.verify(folder)
    assert found.problems == [] and found.counts == {"train": 8, "test": 2}
    _, info = sources.open_split("targets/ten", "train", data)
    assert info.metadata["text_space"] == sources.text_space(["targets/ten"], data)
    assert info.metadata["clip"]["width"] == WIDTH and len(info.metadata["clip"]["weights"]) == 32
    assert set(info.metadata["stages"]) == {"render", "caption", "filter", "retrieve", "embed"}
    stored = class_features.load(folder)
    assert stored is not None and stored.width == WIDTH
    assert {"hammer", "bench", "chair", "refrigerator"} <= set(stored.names)
    assert sum(entry["count"] for entry in info.metadata["attribution"]) == 10


def test_the_same_commands_again_do_nothing(made, capsys):
    where, data, _ = made
    before = {p: p.stat().st_mtime_ns for p in [*where.rglob("*"), *data.rglob("*")] if p.suffix != ".lock"}
    with serve(sees) as eyes:  # no request comes
        endpoint = ["--endpoint", eyes.url, "--model", "eyes"]
        assert run("render", "--work", where, "--size", 64) == 0
        assert run("caption", "--work", where, *endpoint, "--views", "0,5") == 0
        endpoint = ["--endpoint", eyes.url, "--model", "judge"]
        assert run("filter", "--work", where, "--by", "llm", *endpoint) == 0
        assert eyes.bodies == []
    least = ["--min-similarity", -1, "--k", 3]
    assert run("retrieve", "--work", where, "--bank", where.parent / "bank.npz", "--clip", CLIP, *least) == 0
    assert run("embed", "--work", where, "--clip", CLIP, "--name", "ten", "--data_dir", data) == 0
    said = capsys.readouterr().out
    assert said.count("(10 were there)") >= 4 and "targets/ten: nothing has changed since" in said
    results = ("*.png", "*.npz", "*.array_record*")
    for path, stamp in before.items():
        if any(path.match(pattern) for pattern in results):
            assert path.stat().st_mtime_ns == stamp, path


def test_a_stage_that_was_killed_ends_as_one_that_ran_through(copy, made, tmp_path):
    """By SIGKILL, from outside, in the middle of a batch that the server holds back."""
    for name in ("caption.json", captions.FILE):
        (copy / name).unlink()
    with serve(sees) as eyes:
        eyes.faults = [*[""] * 4, "hang"]
        endpoint = ["--endpoint", eyes.url, "--model", "eyes", "--views", "0,5", "--parallel", "1"]
        arguments = ["targets", "caption", "--work", str(copy), *endpoint]
        command = [sys.executable, "-m", "openshape_jax.cli.main", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if len(eyes.bodies) == 5:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        process.kill()
        process.wait()
        assert len(work.read_lines(copy / captions.FILE)) == 4
        assert told(copy / "caption.json")["complete"] is False
        message = str(run("embed", "--work", copy, "--clip", CLIP, "--data_dir", tmp_path))
        assert "caption was interrupted: run `openshape targets caption" in message
        with (copy / captions.FILE).open("ab") as file:
            file.write(b'{"key": "half a li')
        eyes.bodies.clear()
        assert run("caption", "--work", copy, *endpoint) == 0
        assert len(eyes.bodies) == 6
    assert (copy / captions.FILE).read_bytes() == (made[0] / captions.FILE).read_bytes()


def test_an_interrupted_embedding_goes_on(copy, made, tmp_path, monkeypatch, capsys):
    shutil.rmtree(copy / "features")
    from openshape_jax.making import features

    monkeypatch.setattr(features, "GROUP", 3)
    monkeypatch.setattr(features, "PART", 10)
    saved = []
    write = features.files.write

    def stops(path, save):
        write(path, save)
        saved.append(path)
        if len(saved) in (4, 11):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features.files, "write", stops)
        assert embed(copy, tmp_path) == 130
        assert "the same command goes on" in capsys.readouterr().err
        assert embed(copy, tmp_path) == 130
    assert embed(copy, tmp_path) == 0
    first, again = (
        {str(p.relative_to(d)): p.read_bytes() for p in sorted(d.rglob("*.array_record*"))}
        for d in (made[1], tmp_path)
    )
    assert first == again and len(first) == 2


def test_another_captioner_or_prompt_makes_texts_again_and_the_data_set_with_them(copy, tmp_path, capsys):
    data = tmp_path / "data"
    (tmp_path / "said.csv").write_text(
        "file,caption,caption2\nhammer/marteau,a red hammer,it hits nails\nfridge,IMG_7\n"
    )
    assert run("embed", "--work", copy, "--clip", CLIP, "--name", "ten", "--data_dir", data, "--jobs", 1) == 0
    assert run("caption", "--work", copy, "--captions-from", tmp_path / "said.csv") == 0
    said = capsys.readouterr().out
    assert (
        "changed since" in said
        and "caption: 3 captions of 10 shapes" in said
        and "8 shapes have none" in said
    )
    message = str(run("embed", "--work", copy, "--clip", CLIP, "--name", "ten", "--data_dir", data))
    assert "texts are new since filter ran" in message and "run `openshape targets filter` again" in message
    assert run("filter", "--work", copy) == 0
    assert "model, prompt, prompt_hash, rules changed" in capsys.readouterr().out
    assert "changed since retrieve ran" in str(embed(copy, data))
    bank = ["--bank", copy.parent / "bank.npz", "--min-similarity", 1]
    np.savez(bank[1], image_features=np.ones((1, WIDTH), np.float32), texts=np.array(["a tool"]))
    assert run("retrieve", "--work", copy, "--clip", CLIP, *bank) == 0
    assert "10 shapes got none: nothing in the bank is near enough" in capsys.readouterr().out
    assert embed(copy, data) == 0
    assert "was built before something changed: building it again" in capsys.readouterr().out
    train = records(data)
    hammer = {
        t.text: t.feature is not None for t in train["hammer/marteau.obj"]["texts"] if t.source == "caption"
    }
    assert hammer == {"a red hammer": True, "it hits nails": True}
    fridge = {
        t.text: t.feature is not None for t in train["fridge/fridge.obj"]["texts"] if t.source == "caption"
    }
    assert fridge == {"IMG_7": False}
    copied = shutil.copytree(copy, tmp_path / "elsewhere")
    message = str(run("embed", "--work", copied, "--clip", CLIP, "--name", "ten", "--data_dir", data))
    assert "was built from" in message and "take another --name" in message


def test_what_is_made_of_older_results_is_noticed(copy, tmp_path):
    def again(*arguments):
        assert run(*arguments, "--work", copy) == 0

    again("render", "--size", 48, "--jobs", 1)
    assert "changed since caption ran" in str(embed(copy, tmp_path))
    again("caption", "--captions-from", MESHES / "attribution.csv")  # it has none
    assert "changed since retrieve ran" in str(embed(copy, tmp_path))
    for name in ("retrieve.json", retrieve.FILE):
        (copy / name).unlink()
    assert embed(copy, tmp_path) == 0
    assert {t.source for record in records(tmp_path).values() for t in record["texts"]} == {"class", "name"}


def test_training_reads_the_set_and_refuses_to_mix_spaces(made, tmp_path):
    from openshape_jax import config, train
    from openshape_jax.data import pipeline
    from openshape_jax.evals.zero_shot import ZeroShot

    data = made[1]
    overrides = ["data.datasets=('targets/ten',)", "eval.datasets=('targets/ten',)", f"data.data_dir={data}"]
    overrides += [f"model.embed_dim={WIDTH}", "batch_size=8"]
    found = config.load(str(MESHES.parents[2] / "configs" / "pointbert_s.py") + ":smoke", overrides)
    batch = pipeline.dataset(found)[0]
    assert batch["text"].shape == batch["image"].shape == (8, 1, WIDTH)
    assert batch["has_text"].all() and batch["has_image"].all()
    np.testing.assert_allclose(np.linalg.norm(batch["image"], axis=-1), 1, atol=2e-3)
    held_out = ZeroShot(
        "targets/ten", found.eval, str(data), WIDTH, sources.text_space(["targets/ten"], data)
    )
    (task,) = held_out.tasks(["a", "b"], ["bench", "cabinet"])
    assert [task.class_names[i] for i in task.label] == ["bench", "cabinet"]
    other = shutil.copytree(data, tmp_path / "data")
    path = other / "targets" / "ten" / "1.0.0" / "metadata.json"
    shutil.copytree(path.parents[1], path.parents[2] / "other")
    metadata = path.parents[2] / "other" / "1.0.0" / "metadata.json"
    metadata.write_text(
        metadata.read_text().replace(sources.text_space(["targets/ten"], other), "CLIP of others")
    )
    found.data.data_dir = str(other)
    found.data.datasets = ("targets/other",)
    with pytest.raises(ValueError, match="classes of 'targets/ten' are vectors of .* into 'CLIP of others'"):
        train.run(found, tmp_path / "mixed")
    found.data.datasets = ("targets/other", "targets/ten")
    with pytest.raises(ValueError, match="lie in different spaces"):
        train.run(found, tmp_path / "mixed")
