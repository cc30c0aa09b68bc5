"""A chat model behind an OpenAI-compatible HTTP endpoint: vLLM, llama.cpp, Ollama, a paid service."""

from __future__ import annotations

import datetime
import email.utils
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import httpx2 as httpx
import tenacity

Item, Result = TypeVar("Item"), TypeVar("Result")
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that another try may mend
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server names more
LONGEST_ASKED = 600.0  # seconds that a server may ask us to wait


class EndpointError(OSError):
    """The endpoint cannot be used: it is away, refuses, or answers what is no chat completion."""


class _Passing(Exception):
    """A failure that may pass; `wait` is how many seconds the server asked for, None where it did not."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how patiently.

    Attributes:
      url: the base, e.g. "http://localhost:8000/v1"; "/chat/completions" is added.
      model: its name there.
      key_env: the environment variable of the API key; a server on one's own machine needs none. The key
        goes nowhere but into the request's header.
      timeout: seconds for one answer.
      attempts: at most, for one request.
      first_wait: seconds before the second try; doubled each time, with jitter, up to a minute.
      price_in, price_out: USD for a million tokens.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"the endpoint is {self.url!r}; give its base URL, e.g. http://localhost:8000/v1."
            )
        if not self.model:
            raise ValueError(f"the endpoint {self.url} needs the model's name there: --model NAME.")
        if self.attempts < 1 or not self.timeout > 0:
            raise ValueError(
                f"attempts is {self.attempts} and timeout {self.timeout}; they must be at least 1 and above "
                "0."
            )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class Answer(NamedTuple):
    """What a model said."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Usage:
    """What was asked so far in this run."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers that did not say how many tokens they were

    def describe(self, endpoint: Endpoint) -> dict[str, Any]:
        """The counts with their cost in USD."""
        cost = endpoint.cost(self.prompt_tokens, self.completion_tokens)
        return {**vars(self), "usd": round(cost, 6)}


class Chat:
    """A connection to an endpoint; threads may share it. A context manager."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.usage = endpoint, Usage()
        self._lock = threading.Lock()
        key = os.environ.get(endpoint.key_env, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=endpoint.timeout, headers=headers)
        self._stopped = threading.Event()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._client.close()

    def stop(self) -> None:
        """Ends waits between tries: the next request raises."""
        self._stopped.set()

    def ask(self, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> Answer:
        """The model's answer, asked for again while what fails may pass.

        Args:
          messages: of the chat, as the API takes them.
          parameters: further fields of the request, e.g. temperature.

        Raises:
          EndpointError: says what the server said and what to do.
        """
        body = {"model": self.endpoint.model, "messages": list(messages), **parameters}
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(self.endpoint.attempts)
            | tenacity.stop_when_event_set(self._stopped),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._stopped),
            before_sleep=lambda state: self._count(retries=1),
            reraise=True,
        )
        try:
            answer = tries(self._post, body)
        except _Passing as error:
            raise EndpointError(
                f"{self.endpoint.url}: {error}, after {self.endpoint.attempts} tries. What is done is kept: "
                "start the same command again when the server is well (--attempts and --timeout make it "
                "more patient)."
            ) from error
        self._count(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        return answer

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Passing) and error.wait is not None:
            return error.wait
        growing = tenacity.wait_exponential(self.endpoint.first_wait, max=LONGEST_WAIT)
        jitter = tenacity.wait_random(0, self.endpoint.first_wait / 2)
        return (growing + jitter)(state)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)

    def _post(self, body: dict[str, Any]) -> Answer:
        if self._stopped.is_set():
            raise EndpointError(f"{self.endpoint.url}: stopped while a request waited for its next try.")
        self._count(requests=1)
        try:
            response = self._client.post(f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise _Passing(f"no answer within {self.endpoint.timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Passing(f"the connection failed ({type(error).__name__}: {error})") from error
        if response.status_code in PASSING:
            raise _Passing(f"status {response.status_code} ({_excerpt(response)})", _asked_to_wait(response))
        if response.status_code != 200:
            hint = ""
            if response.status_code in (401, 403):
                hint = f" Set the API key in the environment variable {self.endpoint.key_env}."
            elif response.status_code == 404:
                hint = f" Is {self.endpoint.url} the API's base, and {self.endpoint.model!r} a model there?"
            raise EndpointError(
                f"{self.endpoint.url} refused the request with status {response.status_code} "
                f"({_excerpt(response)}).{hint}"
            )
        try:
            value = response.json()
            text = value["choices"][0]["message"]["content"]
            if not isinstance(text, str):
                raise TypeError("its content is no text")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Passing(f"its answer is no chat completion ({type(error).__name__}: {error})") from error
        usage = value.get("usage")
        counts = [
            usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")
        ]
        if not all(isinstance(count, int) for count in counts):
            self._count(uncounted=1)
        return Answer(text, *(count if isinstance(count, int) else 0 for count in counts))


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:200] or "no text"


def _asked_to_wait(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After, given as seconds or as a date; None where there is none."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return None
        when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
        seconds = (when - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_ASKED) if seconds == seconds else None


def in_parallel(
    items: Iterable[Item], work_on: Callable[[Item], Result], parallel: int
) -> Iterator[tuple[Item, Result]]:
    """(item, result) as results come, by `parallel` threads.

    Where one fails no more are begun, those that are under way are still given, and then its error is raised.
    Ctrl-C leaves at once: the threads are daemons, which an answer that never comes does not keep alive.
    """
    todo: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | None, BaseException | None]] = queue.SimpleQueue()

    def serve() -> None:
        while (entry := todo.get()) is not None:
            (item,) = entry
            try:
                done.put((item, work_on(item), None))
            except BaseException as error:
                done.put((item, None, error))

    pending, running, failure = iter(items), 0, None
    for _ in range(parallel):
        threading.Thread(target=serve, daemon=True).start()
    try:
        while True:
            while failure is None and running < parallel:
                try:
                    todo.put((next(pending),))
                except StopIteration:
                    break
                running += 1
            if not running:
                break
            item, result, error = done.get()
            running -= 1
            if error is not None:
                failure = failure or error
            else:
                yield item, result  # type: ignore[misc]
    finally:
        for _ in range(parallel):
            todo.put(None)
    if failure is not None:
        raise failure
