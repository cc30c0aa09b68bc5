"""The client of chat endpoints and the judgement of texts, against a local server that misbehaves."""

import datetime
import email.utils
import json
import threading
import time

import pytest

from openshape_jax.making import judging, rules
from openshape_jax.making.endpoint import Chat, Endpoint, EndpointError, in_parallel
from tests.chat_server import serve

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server():
    with serve(lambda body: "fine") as running:
        yield running


def endpoint(server, **options):
    return Endpoint(server.url, "tiny", **{"first_wait": 0.01, "timeout": 5.0, **options})


@pytest.mark.parametrize("fault", [500, 503, 408, 429, "no chat", "cut"])
def test_what_may_pass_is_asked_again(server, fault):
    server.faults = [fault, fault]
    with Chat(endpoint(server)) as chat:
        assert chat.ask(ASK).text == "fine"
        assert (chat.usage.requests, chat.usage.retries) == (3, 2)
    assert server.bodies[0] == server.bodies[2] == {"model": "tiny", "messages": ASK}


def test_a_server_that_hangs_is_left_after_the_timeout(server):
    server.faults = ["hang"]
    with Chat(endpoint(server, timeout=0.2)) as chat:
        assert chat.ask(ASK).text == "fine"
    server.faults = ["hang"] * 2
    with (
        Chat(endpoint(server, timeout=0.2, attempts=2)) as chat,
        pytest.raises(EndpointError, match=r"no answer within 0\.2 s, after 2 tries\. What is done is kept"),
    ):
        chat.ask(ASK)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed(server, as_date):
    wait = 1.0
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    server.faults = [(429, email.utils.format_datetime(soon, usegmt=True) if as_date else str(wait))]
    with Chat(endpoint(server)) as chat:
        assert chat.ask(ASK).text == "fine"
    waited = server.times[1] - server.times[0]
    assert 0.9 <= waited < 4.0


def test_waits_grow_without_retry_after(server):
    server.faults = [500] * 4
    with Chat(endpoint(server, first_wait=0.05)) as chat:
        chat.ask(ASK)
    waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert waits[0] >= 0.05
    assert waits[2] >= 0.2
    assert waits[3] >= 0.4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, "status 401 .*made 401.* environment variable MY_KEY"),
        (404, "status 404 .*the API's base, and 'tiny' a model there"),
        (400, "status 400"),
    ],
)
def test_a_refusal_ends_at_once(server, fault, message):
    server.faults = [fault]
    with Chat(endpoint(server, key_env="MY_KEY")) as chat, pytest.raises(EndpointError, match=message):
        chat.ask(ASK)
    assert len(server.bodies) == 1


def test_nobody_there():
    nobody = Endpoint("http://127.0.0.1:9/v1", "m", first_wait=0.01, attempts=2)
    message = "the connection failed .*after 2 tries"
    with Chat(nobody) as chat, pytest.raises(EndpointError, match=message):
        chat.ask(ASK)


def test_the_key_goes_into_the_header_and_nowhere_else(server, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.faults = [(400, None)]
    with Chat(endpoint(server, key_env="MY_KEY")) as chat:
        with pytest.raises(EndpointError) as error:
            chat.ask(ASK)
        chat.ask(ASK)
    assert server.headers[1]["Authorization"] == "Bearer sk-secret"
    told = f"{error.value} {chat.endpoint!r} {vars(chat.usage)} {capsys.readouterr()} {server.bodies}"
    assert "sk-secret" not in told
    monkeypatch.delenv("MY_KEY")
    with Chat(endpoint(server, key_env="MY_KEY")) as chat:
        chat.ask(ASK)
    assert "Authorization" not in server.headers[-1]


def test_tokens_and_costs_are_counted(server):
    with Chat(endpoint(server, price_in=2.0, price_out=10.0)) as chat:
        for _ in range(3):
            chat.ask(ASK)
        server.usage = None
        chat.ask(ASK)
        told = chat.usage.describe(chat.endpoint)
    assert told == {
        "requests": 4, "retries": 0, "prompt_tokens": 300, "completion_tokens": 30, "uncounted": 1,
        "usd": 300 * 2e-6 + 30 * 1e-5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "give its base URL"),
        ({"model": ""}, "--model NAME"),
        ({"attempts": 0}, "attempts is 0"),
        ({"timeout": 0.0}, "timeout 0"),
    ],
)
def test_bad_endpoints(options, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(**{"url": "http://x/v1", "model": "m", **options})


def test_what_is_under_way_is_given_before_an_error():
    gate = threading.Event()

    def work_on(item):
        if item == "bad":
            raise OSError("away")
        gate.wait(5)
        return item.upper()

    given = []
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(OSError, match="away"):
        for item, result in in_parallel(["a", "bad", "b", "c"], work_on, 2):
            given.append((item, result))
    assert given == [("a", "A")]
    assert sorted(in_parallel("abc", str.upper, 2)) == [("a", "A"), ("b", "B"), ("c", "C")]


# ---------------------------------------------------------------- judging


def listed(body):
    """The texts that a request asks about."""
    return json.loads(body["messages"][1]["content"].split("\n\n")[0])


def by_rules(body):
    """A model that thinks as the rules do."""
    found = [{"id": e["id"], "keep": not (r := rules.judge(e["text"])), "reason": r} for e in listed(body)]
    return json.dumps({"results": found})


TEXTS = ["a red chair", "mesh_0042", "Office lamp", "IMG_2034", "untitled"]
WANT = {
    "a red chair": "",
    "mesh_0042": "id",
    "Office lamp": "",
    "IMG_2034": "file_name",
    "untitled": "boilerplate",
}


def judged(folder, server, texts=TEXTS, **options):
    with Chat(endpoint(server)) as chat:
        found = judging.judge(folder, texts, chat, "PROMPT", **{"batch": 2, **options})
    return {text: v.reason if v.verdict == judging.REJECT else "" for text, v in found.items()}, found


def test_texts_are_judged_in_batches_and_never_paid_for_twice(tmp_path):
    with serve(by_rules) as server:
        want, found = judged(tmp_path, server, [*TEXTS, *TEXTS])
        assert want == WANT
        assert {v.by for v in found.values()} == {"tiny"}
        assert sorted(len(listed(body)) for body in server.bodies) == [1, 2, 2]
        assert server.bodies[0]["messages"][0] == {"role": "system", "content": "PROMPT"}
        assert server.bodies[0]["response_format"] == {"type": "json_object"}
        assert server.bodies[0]["temperature"] == 0
        server.bodies.clear()
        assert judged(tmp_path, server, [*TEXTS, "a new sofa"])[0] == {**WANT, "a new sofa": ""}
        assert [listed(body) for body in server.bodies] == [[{"id": 0, "text": "a new sofa"}]]


@pytest.mark.parametrize(
    "bad",
    [
        "no JSON at all",
        '{"answer": []}',
        '{"results": [{"id": 0, "keep": "yes", "reason": ""}, {"id": 1, "keep": 1}]}',
        '{"results": [{"id": 7, "keep": true, "reason": ""}]}',
        '{"results": [{"id": 0, "keep": true}, {"id": 0, "keep": false}]}',
        '{"results": [3, null]}',
        '{"results": [{"id": true, "keep": true, "reason": ""}]}',
    ],
)
def test_a_bad_answer_is_asked_for_again(tmp_path, bad):
    answers = []

    def answer(body):
        answers.append(bad if len(answers) == 0 else by_rules(body))
        return answers[-1]

    with serve(answer) as server:
        assert judged(tmp_path, server, TEXTS[:2])[0] == {t: WANT[t] for t in TEXTS[:2]}
        assert len(server.bodies) == 2
        assert "Your last answer was wrong: " in server.bodies[1]["messages"][1]["content"]


def test_what_is_right_in_a_bad_answer_is_kept(tmp_path):
    half = '```json\n{"results": [{"id": 1, "keep": false, "reason": "Not English"}]}\n```'
    answers = iter([half])

    with serve(lambda body: next(answers, None) or by_rules(body)) as server:
        found = judged(tmp_path, server, TEXTS[:2])[0]
        assert found == {"a red chair": "", "mesh_0042": "not_english"}
        assert listed(server.bodies[1]) == [{"id": 0, "text": "a red chair"}]


def test_a_model_that_never_answers_as_asked_leaves_unknowns(tmp_path):
    with serve(lambda body: "I cannot help with that.") as server:
        found = judged(tmp_path, server, TEXTS[:2], asks=2)[1]
        assert {v.verdict for v in found.values()} == {judging.UNKNOWN}
        assert all(v.reason.startswith("it is no JSON") for v in found.values())
        assert len(server.bodies) == 2
        judged(tmp_path, server, TEXTS[:2])  # it is not asked again unless one says so
        assert len(server.bodies) == 2
        server.answer = by_rules
        assert judged(tmp_path, server, TEXTS[:2], again_unknown=True)[0] == {t: WANT[t] for t in TEXTS[:2]}


def test_an_outage_keeps_what_was_paid_for(tmp_path):
    with serve(by_rules) as server:
        server.faults = ["", *[503] * 6]
        with pytest.raises(EndpointError, match="status 503"):
            judged(tmp_path, server)
        assert len((tmp_path / judging.CACHE).read_text().splitlines()) == 2
        with (tmp_path / judging.CACHE).open("a") as file:
            file.write('{"key": "cut off in the mid')  # killed while it wrote
        server.bodies.clear()
        assert judged(tmp_path, server)[0] == WANT
        assert [e["text"] for body in server.bodies for e in listed(body)] == TEXTS[2:]


def test_threads_judge_as_one_does(tmp_path):
    with serve(by_rules) as server:
        assert judged(tmp_path, server, parallel=3, batch=1)[0] == WANT
        assert len(server.bodies) == len(TEXTS)


def test_closing_a_chat_ends_its_waits(server):
    server.faults = [(503, "600")]
    chat = Chat(endpoint(server))
    threading.Timer(0.3, chat.stop).start()
    began = time.monotonic()
    with chat, pytest.raises(EndpointError):
        chat.ask(ASK)
    assert time.monotonic() - began < 5
